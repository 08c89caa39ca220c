"""How well the detector finds collapses: labelled runs of studies, as logged and with less of them."""

# R runs

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
from meanmode.sweeps.engine.study import open_study, telemetry_of
from meanmode.sweeps.engine.study_variables import KINDS, TELEMETRY

INTERVALS = 3
"""Logging intervals behind the onset within which a collapse counts as found."""


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """What the detector is shown of a run.

    Attributes:
        every: steps between logged ones.
        signals: of `TELEMETRY`.
        renamed: whether they bear names that it does not know.
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


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """A run with its label.

    Attributes:
        series: what was logged, over `step`.
        onset: step of a mean_mode collapse, None without.
        healthy: whether it neither collapsed nor diverged.
    """

    series: xr.Dataset
    onset: int | None
    healthy: bool


@dataclass(kw_only=True)
class Score:
    """What became of the runs of a view.

    Attributes:
        collapsed: runs with an onset.
        found: of them, with an alarm at most `WINDOW` steps before the onset and `INTERVALS` behind it.
        leads: steps from the alarm to the onset, of those that were found.
        healthy: runs without.
        false: alarms in healthy runs, and those more than `WINDOW` steps before an onset.
        logged: samples in which there could have been one.
    """

    collapsed: int = 0
    found: int = 0
    leads: list[int] = field(default_factory=list)
    healthy: int = 0
    false: int = 0
    logged: int = 0

    def row(self, name: str) -> dict[str, Any]:
        """As a row of a table, with 90 % intervals (Clopper-Pearson; of a Poisson count)."""
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
    """The mean at which a count of at most this has the remaining probability."""
    return float(chi2.ppf(probability, 2 * (count + 1)) / 2)


def labelled_runs(paths: Sequence[Path]) -> list[Labelled]:
    """The finished runs of studies.

    Raises:
        StoreError: no readable study.
    """
    found = []
    for path in paths:
        data = open_study(path)
        for place in np.flatnonzero(data["status"].values == DONE):
            kind = KINDS[int(data["onset_kind"].values[place])]
            series = telemetry_of(data, place)
            onset = int(data["onset_step"].values[place]) if kind == "mean_mode" else None
            found.append(Labelled(series=series, onset=onset, healthy=kind == "none"))
    return found


def seen(run: Labelled, view: View) -> xr.Dataset:
    """What a view shows of a run; a row without any value is left out."""
    series = run.series[[name for name in view.signals if name in run.series]]
    series = series.isel(step=slice(view.every - 1, None, view.every))
    return (
        series.rename({name: f"signal_{place}" for place, name in enumerate(series)})
        if view.renamed
        else series
    )


def score(
    runs: Sequence[Labelled], view: View, *, raised: Callable[[xr.Dataset], Sequence[Any]] = alarms
) -> Score:
    """How the detector does on runs, of which those that diverged without a collapse are left out."""
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
    """One row a view, over the finished runs of all studies.

    Raises:
        StoreError: no readable study.
    """
    runs = labelled_runs(paths)
    return [score(runs, view).row(name) for name, view in tqdm(VIEWS.items(), desc="detection", leave=False)]
