"""The critical rate forecast again from the middle of a run, beside the forecasts made before the runs."""

# R runs

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meanmode.dit.config.warning_premises import broken_premises
from meanmode.sim.onset.early_warning import RATE_CONSTANT, RATE_STEPS, reforecast
from meanmode.sweeps.engine.store_kinds import OpenedStudy
from meanmode.sweeps.engine.study_variables import KINDS
from meanmode.sweeps.studies.critical_rates import study_rows
from meanmode.sweeps.studies.hazards.hazard_runs import is_ramp, schedule_rates
from meanmode.sweeps.studies.rows import Row, finite

RIVALS = {"predicted": "functional_law", "predicted_power_law": "power_law"}
"""Forecast in a store -> its name here: law O2 (from a pilot where there was one), and the line L^(-1/2)."""


def run_reforecasts(source: OpenedStudy) -> NDArray[np.float64]:
    """Critical rate forecast for every run [R]; NaN for runs that ended, or failed, before it can be made."""
    data = source.data
    found = np.full(len(source.study.cells), np.nan)
    for index, cell in enumerate(source.study.cells):
        onset, last = data["onset_step"].values[index], data["last_step"].values[index]
        if not np.isfinite(last) or last < RATE_STEPS[1] or onset <= RATE_STEPS[1]:
            continue
        steps = np.arange(1, int(last) + 1)
        rates = schedule_rates(cell.run)[: len(steps)]
        found[index] = reforecast(steps, rates, data["functional_step"].values[index, : len(steps)])
    return found


def rate_constant(source: OpenedStudy) -> float:
    """`RATE_CONSTANT` as the runs of a study of ramps have it: median of ln(eta_c median(Delta / eta))."""
    ratios = source.data["critical_rate"].values / run_reforecasts(source)
    return RATE_CONSTANT + float(np.nanmedian(np.log(ratios)))


def reforecast_rows(source: OpenedStudy) -> list[Row]:
    """One row per case of a study of ramps: measured critical rate, the forecast inside the run, and rivals.

    `reforecast`: median over the runs that had not failed by the last of `RATE_STEPS`; None if these are less
    than half. `error` and `error_*` are relative to the measured median. `broken`: premises that do not hold.

    Args:
        source: a study of ramps that measured the functional step.
    """
    study, forecasts = source.study, run_reforecasts(source).reshape(-1, source.study.seeds)
    collapsed = (source.data["onset_kind"].values == KINDS.index("mean_mode")).reshape(forecasts.shape)
    rows = []
    for case, (row, run) in enumerate(zip(study_rows(source.data), study.runs, strict=True)):
        if not is_ramp(run):
            continue
        of = forecasts[case][np.isfinite(forecasts[case])]
        middle = float(np.median(of)) if 2 * len(of) >= study.seeds else np.nan
        measured = row["measured"]
        values = {"reforecast": middle} | {name: row.get(stored) for stored, name in RIVALS.items()}
        errors = {
            "error" if name == "reforecast" else f"error_{name}": value / measured - 1
            for name, value in values.items()
            if value is not None and measured is not None
        }
        ends = {name: row[name] for name in ("measured_at_least", "measured_low", "measured_high")}
        numbers = {"runs": len(of), "collapsed": int(collapsed[case].sum()), **values, **errors}
        head = {"study": study.name, "case": row["case"], "measured": measured, **ends}
        rows.append(finite({**head, **numbers, "broken": list(broken_premises(run))}))
    return rows


def reforecast_summary(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Median |error| of the forecast inside the run and its rivals, over the same cases; keys as in the rows.

    Args:
        rows: of `reforecast_rows`; cases without a measured median or without one of the forecasts are left
            out.
    """
    names = ("error", *(f"error_{name}" for name in RIVALS.values()))
    whole = [row for row in rows if all(row.get(name) is not None for name in names)]
    return {
        name: {
            "median": float(np.median([abs(row[name]) for row in whole])),
            "largest": max(abs(row[name]) for row in whole),
            "n": len(whole),
        }
        for name in names
        if whole
    }
