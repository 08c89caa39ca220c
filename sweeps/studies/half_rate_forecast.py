"""Forecasts of half rates: law O2 as fitted on ramps, and the line through the half rates measured."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from meanmode.sim.store.provenance import provenance
from meanmode.sweeps.engine.store_kinds import OpenedStudy
from meanmode.sweeps.engine.study import Study
from meanmode.sweeps.statistics.censoring import INTERVAL
from meanmode.sweeps.statistics.half_rate import most_likely, probabilities
from meanmode.sweeps.studies.critical_rate_forecast import measured_ramps
from meanmode.sweeps.studies.forecast_files import store_hash
from meanmode.sweeps.studies.half_rates import fits_of
from meanmode.sweeps.studies.waiting_times import waiting_times
from meanmode.theory.onset.functional_law import FunctionalLaw, Ramp, drawn_again

Array = NDArray[np.float64]


SAMPLES = 400
"""Bootstrap samples of the ramps."""


def half_rate_document(study: Study, sources: Sequence[OpenedStudy], *, written: str) -> dict[str, Any]:
    """The forecast of half rates, and of the share of runs that collapse, for a study of waiting times.

    `half_rates`, one row per depth: `predicted` by law O2 (`FunctionalLaw.constant_rate`). Its interval
    contains the error of the fit, by resampling the ramps of every depth, and that of a half rate measured at
    the study's rates and seeds; it does not contain the possibility that the law is wrong.
    `predicted_power_law`: by the straight line through the logarithms of the measured half rates. An end of
    the interval is None where the half rate would be measured outside of the study's rates. `rows`, one per
    case: the share that collapses by either prediction, with the mean spread of the measured half rates.

    Args:
        study: a study of runs at constant rates, which states a reference rate.
        sources: measured studies, of ramps and of waiting times.
        written: date of the forecast, and what was known then.

    Raises:
        StoreError: an unfinished study of waiting times.
        ValueError: sources without collapsed ramps, or without half rates at two depths.
    """
    fixed = [source for source in sources if source.study.constant_rate]
    if not fixed or len(fixed) == len(sources):
        raise ValueError(f"{study.name} is forecast from ramps and from waiting times: give both")
    ramps = measured_ramps([source for source in sources if source not in fixed])
    fits = fits_of(pd.concat([waiting_times(source.data) for source in fixed]))
    measured = {depth: found for depth, found in fits.items() if np.isfinite(found.half.value)}
    if len(measured) < 2:
        raise ValueError(f"a line needs the half rates of two depths, got those of {list(measured)}")
    line = np.polyfit(
        np.log(list(measured)), [np.log(found.half.value) for found in measured.values()], deg=1
    )
    spread = float(np.mean([found.spread for found in measured.values()]))
    law = FunctionalLaw.fit(ramps)
    half_rates = _half_rates(study, ramps, law, line, spread)
    return {
        "study": study.name,
        "quantity": "share of runs with a mean_mode onset before the last step",
        "written": written,
        "made_from": {str(source.path): store_hash(source.data) for source in sources},
        "law": law.document(),
        "power_law": {"exponent": float(line[0]), "intercept": float(line[1])},
        "spread": spread,
        "interval": INTERVAL,
        "half_rates": half_rates,
        "rows": _shares(study, half_rates, spread),
        **provenance(),
    }


def _half_rates(
    study: Study, ramps: Sequence[Ramp], law: FunctionalLaw, line: Array, spread: float
) -> list[dict[str, Any]]:
    """The predicted half rate of every depth of a study, by the law with its interval and by the line."""
    random = np.random.default_rng(SAMPLES)
    again = [FunctionalLaw.fit(drawn_again(ramps, random)) for _ in range(SAMPLES)]
    rows = []
    for depth in sorted({run.model.depth for run in study.runs}):
        rates = np.array([run.training.rate for run in study.runs if run.model.depth == depth])
        halves = np.array([drawn.constant_rate(depth) for drawn in again])
        rates.sort()
        chances = probabilities(rates[:, None], halves, spread)
        low, high = measurable(rates, chances, study.seeds, random)
        rows.append(
            {
                "depth": depth,
                "predicted": law.constant_rate(depth),
                "predicted_low": low,
                "predicted_high": high,
                "predicted_power_law": float(np.exp(np.polyval(line, np.log(depth)))),
            }
        )
    return rows


def _shares(study: Study, half_rates: Sequence[Mapping[str, Any]], spread: float) -> list[dict[str, Any]]:
    """The predicted share of runs that collapse, one row per case of a study."""
    by_depth = {row["depth"]: row for row in half_rates}
    rows = []
    for case, run in zip(study.cases, study.runs, strict=True):
        depth, rate = run.model.depth, run.training.rate
        shares = {
            name: float(probabilities(rate, by_depth[depth][name], spread))
            for name in ("predicted", "predicted_power_law")
        }
        share = study.share_of(rate, depth)
        rows.append({"case": case.label, "depth": depth, "rate": rate, "share": share, **shares})
    return rows


def measurable(
    rates: Array, chances: Array, seeds: int, random: np.random.Generator
) -> tuple[float | None, float | None]:
    """Interval of the half rate that runs at these rates would show; an end outside of the rates is None.

    Args:
        rates: the rates tried, increasing [N].
        chances: samples of the probability of a collapse at each rate [N, K].
        seeds: runs per rate.
        random: generator of the outcomes.
    """
    if len(rates) < 2:
        return None, None
    hits = random.binomial(seeds, chances)
    found, _ = most_likely(rates, np.full(hits.shape, seeds), hits)
    low, high = np.quantile(found, [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2], method="inverted_cdf")
    return tuple(float(end) if 0 < end < np.inf else None for end in (low, high))
