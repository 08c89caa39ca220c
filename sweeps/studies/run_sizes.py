"""What was run: sizes, seeds and learning-rate schedule of a run, a study or a committor."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import xarray as xr

from meanmode.dit.config.run_config import RunConfig
from meanmode.dit.config.training_config import RAMP_DEPTH
from meanmode.sweeps.engine.committor_study import stored_committor
from meanmode.sweeps.engine.splitting.splitting_study import stored_splitting
from meanmode.sweeps.engine.study import stored_study

Sizes = dict[str, list[Any]]
"""Name of a size -> its distinct values, in increasing order."""


def run_config(run: xr.Dataset) -> RunConfig:
    """The configuration stored with the telemetry of a run.

    Raises:
        ValueError: a configuration written by another version.
    """
    return RunConfig.of_document(json.loads(run.attrs["configuration"]))


def study_sizes(data: xr.Dataset) -> Sizes:
    """Sizes, schedule and seeds of all runs of a study."""
    cells = stored_study(data.attrs).cells
    return _sizes([cell.run for cell in cells]) | {"seed": sorted({cell.seed for cell in cells})}


def committor_sizes(data: xr.Dataset) -> Sizes:
    """Sizes and schedule of the parents, their seeds, the number of forks per state and the horizon."""
    stored = stored_committor(data.attrs)
    counts = {"seed": sorted(stored.parents), "forks": [stored.forks], "horizon": [stored.horizon]}
    return _sizes([stored.base]) | counts


def splitting_sizes(data: xr.Dataset) -> Sizes:
    """Sizes and schedule of the parents of a splitting study, and their seeds."""
    stored = stored_splitting(data.attrs)
    return _sizes([stored.base]) | {"seed": sorted(stored.parents)}


def _sizes(runs: Iterable[RunConfig]) -> Sizes:
    runs = list(runs)
    values = {
        **{name: [run.field(name) for run in runs] for name in ("depth", "width", "heads", "text_tokens")},
        "image_tokens": [run.model.image_tokens for run in runs],
        **{name: [run.field(name) for run in runs] for name in ("batch", "steps", "schedule", "warmup")},
        **{
            name: [run.field(name) for run in runs] for name in ("slope", "rate", "first_rate", "first_steps")
        },
    }
    return {name: sorted({value for value in found if value is not None}) for name, found in values.items()}


def ramp_scale(schedule: str) -> str:
    """The factor by which the slope of a ramp depends on the depth, in words; empty where it does not."""
    return f" sqrt({RAMP_DEPTH} / blocks)" if schedule == "depth_ramp" else ""


def schedule_of(run: RunConfig) -> str:
    """The learning-rate schedule of a run, in words."""
    training = run.training
    if training.schedule == "warmup":
        return f"rate {training.rate:g} after a warm-up of {training.warmup} steps"
    if training.schedule == "cosine":
        return f"rate {training.rate:g} after a warm-up of {training.warmup} steps, then a cosine decay"
    if training.schedule == "jump":
        return f"rate {training.first_rate:g} for {training.first_steps} steps, then {training.rate:g}"
    return f"rate {training.slope:g}{ramp_scale(training.schedule)} times the step"


def sizes_of(data: xr.Dataset) -> str:
    """Width, heads, depth, tokens, batch, steps, seeds and schedule of a study; ranges where cases differ."""
    sizes = study_sizes(data)
    seeds = sizes["seed"]
    return (
        f"width {span(sizes['width'])}, heads {span(sizes['heads'])}, {span(sizes['depth'])} blocks, "
        f"{span(sizes['image_tokens'])} image + {span(sizes['text_tokens'])} text tokens, batch "
        f"{span(sizes['batch'])}, {rate_of(sizes)}, at most {span(sizes['steps'])} steps, "
        f"{len(seeds)} seeds per case ({seeds[0]} to {seeds[-1]})"
    )


def rate_of(sizes: Sizes) -> str:
    """The schedule of the learning rate of a study."""
    if len(sizes["schedule"]) > 1:
        return f"rate {span(sizes['rate'])}, schedules {', '.join(sizes['schedule'])}"
    if sizes["schedule"][0] in ("warmup", "cosine"):
        decay = ", then a cosine decay" if sizes["schedule"] == ["cosine"] else ""
        return f"rate {span(sizes['rate'])} after step {span(sizes['warmup'])}{decay}"
    if sizes["schedule"] == ["jump"]:
        held = f"rate {span(sizes['first_rate'])} for {span(sizes['first_steps'])} steps"
        return f"{held}, then {span(sizes['rate'])}"
    return f"rate {span(sizes['slope'])}{ramp_scale(sizes['schedule'][0])} times the step"


def span(values: Sequence[float]) -> str:
    """A number, or the range of several."""
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}"


def run_sizes(runs: Sequence[xr.Dataset]) -> str:
    """Width, heads, depth, tokens, batch, steps and seeds of runs that differ only in merge and seed."""
    configs = [run_config(run) for run in runs]
    model, training = configs[0].model, configs[0].training
    heads = f"{model.heads} head{'s' * (model.heads > 1)}"
    seeds = len({config.training.seed for config in configs})
    steps = f"steps {int(runs[0]['step'][0])} to {int(runs[0]['step'][-1])}"
    return (
        f"width {model.width}, {heads}, {model.depth} blocks, {model.image_tokens} image + "
        f"{model.text_tokens} text tokens, batch {training.batch}, {steps}, {seeds} seed{'s' * (seeds > 1)}"
    )
