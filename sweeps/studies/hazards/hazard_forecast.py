"""Forecasts by the hazard of law O3, beside law O2 and L^(-1/2): when the runs of every case collapse."""

# N steps, K bootstrap samples

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from meanmode.dit.config.run_config import RunConfig
from meanmode.sim.store.provenance import provenance
from meanmode.sweeps.engine.store_kinds import OpenedStudy
from meanmode.sweeps.engine.study import Study
from meanmode.sweeps.statistics.censoring import INTERVAL
from meanmode.sweeps.studies.critical_rate_forecast import forecast_document, measured_ramps
from meanmode.sweeps.studies.forecast_files import store_hash
from meanmode.sweeps.studies.half_rate_forecast import half_rate_document, measurable
from meanmode.sweeps.studies.hazards.hazard_runs import (
    BEYOND,
    constant_rate_runs,
    differences,
    is_ramp,
    schedule_rates,
)
from meanmode.sweeps.studies.rows import Row, finite
from meanmode.theory.onset.functional_law import FunctionalLaw
from meanmode.theory.onset.hazard import Hazard, HazardForecast

ENDS = ("", "_low", "_high")


def fitted_hazard(waiting: Sequence[OpenedStudy], ramps: Sequence[OpenedStudy]) -> Hazard:
    """The hazard of the runs of studies of waiting times; its r is that of law O2, as fitted to ramps.

    r comes from the functional steps of the ramps before any of them collapsed, not from their onsets.

    Raises:
        StoreError: an unfinished study of waiting times.
        ValueError: no studies of waiting times, no ramps, or runs that cannot be fitted.
    """
    coherence = FunctionalLaw.fit(measured_ramps(ramps)).coherence
    return Hazard.fit(constant_rate_runs(waiting), coherence=coherence)


def hazard_document(study: Study, sources: Sequence[OpenedStudy], *, written: str) -> dict[str, Any]:
    """The forecast of every case of a study by a hazard fitted to runs at constant rates.

    `rows`, one per case: `predicted` is the median critical rate of a ramp, the share of collapsed runs in a
    study of waiting times, and otherwise the median onset step, each with the interval of as many runs as
    the study has. `median_step`, `run_low` and `run_high`, steps: median, and the interval of a single run;
    `chance`: P(collapse by the last step) with the error of the fit. A ramp is forecast beyond its last
    step; other schedules end there, and a step after it is None. A case that differs from the fitted runs in
    more than depth and schedule has no forecast by the hazard, and `differs` says in what.
    `predicted_functional_law` is law O2's; all others are as in the document without a hazard.

    Args:
        study: a study of training runs.
        sources: measured studies, of ramps and of waiting times; the hazard is fitted to the latter.
        written: date of the forecast, and what was known then.

    Raises:
        StoreError: an unfinished study of waiting times.
        ValueError: sources that lack ramps or waiting times.
    """
    waiting = [source for source in sources if source.study.constant_rate]
    ramps = [source for source in sources if source not in waiting]
    if not waiting or not ramps:
        raise ValueError(f"{study.name} is forecast by a hazard from ramps and from waiting times: give both")
    hazard = fitted_hazard(waiting, ramps)
    if study.constant_rate:
        document = half_rate_document(study, sources, written=written)
        document["half_rates"] = _half_rates(study, hazard, document["half_rates"])
    elif all(is_ramp(run) for run in study.runs):
        document = forecast_document(study, ramps, written=written)
    else:
        document = _bare_document(study, written)
    base = waiting[0].study.base
    document["made_from"] = {str(source.path): store_hash(source.data) for source in sources}
    document["rows"] = [
        case_row(hazard, base, study, run, row) for run, row in zip(study.runs, document["rows"], strict=True)
    ]
    return {**document, "hazard": hazard.document(), "setting": base.document()}


def _bare_document(study: Study, written: str) -> dict[str, Any]:
    """A document of schedules of which only the hazard speaks."""
    return {
        "study": study.name,
        "quantity": "critical_rate of ramps, onset_step of other schedules",
        "written": written,
        "interval": INTERVAL,
        "rows": [{"case": case.label} for case in study.cases],
        **provenance(),
    }


