"""What the figures of training runs share: captions, the steps they are read at, medians in depth."""

# N steps, L blocks, W writers

import json
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

EVENT_WITHIN = 5
"""Steps on either side of the onset among which the event is looked for."""


NEAR, FAR = 10, 30
"""Steps before and behind the event that it is compared with: from the nearest to the farthest."""


WRITERS = {"attn": "attention writer W_O", "ffn": "FFN writer W_2"}
"""Coordinate of a writer -> its name in a figure."""


def needs(run: xr.Dataset, *names: str) -> None:
    """Refuse a run that lacks what a figure draws.

    Raises:
        ValueError: naming the observable.
    """
    for name in names:
        if name not in run:
            raise ValueError(f"this figure draws {', '.join(names)}; the run has no {name}")


def onset_of(run: xr.Dataset) -> dict[str, Any]:
    """The onset of an excerpt of `meanmode.sim.onset.excerpt`: step, kind and evidence.

    Raises:
        ValueError: a run without an onset, or one that is no excerpt.
    """
    found = json.loads(run.attrs.get("onset", "{}"))
    if found.get("step") is None:
        raise ValueError("this figure draws the surroundings of an onset; the store names none")
    return found


def event_step(run: xr.Dataset) -> int:
    """The event: the step of the largest gradient norm at most `EVENT_WITHIN` steps from the onset."""
    onset = onset_of(run)["step"]
    near = run["grad_norm"].sel(step=slice(onset - EVENT_WITHIN, onset + EVENT_WITHIN))
    return int(near.idxmax("step"))


def step_before(run: xr.Dataset) -> int:
    """Before: the step of median gradient norm among those `NEAR` to `FAR` steps before the event.

    Raises:
        ValueError: a run that begins later.
    """
    norms = stretch(run, before=True)["grad_norm"]
    return int(norms["step"][int(np.argsort(norms.values, kind="stable")[len(norms) // 2])])


def stretch(run: xr.Dataset, *, before: bool) -> xr.Dataset:
    """The steps `NEAR` to `FAR` before the event, or behind it.

    Raises:
        ValueError: a run that begins later, or ends earlier.
    """
    event = event_step(run)
    near, far = (event - NEAR, event - FAR) if before else (event + NEAR, event + FAR)
    found = run.sel(step=slice(min(near, far), max(near, far)))
    if found.sizes["step"] < FAR - NEAR + 1:
        held = f"{int(run['step'][0])} to {int(run['step'][-1])}"
        raise ValueError(f"this figure reads steps {min(near, far)} to {max(near, far)}; the run has {held}")
    return found


def deep(values: xr.DataArray) -> xr.DataArray:
    """An observable at the blocks of the deeper half, those that `meanmode.sim.onset.training_onset` reads."""
    return values.isel(block=values["block"].values > values["block"].values.max() / 2)


def configuration(run: xr.Dataset) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of the network and of the training."""
    document = json.loads(run.attrs["configuration"])
    return document["model"], document["training"]


def tokens_of(run: xr.Dataset) -> tuple[int, int]:
    """Image and text tokens of a sample."""
    model, _ = configuration(run)
    return (model["side"] // model["patch"]) ** 2, model["text_tokens"]


def run_sizes(runs: Sequence[xr.Dataset]) -> str:
    """Width, heads, depth, tokens, batch, steps and seeds of runs that differ in merge and seed alone."""
    model, training = configuration(runs[0])
    image, text = tokens_of(runs[0])
    heads = f"{model['heads']} head{'s' * (model['heads'] > 1)}"
    seeds = len({configuration(run)[1]["seed"] for run in runs})
    steps = f"steps {int(runs[0]['step'][0])} to {int(runs[0]['step'][-1])}"
    return (
        f"width {model['width']}, {heads}, {model['depth']} blocks, {image} image + {text} text tokens, "
        f"batch {training['batch']}, {steps}, {seeds} seed{'s' * (seeds > 1)}"
    )


def rate_of(run: xr.Dataset) -> str:
    """The schedule of the learning rate in words."""
    _, training = configuration(run)
    if training["schedule"] == "warmup":
        return f"rate {training['rate']:g} after a warm-up of {training['warmup']} steps"
    scale = " sqrt(16 / blocks)" if training["schedule"] == "depth_ramp" else ""
    return f"rate {training['slope']:g}{scale} times the step"


def caption(figure: Figure, *paragraphs: str) -> None:
    """Draw a caption under the panels, a line or more a paragraph."""
    width = round(16.2 * figure.get_figwidth())
    text = "\n".join(textwrap.fill(paragraph, width) for paragraph in paragraphs)
    figure.supxlabel(text, x=0.01, ha="left", fontsize=8.5)
