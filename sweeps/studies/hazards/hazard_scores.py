"""A hazard scored on ramps that it was not fitted to, beside law O2 and the line L^(-1/2)."""

# R runs, K resamples

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.stats import norm

from meanmode.dit.config.run_config import RunConfig
from meanmode.sweeps.engine.store_kinds import OpenedStudy
from meanmode.sweeps.statistics.power_law import PowerLaw
from meanmode.sweeps.statistics.scores import drawn_counts, share_interval, with_interval
from meanmode.sweeps.studies.critical_rate_forecast import ramps_of, slope_of
from meanmode.sweeps.studies.critical_rates import study_rows
from meanmode.sweeps.studies.hazards.hazard_forecast import case_forecast, in_quantity
from meanmode.sweeps.studies.hazards.hazard_runs import differences, is_ramp, waiting_runs
from meanmode.sweeps.studies.rows import Row, finite
from meanmode.theory.onset.hazard import Hazard, HazardForecast
from meanmode.theory.onset.hazard_likelihood import REFERENCE_DEPTH, WaitingRuns

Array = NDArray[np.float64]

RIVALS = {
    "functional_law": ("predicted_functional_law", "predicted"),
    "power_law": ("predicted_power_law",),
}
"""Rival of the hazard -> names of its forecast in a store, the first there is: law O2, and the line."""

WIDEST = 2.0
"""Largest standard deviation of a log onset step that is tried."""


def ramp_rows(hazard: Hazard, base: RunConfig, source: OpenedStudy) -> list[Row]:
    """Measured critical rates of a study of ramps, beside the hazard's and those forecast in the store.

    One row per case that differs from the fitted runs in depth and schedule only. `hazard`, `hazard_low` and
    `hazard_high`: the median critical rate with the interval of as many runs; `covered`: it contains the
    measured median; `error` and `error_*` are relative to that. `run_low`, `run_high`: the interval of a
    single run, in critical rates; `inside`: runs in it. A run without a collapse is inside if the interval
    goes beyond its end.

    Args:
        hazard: a hazard that was fitted to other runs.
        base: a run of those that it was fitted to.
        source: a study of ramps.
    """
    study, runs = source.study, waiting_runs(source.study, source.data)
    rows = []
    for row, run in zip(study_rows(source.data), study.runs, strict=True):
        if not is_ramp(run) or differences(base, run):
            continue
        found, of = case_forecast(hazard, run, study.seeds), runs[row["case"]]
        middle, low, high = in_quantity(run, (found.median, found.median_low, found.median_high))
        measured, least = row["measured"], row["measured_at_least"]
        run_low, run_high = in_quantity(run, (found.run_low, found.run_high))
        numbers = {
            "hazard": middle,
            "hazard_low": low,
            "hazard_high": high,
            "error": None if measured is None else middle / measured - 1,
            "covered": low <= measured <= high if measured is not None else (None if high > least else False),
            "run_low": run_low,
            "run_high": run_high,
            "inside": runs_inside(found, of),
            "runs": len(of.times),
            "chance": found.share,
            "collapsed": int(of.collapsed.sum()),
        }
        before = {"case": row["case"], "depth": run.model.depth, "measured": measured}
        ends = {name: row[name] for name in ("measured_low", "measured_high")}
        rivals = {
            name: next((row[stored] for stored in names if stored in row), None)
            for name, names in RIVALS.items()
        }
        errors = {
            f"error_{name}": rate / measured - 1 if rate and measured else None
            for name, rate in rivals.items()
        }
        rows.append(finite({"study": study.name, **before, **ends, **numbers, **rivals, **errors}))
    return rows


def runs_inside(forecast: HazardForecast, runs: WaitingRuns) -> int:
    """Number of runs in their interval; a run without a collapse is if the interval goes beyond its end."""
    early = runs.collapsed & (runs.times < forecast.run_low)
    return int((~early & (runs.times <= forecast.run_high)).sum())


def schedule_rows(hazard: Hazard, base: RunConfig, source: OpenedStudy) -> list[Row]:
    """Measured shares and median onset steps of any schedules, beside the hazard's. One row per case.

    `chance`, with the error of the fit: forecast probability of a collapse by the last step; `share`, with a
    Wilson interval: measured; `covered`: that interval contains the forecast. `median`, `measured`: forecast
    and measured median onset step, None where fewer than half collapse; `inside` as in `ramp_rows`.

    Args:
        hazard: a hazard that was fitted to other runs.
        base: a run of those that it was fitted to.
        source: a study of training runs; cases that differ in more than depth and schedule are left out.
    """
    study, runs = source.study, waiting_runs(source.study, source.data)
    rows = []
    for case, run in zip(study.cases, study.runs, strict=True):
        of = runs[case.label]
        if differences(base, run) or not len(of.times):
            continue
        found = case_forecast(hazard, run, study.seeds)
        hits, count = int(of.collapsed.sum()), len(of.times)
        low, high = share_interval(hits, count)
        onsets = np.where(of.collapsed, of.times, np.inf)
        row = {
            **{"study": study.name, "case": case.label, "depth": run.model.depth},
            **{"chance": found.share, "chance_low": found.share_low, "chance_high": found.share_high},
            **{"share": hits / count, "share_low": low, "share_high": high},
            "covered": low <= found.share <= high,
            "median": found.median if found.median <= run.training.steps else None,
            "measured": float(np.median(onsets)),
            **{"run_low": found.run_low, "run_high": found.run_high},
            **{"inside": runs_inside(found, of), "collapsed": hits, "runs": count},
        }
        rows.append(finite(row))
    return rows


