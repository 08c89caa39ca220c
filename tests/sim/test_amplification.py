"""The predicted amplification against simulation, and what happens when its assumptions are broken."""

import dataclasses
import math

import numpy as np
import pytest
import torch

import sim.simulate
from sim.simulate import simulate
from theory import Setting, predict_profile

SETTING = Setting(depth=16, tokens=16, width=64, heads=2, weight_std=0.1, adjoint_cosine=0.1)
BLOCK, SEEDS = 12, 40


def measured(setting: Setting = SETTING) -> np.ndarray:
    """A of both writers in one block, seed by seed."""
    runs = [simulate(setting, seed, backward=True)["amplification"][BLOCK] for seed in range(SEEDS)]
    return np.array(runs, dtype=float)


def distance(samples: np.ndarray, setting: Setting = SETTING) -> np.ndarray:
    """Measured mean less prediction, in standard errors, for both writers."""
    predicted = predict_profile(setting, 600)["amplification"][BLOCK - 1]
    return (samples.mean(0) - predicted) / (samples.std(0, ddof=1) / math.sqrt(SEEDS))


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    return measured()


def test_amplification_agrees_with_simulation(samples: np.ndarray) -> None:
    assert np.abs(distance(samples)).max() < 4


@pytest.mark.parametrize(
    "fields",
    [{"adjoint_cosine": 0.5}, {"weight_std": 0.07}, {"merge": "layerscale", "residual_gain": 0.6}],
    ids=str,
)
def test_the_amplification_of_another_stack_is_rejected(
    fields: dict[str, object], samples: np.ndarray
) -> None:
    assert np.abs(distance(samples, dataclasses.replace(SETTING, **fields))).max() > 4


def test_repeated_weights_are_not_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: every block has the weights of the first."""
    fresh = sim.simulate.stream

    def repeated(setting: Setting, seed: int, name: int) -> torch.Generator:
        return fresh(setting, seed, min(name, 1) if name != sim.simulate.ADJOINT_STREAM else name)

    monkeypatch.setattr(sim.simulate, "stream", repeated)
    assert np.abs(distance(measured())).max() > 4
