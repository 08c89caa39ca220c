"""P(collapse by the end) against the peak rate of three schedules, by the hazard and as measured."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from meanmode.paper_figs.figures.hazards.survival import hazard_of
from meanmode.paper_figs.shared.runs import caption
from meanmode.paper_figs.shared.studies import Studies, bars, fitted_to, forecasts_of, short_sizes
from meanmode.paper_figs.shared.style import COLOURS, DASHES, MARKERS, PAGE
from meanmode.sweeps.studies.hazards.hazard_runs import opened
from meanmode.sweeps.studies.hazards.schedule_risk import risk_curve, risk_rows

STUDIES = ("hazard_schedules", "hazard_history")
"""Studies whose forecast by the hazard was written before their runs."""

BESIDE = ("waiting_time", "waiting_time_low", "waiting_time_deep")
"""Studies at constant rates that are older than the hazard."""

CURVES: dict[str, Mapping[str, Any]] = {
    "constant after 20 steps, to step 600": {"schedule": "warmup", "warmup": 20, "steps": 600},
    "constant after 300 steps, to step 900": {"schedule": "warmup", "warmup": 300, "steps": 900},
    "cosine after 100 steps, to step 800": {"schedule": "cosine", "warmup": 100, "steps": 800},
}
"""Label -> the schedule of a curve."""

DEPTHS = (16, 64)
"""Depth of each panel."""

POINTS = 25
"""Points per curve."""


def draw(studies: Studies) -> Figure:
    """P(collapse by the last step) against the peak rate, one panel per depth, one curve per schedule.

    Args:
        studies: some of `STUDIES`, with the texts of their forecasts, and some of `BESIDE`.

    Raises:
        ValueError: no study has a forecast by a hazard.
    """
    hazard, sources = hazard_of(studies), opened(studies)
    base, fitted = sources[0].study.base, _fitted(studies)
    rows = [{**row, "fitted": source.study.name in fitted} for source in sources for row in risk_rows(source)]
    figure = Figure(figsize=(PAGE, 3.2), layout="constrained")
    panels = figure.subplots(1, len(DEPTHS), sharey=True)
    for panel, depth in zip(panels, DEPTHS, strict=True):
        for (label, fields), *style in zip(CURVES.items(), COLOURS, MARKERS, DASHES, strict=False):
            colour, marker, dashes = style
            run = base.with_fields({**fields, "depth": depth, "rate": 1.0})
            curve = np.array([list(row.values()) for row in risk_curve(hazard, run, POINTS)]).T
            panel.fill_between(curve[0], *curve[2:], color=colour, alpha=0.15, lw=0)
            panel.plot(curve[0], curve[1], color=colour, lw=1, ls=dashes, label=label)
            _draw_points(panel, _matching(rows, fields, depth), colour, marker)
        panel.set_xlabel("peak learning rate")
        panel.set_title(f"{depth} blocks")
        panel.grid(alpha=0.25, which="both")
    panels[0].set_ylabel("P(collapse by the last step)")
    kinds = [Line2D([], [], marker="o", color="0.35", ls="none", mfc=face) for face in ("0.35", "none")]
    lines, labels = panels[0].get_legend_handles_labels()
    labels += ["measured, not used in the fit", "measured, used in the fit"]
    figure.legend([*lines, *kinds], labels, loc="outside upper center", ncols=3)
    caption(
        figure,
        "Lines and bands: hazard (law O3) with the 90 % interval of its fit. Points: measured shares "
        f"with 90 % intervals. {short_sizes(studies)}",
    )
    return figure


def _fitted(studies: Studies) -> set[str]:
    """Names of the studies that the hazard was fitted to."""
    document = next(of for of in forecasts_of(studies).values() if "hazard" in of)
    return set(fitted_to(document).split(", "))


def _matching(
    rows: Sequence[Mapping[str, Any]], fields: Mapping[str, Any], depth: int
) -> list[Mapping[str, Any]]:
    """The rows of a depth whose schedule is that of a curve."""
    names = ("schedule", "warmup")
    return [
        row
        for row in rows
        if row["depth"] == depth
        and not row["first_steps"]
        and all(row[name] == fields[name] for name in names)
    ]


def _draw_points(panel: Axes, rows: Sequence[Mapping[str, Any]], colour: str, marker: str) -> None:
    for row in rows:
        ends = bars(row["share"], row["low"], row["high"])
        face = "none" if row["fitted"] else colour
        panel.errorbar(
            row["rate"], row["share"], yerr=ends, fmt=marker, color=colour, mfc=face, ms=3.5, capsize=1.5
        )
