"""Critical rate of ramps against depth: the hazard with the interval of single runs, beside every run."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from meanmode.paper_figs.figures.hazards.survival import hazard_of
from meanmode.paper_figs.shared.runs import caption
from meanmode.paper_figs.shared.studies import (
    Studies,
    bars,
    forecast_of,
    line_of,
    rates_of_runs,
    short_sizes,
)
from meanmode.paper_figs.shared.style import COLOURS, COLUMN, plain_ticks
from meanmode.sweeps.studies.critical_rates import study_rows
from meanmode.sweeps.studies.hazards.hazard_forecast import depth_curve
from meanmode.sweeps.studies.hazards.hazard_runs import OpenedStudy, opened
from meanmode.theory.onset.functional_law import FunctionalLaw
from meanmode.theory.onset.hazard import Hazard

STUDIES = ("hazard_deep", "hazard_200")
"""Studies of ramps whose slope goes with depth^(-1/2), measured after the forecast."""

BESIDE = ("critical_rate_deep", "critical_rate_depth")
"""Studies of the same ramps that were measured before it."""

GROUPS = {
    STUDIES: ("after the forecast", COLOURS[1], "o"),
    BESIDE: ("before it", "0.45", "s"),
}
"""Studies -> when they were measured, colour and marker."""

DEPTHS = [round(depth) for depth in np.geomspace(8, 1000, 15)]
"""Depths at which the hazard is evaluated."""


def draw(studies: Studies) -> Figure:
    """Median critical rates and those of every run against depth, with the hazard and its run interval.

    Args:
        studies: some of `STUDIES`, with the texts of their forecasts.

    Raises:
        ValueError: no study has a forecast by a hazard.
    """
    hazard = hazard_of(studies)
    figure = Figure(figsize=(COLUMN, 3.4), layout="constrained")
    panel = figure.subplots()
    sources = {source.path.name: source for source in opened(studies)}
    _draw_hazard(panel, hazard, next(iter(sources.values())))
    _draw_rivals(panel, studies)
    for names, style in GROUPS.items():
        found = [sources[name] for name in names if name in sources]
        for source in found:
            _draw_runs(panel, source, style[1:])
        if found:
            panel.plot([], [], style[2], color=style[1], ms=3.8, label=f"measured {style[0]}")
    panel.set_xscale("log")
    panel.set_yscale("log")
    plain_ticks(panel.yaxis)
    depths = (8, 16, 32, 64, 128, 250, 400, 1000)
    panel.set_xticks(depths, [str(depth) for depth in depths])
    panel.set_xticks([], minor=True)
    panel.set_xlabel("depth L (blocks)")
    panel.set_ylabel("critical rate (learning rate at the onset)")
    panel.grid(alpha=0.25, which="both")
    panel.legend(loc="lower left")
    caption(
        figure,
        "Ramps. Lines: forecasts. Points: measured medians, 90 % intervals; small: runs; arrows: no "
        f"collapse. {short_sizes(studies)}",
    )
    return figure


def _draw_hazard(panel: Axes, hazard: Hazard, source: OpenedStudy) -> None:
    rows = depth_curve(hazard, source, DEPTHS, seeds=8)
    median, low, high = ([row[name] for row in rows] for name in ("median", "run_low", "run_high"))
    panel.plot(DEPTHS, median, color=COLOURS[0], lw=1.2, label="hazard: median")
    panel.fill_between(DEPTHS, low, high, color=COLOURS[0], alpha=0.15, lw=0, label="90 % of single runs")


def _draw_rivals(panel: Axes, studies: Studies) -> None:
    """Law O2 and the line through the shallow networks, both fitted to ramps."""
    forecast = forecast_of(studies)
    if not forecast:
        return
    law = FunctionalLaw.of_document(forecast["law"])
    slope = forecast["anchor"]["slope"] * math.sqrt(forecast["anchor"]["depth"])
    rates = [law.critical_rate(depth, slope / math.sqrt(depth)) for depth in DEPTHS]
    panel.plot(DEPTHS, rates, "--", color=COLOURS[2], lw=1, label="law O2")
    label = f"L^{forecast['power_law']['exponent']:.2f}"
    line = line_of(forecast["power_law"], np.array(DEPTHS))
    panel.plot(DEPTHS, line, ":", color=COLOURS[3], lw=1.2, label=label)


def _draw_runs(panel: Axes, source: OpenedStudy, style: tuple[str, str]) -> None:
    colour, marker = style
    runs = rates_of_runs(source.data)
    for row, run in zip(study_rows(source.data), source.study.runs, strict=True):
        depth, own = run.model.depth, runs.get(row["case"], [])
        spread = depth * np.geomspace(0.96, 1.04, len(own))
        panel.plot(spread, own, marker, color=colour, ms=1.9, alpha=0.45, mew=0)
        if row["n_collapsed"] < row["n"]:
            last = run.training.learning_rate(depth).rate(run.training.steps)
            panel.plot(depth, last, marker=r"$\uparrow$", color=colour, ms=6.4, ls="none")
        if row["measured"] is not None:
            ends = bars(row["measured"], row["measured_low"], row["measured_high"])
            panel.errorbar(
                depth, row["measured"], yerr=ends, fmt=marker, color=colour, ms=4.2, capsize=1.8, zorder=4
            )
