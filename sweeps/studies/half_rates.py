"""Half rates of the runs of studies of waiting times, beside their forecasts."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from meanmode.sweeps.statistics.half_rate import HalfRate


def fits_of(runs: pd.DataFrame) -> dict[int, HalfRate]:
    """Depth -> its half rate, of the depths that were run at two rates or more."""
    return {
        int(depth): HalfRate.fit(of["rate"], of["collapsed"])
        for depth, of in runs.groupby("depth")
        if of["rate"].nunique() > 1
    }


def half_rates(runs: pd.DataFrame, forecasts: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every depth of two rates: that at which half of its runs collapse, of all studies, and its forecast.

    `value`, `low` and `high` are None where they are outside of the rates tried; `covered`: the forecast
    interval, of a half rate measured at the rates and seeds of the study it was made for, holds the value.

    Args:
        runs: as `waiting_times`.
        forecasts: by study; those with `half_rates` speak of the depths of these.
    """
    foretold = {row["depth"]: row for of in forecasts.values() for row in of.get("half_rates", ())}
    rows = []
    for depth, found in fits_of(runs).items():
        of = runs[runs["depth"] == depth]
        forecast = foretold.get(depth, {})
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
