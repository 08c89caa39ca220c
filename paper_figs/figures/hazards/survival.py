"""Survival of runs under constant rates, schedules and ramps: the hazard beside Kaplan-Meier estimates."""

# N steps, R runs

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from meanmode.paper_figs.shared.runs import caption
from meanmode.paper_figs.shared.studies import Studies, forecasts_of, short_sizes
from meanmode.paper_figs.shared.style import DASHES, MARKERS, PAGE, plain_ticks
from meanmode.sweeps.studies.hazards.hazard_runs import opened, survival_points, waiting_runs
from meanmode.theory.onset.hazard import Hazard
from meanmode.theory.onset.hazard_likelihood import WaitingRuns

STUDIES = ("hazard_schedules", "hazard_slopes", "hazard_deep", "hazard_200")
"""Studies that are drawn, none of which the hazard was fitted to."""

POINTS = 18
"""Points per curve: fewer collapses are all shown."""


def draw(studies: Studies) -> Figure:
    """P(no collapse) against the step; one panel per study and depth, one curve per case.

    Args:
        studies: some of `STUDIES`, with the texts of their forecasts.

    Raises:
        ValueError: no study has a forecast by a hazard.
    """
    hazard = hazard_of(studies)
    panels = panels_of(studies)
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(PAGE, 0.5 + 2.3 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, (title, cases) in zip(axes, panels.items(), strict=False):
        _draw_panel(axis, hazard, cases)
        axis.set_title(title)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    caption(
        figure,
        "Lines: hazard (law O3), fitted to constant rates before these runs. Points: measured "
        f"(Kaplan-Meier); a cross ends runs that did not collapse. {short_sizes(studies)}",
    )
    return figure


def hazard_of(studies: Studies) -> Hazard:
    """The hazard of the first forecast that holds one.

    Raises:
        ValueError: none does.
    """
    for document in forecasts_of(studies).values():
        if "hazard" in document:
            return Hazard.of_document(document["hazard"])
    raise ValueError(
        "these studies have no forecast by a hazard: write one with mms predict onset --law hazard"
    )


def panels_of(studies: Studies) -> dict[str, list[tuple[str, WaitingRuns]]]:
    """Title of a panel -> label and measured runs of each of its cases."""
    found: dict[str, list[tuple[str, WaitingRuns]]] = {}
    for source in opened(studies):
        study, name = source.study, source.path.name
        groups = waiting_runs(study, source.data)
        depths = {run.model.depth for run in study.runs}
        per_depth = len(study.cases) > len(depths)
        for case, run in zip(study.cases, study.runs, strict=True):
            title = f"{name}, {run.model.depth} blocks" if per_depth else "ramps of slope ~ L^(-1/2)"
            label = case.label.partition(", ")[2] if per_depth else case.label
            found.setdefault(title, []).append((label, groups[case.label]))
    return found


def _draw_panel(axis: Axes, hazard: Hazard, cases: Sequence[tuple[str, WaitingRuns]]) -> None:
    ordered = sorted(cases, key=lambda case: case[1].depth)
    colours = colormaps["viridis"](np.linspace(0, 0.85, len(ordered)))
    for (label, runs), colour, marker, style in zip(ordered, colours, MARKERS, DASHES, strict=False):
        steps = np.arange(1, len(runs.rates) + 1)
        axis.plot(steps, hazard.survival(runs.rates, runs.depth), color=colour, lw=1, ls=style)
        x, y = survival_points(runs)
        kept = np.unique(np.linspace(1, len(x) - 1, POINTS).round().astype(int)) if len(x) > 1 else []
        axis.plot(
            x[kept],
            y[kept],
            marker,
            color=colour,
            ms=2.9,
            mfc="none",
            label=label,
        )
        if not runs.collapsed.all():
            axis.plot(runs.times[~runs.collapsed].max(), y[-1], "x", color=colour, ms=3.8)
    axis.set_xscale("log")
    axis.set_xlim(left=30)
    plain_ticks(axis.xaxis)
    axis.set_ylim(-0.03, 1.03)
    axis.set_xlabel("step")
    axis.set_ylabel("P(no collapse)")
    axis.grid(alpha=0.25, which="both")
    axis.legend(ncols=2, loc="upper center", bbox_to_anchor=(0.45, -0.2), handlelength=1, columnspacing=0.8)
