"""The half rate: shares of runs that collapse at constant rates, and the rate at which half do, by depth."""

# R runs

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from meanmode.paper_figs.shared.runs import caption
from meanmode.paper_figs.shared.studies import (
    Studies,
    bars,
    forecast_of,
    forecasts_of,
    line_of,
    short_sizes,
)
from meanmode.paper_figs.shared.style import COLOURS, MARKERS, PAGE
from meanmode.sweeps.studies.half_rates import fitted_shares, half_rate_points, share_rows
from meanmode.sweeps.studies.run_sizes import study_sizes
from meanmode.sweeps.studies.waiting_times import waiting_times
from meanmode.theory.onset.functional_law import FunctionalLaw

STUDIES = (
    *("waiting_time", "waiting_time_low", "waiting_time_between"),
    *("waiting_time_deep", "waiting_time_400", "waiting_time_400_low", "waiting_time_1000"),
)


TICKS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032)
"""Learning rates labelled on the axis."""


Rows = Sequence[Mapping[str, Any]]


def draw(studies: Studies) -> Figure:
    """Shares with Wilson intervals and the logistic of every depth; half rates with law O2 and the line.

    Args:
        studies: some of `STUDIES`, with the texts of their forecasts.

    Raises:
        ValueError: no depth was run at two rates.
    """
    runs = pd.concat([waiting_times(data) for data in studies.values()], ignore_index=True)
    shares, points = share_rows(runs), half_rate_points(runs, forecasts_of(studies))
    if not points:
        raise ValueError("a half rate lies between rates: no depth of these studies has runs at two rates")
    figure = Figure(figsize=(PAGE, 3.3), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_shares(left, shares, {row["depth"]: row for row in points})
    _draw_half_rates(right, points)
    if any(row["predicted"] for row in points):
        _draw_forecast(right, points, studies)
    _finish_half_rates(right, points)
    steps = max(study_sizes(data)["steps"][-1] for data in studies.values())
    caption(
        figure,
        f"Constant rates, at most {steps} steps. Points: measured, 90 % intervals (arrows: an open "
        "end). Lines: left, logistic fits; right, law O2 and a power law, both fitted to other runs. "
        f"{short_sizes(studies)}",
    )
    return figure


def _draw_shares(panel: Axes, shares: Rows, points: Mapping[int, Mapping[str, Any]]) -> None:
    depths = list(dict.fromkeys(row["depth"] for row in shares))
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(depths)))
    for depth, colour, marker in zip(depths, colours, cycle(MARKERS)):
        here = [row for row in shares if row["depth"] == depth]
        for row in here:
            ends = bars(row["share"], row["low"], row["high"])
            panel.errorbar(
                row["rate"], row["share"], yerr=ends, fmt=marker, color=colour, ms=3.2, lw=0.8, capsize=1.2
            )
        panel.plot([], [], color=colour, marker=marker, ms=2.8, label=f"{depth} blocks")
        if depth in points and points[depth]["value"] is not None:
            x = np.geomspace(here[0]["rate"] / 1.1, here[-1]["rate"] * 1.1, 200)
            panel.plot(x, fitted_shares(points[depth], x), color=colour, lw=0.8)
    panel.axhline(0.5, color="0.6", lw=0.8, zorder=0)
    panel.set_xscale("log")
    panel.set_xticks(TICKS, [f"{rate:g}" for rate in TICKS])
    # room for the legend
    panel.set_xlim(left=min(row["rate"] for row in shares) / 3)
    panel.set_xticks([], minor=True)
    panel.set_xlabel("learning rate")
    panel.set_ylabel("share of runs that collapse")
    panel.grid(alpha=0.25, which="both")
    panel.legend(loc="lower left")


def _draw_half_rates(panel: Axes, points: Rows) -> None:
    for row in points:
        colour, depth = COLOURS[1] if row["predicted"] else "black", row["depth"]
        arrow = {"color": colour, "ms": 7, "ls": "none"}
        if row["value"] is not None:
            ends = bars(row["value"], row["low"] or row["lowest_rate"], row["high"])
            panel.errorbar(
                depth, row["value"], yerr=ends, fmt="o", color=colour, ms=3.8, capsize=1.8, zorder=4
            )
            if row["low"] is None:
                panel.plot(depth, row["lowest_rate"], marker=r"$\downarrow$", **arrow)
        elif row["at_least"] is not None:
            panel.plot(depth, row["at_least"], marker=r"$\uparrow$", **arrow)
        elif row["at_most"] is not None:
            panel.plot(depth, row["at_most"], marker=r"$\downarrow$", **arrow)
    panel.plot([], [], "o", color="black", ms=3.8, label="measured before the forecast")


def _draw_forecast(panel: Axes, points: Rows, studies: Studies) -> None:
    """Law O2 and the line of the forecast, and the interval of every half rate that was forecast."""
    forecast, predicted = forecast_of(studies), [row for row in points if row["predicted"]]
    panel.plot([], [], "o", color=COLOURS[1], ms=3.8, label="measured, forecast before")
    law = FunctionalLaw.of_document(forecast["law"])
    x = np.geomspace(min(row["depth"] for row in points), max(row["depth"] for row in predicted), 100)
    panel.plot(x, np.vectorize(law.constant_rate)(x), color=COLOURS[0], label="law O2, fitted to ramps")
    label = f"L^{forecast['power_law']['exponent']:.2f}, through half rates measured before"
    panel.plot(x, line_of(forecast["power_law"], x), "--", color=COLOURS[2], label=label)
    for row in predicted:
        if row["predicted_low"] and row["predicted_high"]:
            ends = (row["predicted_low"], row["predicted_high"])
            panel.vlines(row["depth"], *ends, COLOURS[0], lw=4.5, alpha=0.25)


def _finish_half_rates(panel: Axes, points: Rows) -> None:
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xticks([row["depth"] for row in points], [f"{row['depth']}" for row in points])
    panel.set_xticks([], minor=True)
    panel.set_xlabel("depth L (blocks)")
    panel.set_ylabel("half rate (learning rate)")
    panel.grid(alpha=0.25, which="both")
    panel.legend()
