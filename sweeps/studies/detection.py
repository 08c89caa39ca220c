"""Score the detector on the labelled runs of studies, with all of their telemetry or less of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from scipy.stats import binomtest, chi2
from tqdm import tqdm

from meanmode.sim.onset.detector import alarms
from meanmode.sim.onset.training_onset import WINDOW
from meanmode.sim.store.sweep_store import DONE
from meanmode.sweeps.engine.store_kinds import open_study
from meanmode.sweeps.engine.study import telemetry_of
from meanmode.sweeps.engine.study_variables import KINDS, TELEMETRY

INTERVALS = 3
"""Logging intervals after the onset within which a collapse counts as found."""


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """The part of a run's telemetry that the detector is shown.

    Attributes:
        every: logging interval in steps.
        signals: names of the series shown, from `TELEMETRY`.
        renamed: whether the series carry names that the detector does not know.
    """

    every: int = 1
    signals: tuple[str, ...] = TELEMETRY
    renamed: bool = False


VIEWS: Mapping[str, View] = {
    "all signals, every step": View(),
    "all signals, every 10 steps": View(every=10),
    "unknown names": View(renamed=True),
    "no per-block signals": View(signals=("loss", "grad_norm", "functional_step")),
    "loss, gradient norm and TCS": View(signals=("loss", "grad_norm", "tcs_image")),
    "loss and gradient norm": View(signals=("loss", "grad_norm")),
    "loss and gradient norm, every 10 steps": View(every=10, signals=("loss", "grad_norm")),
}
"""Name -> view, one row of the table each."""


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """A run with its label.

    Attributes:
        series: telemetry, over `step`.
        onset: onset step of a mean-mode collapse, None without one.
        healthy: whether the run neither collapsed nor diverged.
    """

    series: xr.Dataset
    onset: int | None
    healthy: bool


@dataclass(kw_only=True)
class Score:
    """Score of the detector on one view of the runs.

    Attributes:
        collapsed: number of runs that collapsed.
        found: number of these with an alarm between `WINDOW` steps before the onset and `INTERVALS` logging
            intervals after it.
        leads: steps from the alarm to the onset, for every collapse that was found.
        healthy: number of runs that neither collapsed nor diverged.
        false: number of alarms in healthy runs, or more than `WINDOW` steps before an onset.
        logged: number of logged steps in which an alarm would have been false.
    """

    collapsed: int = 0
    found: int = 0
    leads: list[int] = field(default_factory=list)
    healthy: int = 0
    false: int = 0
    logged: int = 0

    def row(self, name: str) -> dict[str, Any]:
        """The score as a row of a table, with 90 % intervals (Clopper-Pearson; Poisson)."""
        interval = binomtest(self.found, self.collapsed).proportion_ci(0.9) if self.collapsed else None
        upper = poisson_upper(self.false)
        return {
            "view": name,
            "collapsed": self.collapsed,
            "found": self.found / self.collapsed if self.collapsed else None,
            "found_low": interval and interval.low,
            "found_high": interval and interval.high,
            "median_lead": float(np.median(self.leads)) if self.leads else None,
            "healthy": self.healthy,
            "logged": self.logged,
            "false_alarms": self.false,
            "false_per_10000": 1e4 * self.false / self.logged if self.logged else None,
            "false_per_10000_high": 1e4 * upper / self.logged if self.logged else None,
        }


def poisson_upper(count: int, probability: float = 0.95) -> float:
    """Upper confidence bound of the mean of a Poisson count."""
    return float(chi2.ppf(probability, 2 * (count + 1)) / 2)


def labelled_runs(paths: Sequence[Path]) -> list[Labelled]:
    """The finished runs of studies with their labels.

    Raises:
        StoreError: no readable study of labelled runs.
    """
    found = []
    for path in paths:
        data = open_study(path)
        for index in np.flatnonzero(data["status"].values == DONE):
            kind = KINDS[int(data["onset_kind"].values[index])]
            series = telemetry_of(data, index)
            onset = int(data["onset_step"].values[index]) if kind == "mean_mode" else None
            found.append(Labelled(series=series, onset=onset, healthy=kind == "none"))
    return found


def seen(run: Labelled, view: View) -> xr.Dataset:
    """The telemetry of a run that a view shows."""
    series = run.series[[name for name in view.signals if name in run.series]]
    series = series.isel(step=slice(view.every - 1, None, view.every))
    return (
        series.rename({name: f"signal_{number}" for number, name in enumerate(series)})
        if view.renamed
        else series
    )


def score(
    runs: Sequence[Labelled], view: View, *, raised: Callable[[xr.Dataset], Sequence[Any]] = alarms
) -> Score:
    """Score the detector on a view of runs; runs that diverged without a collapse are left out."""
    found = Score()
    for run in runs:
        if run.onset is None and not run.healthy:
            continue
        series = seen(run, view)
        steps = [alarm.step for alarm in raised(series)]
        if run.onset is None:
            found.healthy += 1
            found.false += len(steps)
            found.logged += series.sizes["step"]
            continue
        early = run.onset - WINDOW
        found.collapsed += 1
        found.false += sum(step < early for step in steps)
        found.logged += int((series["step"].values < early).sum())
        hits = [step for step in steps if early <= step <= run.onset + INTERVALS * view.every]
        if hits:
            found.found += 1
            found.leads.append(run.onset - hits[0])
    return found


def detection_rows(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """One row per view, over the finished runs of all studies.

    Raises:
        StoreError: no readable study of labelled runs.
    """
    runs = labelled_runs(paths)
    return [score(runs, view).row(name) for name, view in tqdm(VIEWS.items(), desc="detection", leave=False)]
