"""The runs of studies as a hazard is fitted to them, and the settings that such a fit speaks of."""

# N steps, R runs

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from meanmode.dit.config.run_config import RunConfig
from meanmode.sim.store.sweep_store import DONE
from meanmode.sweeps.engine.store_kinds import OpenedStudy
from meanmode.sweeps.engine.study import Study, stored_study
from meanmode.sweeps.engine.study_variables import KINDS
from meanmode.sweeps.statistics.scores import survival_curve
from meanmode.sweeps.studies.waiting_times import waiting_times
from meanmode.theory.onset.hazard_likelihood import WaitingRuns, rates_of

Array = NDArray[np.float64]

BEYOND = 4
"""Ramps without a limit are forecast up to this multiple of their steps."""

FREE = {
    *("depth", "schedule", "rate", "warmup", "slope", "first_rate", "first_steps", "steps"),
    *("seed", "data_seed", "telemetry_every", "telemetry_blocks", "observables", "watch_every"),
    *("event_window", "event_ratio", "interval", "checkpoint_every", "keep", "weights_ring", "stop_on"),
    *("compile", "recompute", "recompute_of", "accumulation", "sharding"),
}
"""Fields in which a run may differ from the fitted ones: depth, schedule, what is observed, and how steps are
computed."""


def schedule_rates(run: RunConfig, *, beyond: int = 1) -> Array:
    """Learning rate of every step of a run, and of a ramp without a limit `beyond` times its steps [N]."""
    schedule = run.training.learning_rate(run.model.depth)
    longer = beyond if math.isinf(schedule.peak) else 1
    return rates_of(schedule, run.training.steps * longer)


def is_ramp(run: RunConfig) -> bool:
    """Whether the learning rate of a run grows until its end."""
    return run.training.schedule in ("ramp", "depth_ramp")


def opened(studies: Mapping[str, xr.Dataset]) -> list[OpenedStudy]:
    """Studies whose stores are open already, by name."""
    return [
        OpenedStudy(path=Path(name), study=stored_study(data.attrs), data=data)
        for name, data in studies.items()
    ]


def waiting_runs(study: Study, data: xr.Dataset) -> dict[str, WaitingRuns]:
    """The finished runs of a study, by case; a run without a mean-mode collapse ends at its last step.

    Args:
        study: the study.
        data: its store, or the finished cells of it.
    """
    cases = np.array([str(label) for label in data["case"].values])
    collapsed = data["onset_kind"].values == KINDS.index("mean_mode")
    times = np.where(collapsed, data["onset_step"].values, data["last_step"].values).astype(float)
    finished = data["status"].values == DONE
    found = {}
    for case, run in zip(study.cases, study.runs, strict=True):
        members = np.flatnonzero(finished & (cases == case.label))
        found[case.label] = WaitingRuns(
            depth=run.model.depth,
            rates=schedule_rates(run),
            times=times[members],
            collapsed=collapsed[members],
        )
    return found


def survival_points(runs: WaitingRuns) -> tuple[Array, Array]:
    """Kaplan-Meier estimate of P(no collapse up to t): times of collapses, after 0, and values."""
    return survival_curve(runs.times, runs.collapsed)


def constant_rate_runs(sources: Sequence[OpenedStudy]) -> list[WaitingRuns]:
    """The runs of complete studies of waiting times, one group per case.

    Raises:
        StoreError: an unfinished study, or one whose runs are not at constant rates.
        ValueError: no study, or studies of different settings.
    """
    if not sources:
        raise ValueError("a hazard is fitted to studies of waiting times, and none is given")
    base = sources[0].study.base
    for source in sources:
        waiting_times(source.data)
        for run in source.study.runs:
            if differences(base, run):
                raise ValueError(
                    f"{source.study.name} differs from {sources[0].study.name} in "
                    f"{', '.join(differences(base, run))}: fit a hazard to runs of one setting"
                )
    return [group for source in sources for group in waiting_runs(source.study, source.data).values()]


def differences(base: RunConfig, run: RunConfig) -> list[str]:
    """Fields of a run, other than its depth and schedule, in which it differs from the fitted runs."""
    tables = [pd.json_normalize([of.document()]).iloc[0].to_dict() for of in (base, run)]
    names = [name for name in tables[0] if tables[0][name] != tables[1].get(name)]
    return sorted({name.rpartition(".")[2] for name in names} - FREE)
