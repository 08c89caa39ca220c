"""The critical learning rate against depth and against the slope of the ramp: laws, rivals, measurement."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from meanmode.paper_figs.shared.runs import caption
from meanmode.paper_figs.shared.studies import (
    Studies,
    draw_rates,
    forecast_of,
    line_of,
    rates_of_runs,
    short_sizes,
)
from meanmode.paper_figs.shared.style import COLOURS, PAGE
from meanmode.sweeps.studies.critical_rates import study_rows
from meanmode.sweeps.studies.run_sizes import span, study_sizes
from meanmode.theory.laws.rivals import RIVALS

DEPTH, DEEP, SLOPES = "critical_rate_depth", "critical_rate_deep", "critical_rate_slopes"


STUDIES = (DEPTH, DEEP, SLOPES)


FITTED, HELD_OUT = "black", COLOURS[1]
"""Colours of the runs that a law was fitted to, and of the runs that it predicted."""


LAW, POWER = COLOURS[0], COLOURS[2]


RIVAL_STYLES = ("--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))


Rows = Mapping[str, Sequence[Mapping[str, Any]]]
"""Study -> its rows, one per case."""


def draw(studies: Studies) -> Figure:
    """Measured medians with their intervals, forecasts as lines; every run is a faint dot.

    Args:
        studies: `critical_rate_depth`, `critical_rate_deep` and `critical_rate_slopes`, or some of them.
    """
    rows = {name: study_rows(data) for name, data in studies.items()}
    figure = Figure(figsize=(PAGE, 3.3), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_depths(left, studies, rows)
    _draw_slopes(right, studies, rows)
    for panel, name in ((left, "depth L (blocks)"), (right, "slope k of the ramp (rate gained per step)")):
        panel.set_yscale("log")
        panel.set_xlabel(name)
        panel.grid(alpha=0.25)
        panel.tick_params(which="minor", labelsize=6)
        if panel.lines:
            panel.legend()
        panel.set_ylabel("critical rate")
    caption(
        figure,
        "Linear ramps. Points: measured medians with 90 % intervals; dots: runs; lines: laws, fitted "
        f"to the runs in black. {short_sizes(studies)}",
    )
    return figure


def _draw_depths(panel: Axes, studies: Studies, rows: Rows) -> None:
    forecast = forecast_of(studies)
    fitted, deep = rows.get(DEPTH, ()), rows.get(DEEP, ())
    for study, colour, label in ((DEPTH, FITTED, "used for the fit"), (DEEP, HELD_OUT, "forecast before")):
        if study in studies:
            _draw_cases(panel, studies, rows, study, "depth", colour, f"measured, {label}")
    if fitted and forecast:
        depths = np.array([row["depth"] for row in fitted], float)
        reach = np.array([max(depths), *(row["depth"] for row in deep)], float)
        exponent = forecast["power_law"]["exponent"]
        label = f"L^{exponent:.2f}, fitted on {min(depths):g} to {max(depths):g} blocks"
        for x, style, name in ((depths, "-", label), (reach, "--", None)):
            panel.plot(x, line_of(forecast["power_law"], x), color=POWER, ls=style, label=name)
    if deep:
        depths = [row["depth"] for row in deep]
        _draw_law(panel, depths, deep)
        anchor = forecast.get("anchor")
        _draw_rivals(panel, depths, deep, anchor and (anchor["depth"], anchor["critical_rate"]))
    _ticks(panel, [row["depth"] for row in (*fitted, *deep)])
    panel.set_title("against depth")


def _draw_slopes(panel: Axes, studies: Studies, rows: Rows) -> None:
    if SLOPES not in studies:
        return
    slopes = [row["slope"] for row in rows[SLOPES]]
    _draw_cases(panel, studies, rows, SLOPES, "slope", HELD_OUT, "measured, forecast before")
    _draw_law(panel, slopes, rows[SLOPES])
    _draw_rivals(panel, slopes, rows[SLOPES], None)
    _ticks(panel, slopes)
    panel.set_title(f"against the slope, {span(study_sizes(studies[SLOPES])['depth'])} blocks")


def _draw_cases(
    panel: Axes, studies: Studies, rows: Rows, study: str, axis: str, colour: str, label: str
) -> None:
    runs = rates_of_runs(studies[study])
    for number, row in enumerate(rows[study]):
        style = {"color": colour} if number else {"color": colour, "label": label}
        draw_rates(panel, float(row[axis]), row, runs.get(row["case"], ()), style)


def _ticks(panel: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis labelled at these values only."""
    panel.set_xscale("log")
    panel.set_xticks(values, [f"{value:g}" for value in values])
    panel.set_xticks([], minor=True)


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """A column of rows; NaN where a row has no number."""
    return np.array([np.nan if row.get(name) is None else row[name] for row in rows], float)


def _draw_law(panel: Axes, x: Sequence[float], rows: Sequence[Mapping[str, Any]]) -> None:
    if rows[0]["predicted"] is not None:
        middle, low, high = (_column(rows, f"predicted{end}") for end in ("", "_low", "_high"))
        panel.plot(x, middle, color=LAW, lw=1.8, label="law O2 (functional step), 90 % band")
        panel.fill_between(x, low, high, color=LAW, alpha=0.15, lw=0)


def _draw_rivals(
    panel: Axes, x: Sequence[float], rows: Sequence[Mapping[str, Any]], anchor: tuple[float, float] | None
) -> None:
    """Rivals of law O1 as lines from their anchor; those that predict the same share a line."""
    lines: dict[tuple[float, ...], list[str]] = {}
    for name in RIVALS:
        line = _column(rows, f"predicted_{name}")
        if np.isfinite(line).all():
            lines.setdefault(tuple(line.tolist()), []).append(name)
    for style, (line, names) in zip(RIVAL_STYLES, lines.items(), strict=False):
        begin = ([anchor[0]], [anchor[1]]) if anchor else ([], [])
        label = f"O1, {', '.join(names)}"
        panel.plot([*begin[0], *x], [*begin[1], *line], color="0.5", lw=0.8, ls=style, label=label, zorder=1)
