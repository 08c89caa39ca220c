"""Experiments on the hazard: observed collapses over those it expects, in an interval of steps."""

# R runs

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from meanmode.sweeps.engine.store_kinds import OpenedStudy
from meanmode.sweeps.statistics.censoring import INTERVAL
from meanmode.sweeps.studies.hazards.hazard_runs import schedule_rates, waiting_runs
from meanmode.theory.onset.hazard import Hazard
from meanmode.theory.onset.hazard_likelihood import WaitingRuns

Array = NDArray[np.float64]

CLEAR, FEWEST = 15, 4
"""Steps that a run must stay clear of its collapse after a window of gains, and fewest runs of a spread."""


def expected_collapses(hazard: Hazard, runs: WaitingRuns, first: int, last: int) -> Array:
    """Collapses that the hazard expects of every run while it is at risk in steps first + 1 to last [R].

    The sum over runs has the mean of the number of collapses, wherever runs end.
    """
    cumulated = np.concatenate([[0.0], -np.log(hazard.survival(runs.rates, runs.depth))])
    ends = np.clip(runs.times.astype(int), first, last)
    return np.asarray(cumulated[ends] - cumulated[first])


def observed_row(hazard: Hazard, runs: WaitingRuns, first: int, last: int) -> dict[str, Any]:
    """Observed over expected collapses in steps first + 1 to last, with an exact Poisson interval.

    `ratio` is 1 where the hazard is right, and the factor of the hazard where all of it is wrong by one.
    """
    seen = int((runs.collapsed & (runs.times > first) & (runs.times <= last)).sum())
    expected = float(expected_collapses(hazard, runs, first, last).sum())
    side = (1 - INTERVAL) / 2
    low = chi2.ppf(side, 2 * seen) / 2 if seen else 0.0
    high = chi2.ppf(1 - side, 2 * seen + 2) / 2
    return {
        "observed": seen,
        "expected": expected,
        "at_risk": int((runs.times > first).sum()),
        "ratio": seen / expected,
        "low": float(low / expected),
        "high": float(high / expected),
    }


def history_rows(
    hazard: Hazard, source: OpenedStudy, windows: Sequence[tuple[int, int]]
) -> list[dict[str, Any]]:
    """Observed over expected collapses since the rate was reached. One row per case and window.

    Args:
        hazard: a hazard that was fitted to other runs.
        source: a study of warm-ups and jumps to the same rates.
        windows: first and last step of each window, counted from the step at which the rate is reached.
    """
    rows, groups = [], waiting_runs(source.study, source.data)
    for case, run in zip(source.study.cases, source.study.runs, strict=True):
        reached = run.training.first_steps or run.training.warmup
        for first, last in windows:
            row = observed_row(hazard, groups[case.label], reached + first, reached + last)
            rows.append({"case": case.label, "first": first, "last": last, **row})
    return rows


def factor_rows(hazard: Hazard, source: OpenedStudy) -> list[dict[str, Any]]:
    """Observed over expected collapses of every case, over all of its steps. One row per case.

    Args:
        hazard: a hazard that was fitted to runs without the change that the cases make.
        source: a study of training runs.
    """
    groups = waiting_runs(source.study, source.data)
    return [
        {"case": label, "runs": len(of.times), **observed_row(hazard, of, 0, len(of.rates))}
        for label, of in groups.items()
    ]


def gain_rows(source: OpenedStudy, windows: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """Median and spread between runs of ln(functional step / rate), of runs that are well before a collapse.

    A run counts in a window if it does not collapse up to `CLEAR` steps after it; with fewer than
    `FEWEST` such runs, `mean` and `spread` are None. One row per case and window.

    Args:
        source: a study that measured the functional step.
        windows: first and last step of each window.
    """
    data, rows = source.data, []
    sizes = data["functional_step"].values.astype(float)
    onsets = np.where(np.isfinite(data["onset_step"].values), data["onset_step"].values, np.inf)
    cases = np.array([str(label) for label in data["case"].values])
    for case, run in zip(source.study.cases, source.study.runs, strict=True):
        rates = schedule_rates(run)
        for first, last in windows:
            members = np.flatnonzero((cases == case.label) & (onsets > last + CLEAR))
            steps = slice(first, min(last, len(rates)))
            gains = sizes[members, steps] / rates[steps]
            logs = np.log(np.where(gains > 0, gains, np.nan))
            known = len(members) >= FEWEST and last <= len(rates)
            middles = np.nanmedian(logs, axis=1) if known else np.zeros(2)
            rows.append(
                {
                    **{"case": case.label, "depth": run.model.depth, "first": first, "last": last},
                    "runs": len(members),
                    "mean": float(middles.mean()) if known else None,
                    "spread": float(middles.std(ddof=1)) if known else None,
                }
            )
    return rows
