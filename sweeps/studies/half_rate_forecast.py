"""Forecasts of half rates: law O2 as fitted on ramps, and the line through the depths measured."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from meanmode.sim.store.provenance import provenance
from meanmode.sim.store.sweep_store import open_cells
from meanmode.sweeps.engine.study import Study, stored_study
from meanmode.sweeps.named.waiting_time import THRESHOLDS, share_of
from meanmode.sweeps.statistics.censoring import INTERVAL
from meanmode.sweeps.statistics.half_rate import most_likely, probabilities
from meanmode.sweeps.studies.critical_rate_forecast import measured_ramps
from meanmode.sweeps.studies.forecast_files import store_hash
from meanmode.sweeps.studies.half_rates import fits_of
from meanmode.sweeps.studies.waiting_times import waiting_times
from meanmode.theory.onset.functional_law import FunctionalLaw, drawn_again

Array = NDArray[np.float64]


SAMPLES = 400
"""Of the bootstrap of the law."""


def half_rate_document(study: Study, sources: Sequence[Path], *, written: str) -> dict[str, Any]:
    """What is predicted of the runs of a study of waiting times.

    `half_rates`, a row a depth: `predicted` by law O2 (`FunctionalLaw.constant_rate`), whose interval holds
    the error of the fit, by resampling the ramps of every depth, and that of a half rate measured at the
    study's rates and seeds; that the law may be wrong is not in it. `predicted_power_law`: of the straight
    line through the logarithms of the half rates measured. An end of the interval is None where a half rate
    would be measured outside of the study's rates. `rows`, a row a case: the share that collapses by either,
    with the mean spread of the half rates measured.

    Args:
        study: of runs at constant rates.
        sources: measured studies, of ramps and of waiting times.
        written: date, and what was known.

    Raises:
        StoreError, ValueError: sources without collapsed ramps, or without waiting times of two depths.
    """
    fixed = [path for path in sources if stored_study(open_cells(path).attrs).name in THRESHOLDS]
    if not fixed or len(fixed) == len(sources):
        raise ValueError(f"{study.name} is forecast from ramps and from waiting times: give both")
    ramps = measured_ramps([path for path in sources if path not in fixed])
    runs = pd.concat([waiting_times(open_cells(path)) for path in fixed])
    fits = fits_of(runs)
    measured = {depth: found for depth, found in fits.items() if np.isfinite(found.half.value)}
    if len(measured) < 2:
        raise ValueError(f"a line needs the half rates of two depths, got those of {list(measured)}")
    line = np.polyfit(
        np.log(list(measured)), [np.log(found.half.value) for found in measured.values()], deg=1
    )
    spread = float(np.mean([found.spread for found in measured.values()]))
    law, random = FunctionalLaw.fit(ramps), np.random.default_rng(SAMPLES)
    again = [FunctionalLaw.fit(drawn_again(ramps, random)) for _ in range(SAMPLES)]
    half_rates: list[dict[str, Any]] = []
    for depth in sorted({run.model.depth for run in study.runs}):
        rates = np.array([run.training.rate for run in study.runs if run.model.depth == depth])
        halves = np.array([drawn.constant_rate(depth) for drawn in again])
        low, high = _measurable(rates, halves, spread, study.seeds, random)
        half_rates.append(
            {
                "depth": depth,
                "predicted": law.constant_rate(depth),
                "predicted_low": low,
                "predicted_high": high,
                "predicted_power_law": float(np.exp(np.polyval(line, np.log(depth)))),
            }
        )
    by_depth = {row["depth"]: row for row in half_rates}
    rows = []
    for case, run in zip(study.cases, study.runs, strict=True):
        depth, rate = run.model.depth, run.training.rate
        shares = {
            name: float(probabilities(rate, by_depth[depth][name], spread))
            for name in ("predicted", "predicted_power_law")
        }
        share = share_of(study.name, rate, depth)
        rows.append({"case": case.label, "depth": depth, "rate": rate, "share": share, **shares})
    return {
        "study": study.name,
        "quantity": "share of runs with a mean_mode onset before the last step",
        "written": written,
        "made_from": {str(path): store_hash(path) for path in sources},
        "law": law.document(),
        "power_law": {"exponent": float(line[0]), "intercept": float(line[1])},
        "spread": spread,
        "interval": INTERVAL,
        "half_rates": half_rates,
        "rows": rows,
        **provenance(),
    }


def _measurable(
    rates: Array, halves: Array, spread: float, seeds: int, random: np.random.Generator
) -> tuple[float | None, float | None]:
    """Interval of the half rates that runs at these rates would show; None where an end is outside of them.

    Args:
        rates: tried [N].
        halves: what the half rate may be [K].
    """
    rates = np.sort(rates)
    if len(rates) < 2:
        return None, None
    hits = random.binomial(seeds, probabilities(rates[:, None], halves, spread))
    found, _ = most_likely(rates, np.full(hits.shape, seeds), hits)
    low, high = np.quantile(found, [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2], method="inverted_cdf")
    return tuple(float(end) if 0 < end < np.inf else None for end in (low, high))
