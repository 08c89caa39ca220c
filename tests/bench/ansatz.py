"""The predicted front on inputs with more than one pair cosine: clusters, patches of a photograph.

The forecast is the front at the mean pair cosine of each input. Run with `python tests/bench/ansatz.py`.
"""

import dataclasses
import math
import sys
from collections.abc import Callable

import numpy as np
import torch
from matplotlib import cbook, image
from torch import Tensor
from torch.nn.functional import rms_norm
from tqdm import tqdm

import meanmode.sim.simulate
from meanmode.sim.onset.measured_front import collapse_front
from meanmode.sim.simulate import simulate
from meanmode.sim.trunk.stack import synthetic_input
from meanmode.theory.meanfield.predicted_front import predict_front
from meanmode.theory.setting import Setting

SETTING = Setting(depth=110, tokens=64, width=128, heads=4, weight_std=0.8 / 128**0.5)
SEEDS = 64
CLUSTERS, WITHIN = 4, 0.9
PATCH, SIDE = 8, 8

Input = Callable[[Setting, torch.Generator], Tensor]


def clustered(setting: Setting, generator: torch.Generator) -> Tensor:
    """Tokens around four random centers, with pair cosine 0.9 within a cluster and 0 between clusters."""
    centers = torch.randn(setting.batch, CLUSTERS, setting.width, generator=generator)
    own = torch.randn(setting.batch, setting.tokens, setting.width, generator=generator)
    common = centers[:, torch.arange(setting.tokens) % CLUSTERS]
    return rms_norm(WITHIN**0.5 * common + (1 - WITHIN) ** 0.5 * own, (setting.width,))


def photograph_patches(setting: Setting, generator: torch.Generator) -> Tensor:
    """8 x 8 patches of 8 x 8 pixels, cropped from matplotlib's sample photograph and randomly projected."""
    pixels = torch.tensor(
        image.imread(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)).copy()
    ).float()
    pixels = (pixels - pixels.mean()) / pixels.std()
    size = PATCH * SIDE
    top, left = (int(torch.randint(extent - size, (1,), generator=generator)) for extent in pixels.shape[:2])
    crop = pixels[top : top + size, left : left + size]
    patches = crop.unfold(0, PATCH, PATCH).unfold(1, PATCH, PATCH).reshape(SIDE**2, -1)
    projection = torch.randn(patches.shape[1], setting.width, generator=generator)
    return rms_norm(patches @ projection, (setting.width,))[None]


def study(name: str, drawn: Input) -> None:
    """Print the measured front, the forecast at each input's mean pair cosine, and their difference."""
    meanmode.sim.simulate.synthetic_input = drawn
    differences, measured, predicted, cosines = [], [], [], []
    for seed in tqdm(range(SEEDS), desc=name, file=sys.stderr, leave=False):
        profile = simulate(SETTING, seed)["tcs"]
        cosine = max(float(profile[0]), 0.0)
        front = collapse_front(profile)
        forecast = predict_front(dataclasses.replace(SETTING, input_cosine=cosine), 200).front
        assert front is not None and forecast is not None
        cosines.append(cosine)
        measured.append(front)
        predicted.append(forecast)
        differences.append(front - forecast)
    error = np.std(differences, ddof=1) / math.sqrt(SEEDS)
    ratio = np.mean(predicted) / np.mean(measured) - 1
    print(f"{name}: pair cosine {np.mean(cosines):.2f} (std {np.std(cosines):.2f}), ", end="")
    print(f"predicted {np.mean(predicted):.1f}, measured {np.mean(measured):.1f}, ", end="")
    print(f"error {ratio:+.0%}, z {np.mean(differences) / error:+.1f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(f"{SEEDS} seeds, width {SETTING.width}, {SETTING.tokens} tokens, {SETTING.heads} heads, batch 1")
    study("one pair cosine", synthetic_input)
    study("clustered tokens", clustered)
    study("patches of a photograph", photograph_patches)
