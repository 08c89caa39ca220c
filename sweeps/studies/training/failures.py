"""How the cases of a study fail: collapses, plain divergences, half rates and critical rates."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from meanmode.sweeps.engine.study import stored_study
from meanmode.sweeps.engine.study_variables import KINDS
from meanmode.sweeps.statistics.censoring import Estimate
from meanmode.sweeps.studies.critical_rates import effects_on
from meanmode.sweeps.studies.events.event_summaries import at_distance, collapsed, half_rate_ratio
from meanmode.sweeps.studies.waiting_times import waiting_times


@dataclass(frozen=True, kw_only=True, slots=True)
class Failures:
    """How the runs of a case end.

    Attributes:
        collapsed: number of runs that collapse into the mean mode.
        diverged: number of runs that diverge plainly.
        of: number of runs.
    """

    collapsed: int
    diverged: int
    of: int

    @classmethod
    def counted(cls, kinds: pd.Series) -> "Failures":
        """Count kinds of onset, by the names in `KINDS`."""
        return cls(
            collapsed=int((kinds == "mean_mode").sum()),
            diverged=int((kinds == "plain_divergence").sum()),
            of=len(kinds),
        )

    def __str__(self) -> str:
        said = f"{self.collapsed} of {self.of}"
        return f"{said}, {self.diverged} diverge" if self.diverged else said


def ramp_failures(data: xr.Dataset, baseline: str) -> dict[str, dict[str, Any]]:
    """Case -> its `failures` under a ramp, and its effects on a baseline: `critical_rate_ratio`, `loss`.

    The baseline itself has its `failures` alone; effects are rows of `effects_on`.

    Args:
        data: a study of labelled runs, opened.
        baseline: label of the case that the others are compared with.
    """
    study = stored_study(data.attrs)
    kinds = pd.Series([KINDS[int(kind)] for kind in data["onset_kind"].values])
    found: dict[str, dict[str, Any]] = {
        case.label: {"failures": Failures.counted(kinds[study.seeds * n : study.seeds * (n + 1)])}
        for n, case in enumerate(study.cases)
    }
    for row in effects_on(data, baseline):
        found[row["case"]][row["quantity"]] = row
    return found


def failed_runs(data: xr.Dataset) -> pd.DataFrame:
    """One row per run: `case`, `seed`, `kind` of failure, and `rate` at it, or the last rate without one.

    Args:
        data: a study of labelled runs, opened.
    """
    study = stored_study(data.attrs)
    kinds = [KINDS[int(kind)] for kind in data["onset_kind"].values]
    rates = data["last_rate"].values.astype(float)
    for number, (cell, kind) in enumerate(zip(study.cells, kinds, strict=True)):
        if kind != "none":
            schedule = cell.run.training.learning_rate(cell.run.model.depth)
            rates[number] = schedule.rate(int(data["onset_step"].values[number]))
    cases = [case.label for case in study.cases for _ in range(study.seeds)]
    return pd.DataFrame({"case": cases, "seed": data["run_seed"].values, "kind": kinds, "rate": rates})


@dataclass(frozen=True, kw_only=True, slots=True)
class RateFailures:
    """How the runs of a group end at several constant rates.

    Attributes:
        at: rate -> `Failures` there, rates rising.
        half: half rate of a collapse; NaN outside of the rates tried.
        ratio: half rate over the baseline's, resampled with the same seeds; NaN where either is open.
    """

    at: dict[float, Failures]
    half: Estimate
    ratio: Estimate


def rate_failures(runs: pd.DataFrame, baseline: str) -> dict[str, RateFailures]:
    """Group -> its failures by rate; a group is the cases whose labels agree up to the last comma.

    Args:
        runs: one row per run with `case`, `rate`, `seed`, `kind` and `onset`, the same seeds at each rate.
        baseline: the group whose half rate the others are compared with.
    """
    groups = dict(list(runs.groupby(runs["case"].str.rsplit(",", n=1).str[0], sort=False)))
    fits = {name: at_distance(of) for name, of in groups.items()}
    return {
        str(name): RateFailures(
            at={float(rate): Failures.counted(at["kind"]) for rate, at in of.groupby("rate")},
            half=fits[name].half,
            ratio=half_rate_ratio(fits[baseline], fits[name]),
        )
        for name, of in groups.items()
    }


def constant_rate_runs(data: xr.Dataset) -> pd.DataFrame:
    """The runs of a study at constant rates as `rate_failures` takes them.

    Args:
        data: a finished study of waiting times, opened.
    """
    times = waiting_times(data)
    kinds = np.select([times["collapsed"], times["diverged"]], ["mean_mode", "plain_divergence"], "none")
    return times.assign(
        case=data["case"].values.tolist(), kind=kinds, onset=times["time"].where(times["collapsed"])
    )


def selective_events(rows: pd.DataFrame) -> str:
    """How many of the collapses after a jump are selective events, such as `3 of 11`."""
    fallen = collapsed(rows)
    return f"{int(rows.loc[fallen, 'selective'].sum())} of {int(fallen.sum())}" if fallen.any() else "-"