def slope_rows(hazard: Hazard, rows: Sequence[Row], source: OpenedStudy) -> list[Row]:
    """Exponents of the slope of a ramp: a line through the logarithms of the runs, and of the forecasts.

    `law`: (1 + c) / (1 + b + c) of law O3, with the b of the depth and neither delay nor youth. One row per
    depth that has several slopes.

    Args:
        hazard: a hazard.
        rows: of `ramp_rows`.
        source: their study.
    """
    ramps, study = ramps_of(source), source.study
    slopes = {case.label: slope_of(run) for case, run in zip(study.cases, study.runs, strict=True)}
    found = []
    for depth in sorted({row["depth"] for row in rows}):
        here = {row["case"]: row["hazard"] for row in rows if row["depth"] == depth}
        runs = [run for label in here for run in ramps[label] if run.onset]
        if len({slopes[label] for label in here}) < 2:
            continue
        own, rates = np.array([(run.slope, run.slope * run.onset) for run in runs]).T
        measured = PowerLaw.fit(own, rates)
        x, y = np.log([slopes[label] for label in here]), np.log(list(here.values()))
        steepness = hazard.steepness * (depth / REFERENCE_DEPTH) ** -hazard.softening
        found.append(
            {
                **{"study": study.name, "depth": depth, "runs": len(runs)},
                **{"measured": measured.exponent, "error": measured.exponent_error},
                "hazard": float(np.polyfit(x, y, 1)[0]),
                "law": (1 + hazard.ageing) / (1 + steepness + hazard.ageing),
            }
        )
    return found


def ramp_summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Median and largest |error| of the hazard and its rivals, and how much its intervals cover."""
    summary: dict[str, Any] = {}
    for name in ("error", *(f"error_{rival}" for rival in RIVALS)):
        sizes = [abs(row[name]) for row in rows if row[name] is not None]
        if sizes:
            summary[name] = {"median": float(np.median(sizes)), "largest": max(sizes), "n": len(sizes)}
    judged = [row["covered"] for row in rows if row["covered"] is not None]
    return {
        **summary,
        "covered": sum(judged),
        "cases": len(judged),
        "inside": sum(row["inside"] for row in rows),
        "runs": sum(row["runs"] for row in rows),
    }


def log_score_rows(
    hazard: Hazard, rows: Sequence[Row], sources: Sequence[OpenedStudy]
) -> list[dict[str, Any]]:
    """By how many nats per run the hazard is above each rival, with an interval over runs. One row per rival.

    A rival is scored on the cases of which it speaks. It has a log-normal onset step around its critical
    rate, with the standard deviation that suits these runs best: a favour, since it is fitted to the runs
    that are scored.

    Args:
        hazard: the hazard.
        rows: of `ramp_rows`.
        sources: the studies of these rows.
    """
    studies = {source.study.name: waiting_runs(source.study, source.data) for source in sources}
    found = []
    for name in RIVALS:
        spoken = [row for row in rows if row[name] is not None]
        groups = [studies[row["study"]][row["case"]] for row in spoken]
        own = np.concatenate([hazard.log_scores(group) for group in groups])
        counts = drawn_counts(len(own))
        best = minimize_scalar(_loss, args=(spoken, groups, name), bounds=(0.01, WIDEST), method="bounded")
        above = own - _log_normal(spoken, groups, name, float(best.x))
        drawn = counts @ above / counts.sum(-1)
        found.append({"rival": name, "spread": float(best.x), "runs": len(own), **with_interval(drawn)})
    return found


def _loss(
    spread: float, rows: Sequence[Mapping[str, Any]], groups: Sequence[WaitingRuns], rival: str
) -> float:
    return -float(_log_normal(rows, groups, rival, spread).sum())


def _log_normal(
    rows: Sequence[Mapping[str, Any]], groups: Sequence[WaitingRuns], rival: str, spread: float
) -> Array:
    """Log score of every run by a log-normal onset step around a rival's critical rate [R]."""
    scores = []
    for row, group in zip(rows, groups, strict=True):
        times = group.times
        slope = float(group.rates[-1]) / len(group.rates)
        z = np.log(times * slope / row[rival]) / spread
        scores.append(np.where(group.collapsed, norm.logpdf(z) - np.log(spread * times), norm.logsf(z)))
    return np.concatenate(scores)