def case_row(hazard: Hazard, base: RunConfig, study: Study, run: RunConfig, row: Mapping[str, Any]) -> Row:
    """The row of a case: the forecast by the hazard, and what other laws say in `row`."""
    own = [f"predicted{end}" for end in ENDS]
    others = {name: value for name, value in row.items() if name not in own}
    before = {
        f"predicted_functional_law{end}": row[f"predicted{end}"] for end in ENDS if f"predicted{end}" in row
    }
    if differs := differences(base, run):
        return {**others, **dict.fromkeys(own), **before, "differs": differs}
    found = case_forecast(hazard, run, study.seeds)
    steps = {"median_step": found.median, "run_low": found.run_low, "run_high": found.run_high}
    chances = (found.share, found.share_low, found.share_high)
    if study.constant_rate:
        middle = chances
    else:
        middle = in_quantity(run, (found.median, found.median_low, found.median_high))
    chance = {f"chance{end}": of for end, of in zip(ENDS, chances, strict=True)}
    return finite({**others, **dict(zip(own, middle, strict=True)), **steps, **chance, **before})


def case_forecast(hazard: Hazard, run: RunConfig, seeds: int) -> HazardForecast:
    """When the runs of a case collapse, with the interval of the median of several runs."""
    rates = schedule_rates(run, beyond=BEYOND)
    return hazard.forecast(
        rates, run.model.depth, last_step=run.training.steps, seeds=seeds, interval=INTERVAL
    )


def depth_curve(hazard: Hazard, source: OpenedStudy, depths: Sequence[int], seeds: int) -> list[Row]:
    """Median critical rate, and the interval of a single run, of ramps like those of a study at any depth.

    Args:
        hazard: a hazard.
        source: a study of ramps, the first of which gives all but the depth.
        depths: numbers of blocks.
        seeds: runs per median.
    """
    rows = []
    for depth in depths:
        run = source.study.runs[0].with_fields({"depth": depth})
        found = case_forecast(hazard, run, seeds)
        median, low, high = in_quantity(run, (found.median, found.run_low, found.run_high))
        rows.append({"depth": depth, "median": median, "run_low": low, "run_high": high})
    return rows


def in_quantity(run: RunConfig, steps: Sequence[float]) -> list[float]:
    """Steps as learning rates if a run is a ramp, which is measured by its critical rate."""
    if not is_ramp(run):
        return list(steps)
    rates = schedule_rates(run, beyond=BEYOND)
    at = 1 + np.arange(len(rates))
    return [float(np.interp(step, at, rates, right=math.inf)) for step in steps]


def half_rate(hazard: Hazard, run: RunConfig) -> float:
    """The constant rate at which half of the runs like this one collapse by their last step."""
    return run.training.rate * hazard.factor(schedule_rates(run), run.model.depth, 0.5)


def _half_rates(study: Study, hazard: Hazard, rows: Sequence[Row]) -> list[Row]:
    """The half rates of a document, by the hazard and by law O2; the interval is that of a measured one.

    A depth whose runs differ in more than their rate has none.
    """
    random = np.random.default_rng(len(hazard.samples))
    found = []
    for row in rows:
        runs = [run for run in study.runs if run.model.depth == row["depth"]]
        rates = np.sort([run.training.rate for run in runs])
        shapes = [schedule_rates(run) / run.training.rate for run in runs]
        if not all(len(of) == len(shapes[0]) and np.allclose(of, shapes[0]) for of in shapes):
            continue
        chances = np.array([hazard.shares(rate * shapes[0], row["depth"]) for rate in rates])
        low, high = measurable(rates, chances, study.seeds, random)
        found.append(
            {
                **row,
                "predicted": half_rate(hazard, runs[0]),
                "predicted_low": low,
                "predicted_high": high,
                "predicted_functional_law": row["predicted"],
            }
        )
    return found
