"""Half rates of studies of waiting times, beside their forecasts."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from meanmode.sweeps.statistics.half_rate import HalfRate, probabilities
from meanmode.sweeps.statistics.scores import share_interval


def fits_of(runs: pd.DataFrame) -> dict[int, HalfRate]:
    """Depth -> its half rate, for depths with runs at two rates or more."""
    return {
        int(depth): HalfRate.fit(of["rate"], of["collapsed"])
        for depth, of in runs.groupby("depth")
        if of["rate"].nunique() > 1
    }


def share_rows(runs: pd.DataFrame) -> list[dict[str, Any]]:
    """Share of the runs that collapse, with its Wilson interval: one row per depth and rate.

    Args:
        runs: as `waiting_times`.
    """
    rows = []
    for (depth, rate), of in runs.groupby(["depth", "rate"]):
        collapsed = int(of["collapsed"].sum())
        low, high = share_interval(collapsed, len(of))
        about = {"depth": int(depth), "rate": float(rate), "runs": len(of), "collapsed": collapsed}
        rows.append({**about, "share": collapsed / len(of), "low": low, "high": high})
    return rows


def fitted_shares(row: Mapping[str, Any], rates: ArrayLike) -> NDArray[np.float64]:
    """P(collapse) at rates by the logistic behind a row of `half_rates` whose `value` is known."""
    return probabilities(rates, row["value"], row["spread"])


def half_rate_points(runs: pd.DataFrame, forecasts: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of `half_rates`, with a bound where the half rate lies outside of the rates tried.

    `at_least` is the highest rate where fewer than half of the runs collapse there, `at_most` the lowest
    where more do; each is None otherwise.

    Args:
        runs: as `waiting_times`.
        forecasts: as for `half_rates`.
    """
    fits, points = fits_of(runs), []
    for row in _rows(runs, forecasts, fits):
        lowest = runs[(runs["depth"] == row["depth"]) & (runs["rate"] == row["lowest_rate"])]
        above = row["value"] is None and fits[row["depth"]].half.at_least > 0
        below = row["value"] is None and not above and lowest["collapsed"].mean() > 0.5
        points.append(
            {
                **row,
                "at_least": row["highest_rate"] if above else None,
                "at_most": row["lowest_rate"] if below else None,
            }
        )
    return points


def half_rates(runs: pd.DataFrame, forecasts: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Measured and forecast half rate. One row per depth with runs at two rates or more, over all studies.

    `value`, `low` and `high` are None where they are outside of the rates tried. `covered`: the forecast
    interval, which is for a half rate measured at the rates and seeds of its study, contains the value.

    Args:
        runs: as `waiting_times`.
        forecasts: by study; only those with `half_rates` are used.
    """
    return _rows(runs, forecasts, fits_of(runs))


def _rows(
    runs: pd.DataFrame, forecasts: Mapping[str, Mapping[str, Any]], fits: Mapping[int, HalfRate]
) -> list[dict[str, Any]]:
    predicted = {row["depth"]: row for of in forecasts.values() for row in of.get("half_rates", ())}
    rows = []
    for depth, found in fits.items():
        of = runs[runs["depth"] == depth]
        forecast = predicted.get(depth, {})
        value, ends = found.half.value, [forecast.get(f"predicted_{end}") or None for end in ("low", "high")]
        known = math.isfinite(value) and all(ends)
        numbers = {"value": value, "low": found.half.low, "high": found.half.high, "spread": found.spread}
        rows.append(
            {
                "depth": depth,
                "runs": len(of),
                "collapsed": int(of["collapsed"].sum()),
                "lowest_rate": float(of["rate"].min()),
                "highest_rate": float(of["rate"].max()),
                **{name: number if 0 < number < math.inf else None for name, number in numbers.items()},
                "predicted": forecast.get("predicted"),
                "predicted_low": ends[0],
                "predicted_high": ends[1],
                "predicted_power_law": forecast.get("predicted_power_law"),
                "covered": bool(ends[0] <= value <= ends[1]) if known else None,
            }
        )
    return rows


def forecasts_outside(cases: Sequence[Mapping[str, Any]]) -> int:
    """Number of cases whose forecast share lies outside the interval of the measured share.

    Args:
        cases: as in the document of `mms waiting`.
    """
    return sum(not case["low"] <= case["predicted"] <= case["high"] for case in cases)
