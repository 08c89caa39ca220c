"""What figures of studies share: forecasts, and critical rates with intervals."""

# R runs

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from numpy.typing import NDArray

from meanmode.sweeps.studies.critical_rates import study_onsets
from meanmode.sweeps.studies.run_sizes import span, study_sizes

DOT = {"marker": "o", "ms": 1.8, "alpha": 0.35, "ls": "none", "mew": 0}
"""Style of the dot of a single run."""


Studies = Mapping[str, xr.Dataset]
"""Name -> the finished cells of a study; attribute `forecast` holds the text of its forecast, if any."""


def forecasts_of(studies: Studies) -> dict[str, dict[str, Any]]:
    """The forecasts of the studies that have one, by study."""
    return {
        name: json.loads(data.attrs["forecast"]) for name, data in studies.items() if "forecast" in data.attrs
    }


def forecast_of(studies: Studies) -> dict[str, Any]:
    """The first forecast that holds a law of the functional step; empty where none does."""
    return next((document for document in forecasts_of(studies).values() if document.get("law")), {})


def fitted_to(forecast: Mapping[str, Any]) -> str:
    """The studies that a forecast was fitted to."""
    return ", ".join(Path(path).stem for path in forecast["made_from"])


def short_sizes(studies: Studies) -> str:
    """Width, depth, tokens, batch and seeds of all the studies together, in one sentence."""
    found = [study_sizes(data) for data in studies.values()]

    def of(name: str) -> str:
        return span(sorted({value for sizes in found for value in sizes[name]}))

    seeds = span(sorted({len(sizes["seed"]) for sizes in found}))
    return (
        f"Width {of('width')}, {of('depth')} blocks, {of('image_tokens')} + {of('text_tokens')} tokens, "
        f"batch {of('batch')}; {seeds} seed{'s' * (seeds != '1')} per case."
    )


def rates_of_runs(data: xr.Dataset) -> dict[str, list[float]]:
    """Case -> critical rates of its runs that collapsed."""
    rates: dict[str, list[float]] = {}
    for row in study_onsets(data):
        rates.setdefault(row["case"], []).extend([row["critical_rate"]] if row["critical_rate"] else [])
    return rates


def draw_rates(
    panel: Axes, x: float, row: Mapping[str, Any], runs: Sequence[float], style: Mapping[str, Any]
) -> None:
    """Critical rates of single runs, and their median with its interval or an arrow up from its lower bound.

    Args:
        panel: to draw into.
        x: where.
        row: of `study_rows`.
        runs: critical rates of the runs that collapsed.
        style: colour of all, label of the median.
    """
    panel.plot(x * np.geomspace(0.95, 1.05, len(runs)), runs, color=style["color"], **DOT)
    if row["measured"] is not None:
        ends = bars(row["measured"], row["measured_low"], row["measured_high"])
        panel.errorbar(x, row["measured"], yerr=ends, fmt="o", ms=3.8, capsize=1.8, zorder=4, **style)
    elif row["measured_at_least"]:
        panel.plot(x, row["measured_at_least"], marker=r"$\uparrow$", ms=7, ls="none", **style)


def bars(value: float, low: float | None, high: float | None) -> NDArray[np.float64]:
    """Lengths of the bars of an interval [2, 1]; none where an end is open."""
    below = 0.0 if low is None else max(value - low, 0.0)
    above = 0.0 if high is None else max(high - value, 0.0)
    return np.array([[below], [above]])


def line_of(power_law: Mapping[str, float], depths: NDArray[np.float64]) -> NDArray[np.float64]:
    """The power law of a forecast at depths."""
    return np.exp(power_law["intercept"]) * depths ** power_law["exponent"]
