"""The critical learning rate against depth and against the slope of the ramp: laws, rivals, measurement."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from meanmode.paper_figs.shared.runs import caption
from meanmode.paper_figs.shared.studies import CasePoints, Studies, cases, draw_rates, forecast_of, sizes_of
from meanmode.paper_figs.shared.style import COLOURS
from meanmode.theory.laws.all_laws import LAWS
from meanmode.theory.laws.rivals import RIVALS

DEPTH, DEEP, SLOPES = "critical_rate_depth", "critical_rate_deep", "critical_rate_slopes"


STUDIES = (DEPTH, DEEP, SLOPES)


FITTED, HELD_OUT = "black", COLOURS[1]
"""Colours of runs that a law was fitted on, and of runs that it was to foretell."""


LAW, POWER = COLOURS[0], COLOURS[2]


RIVAL_STYLES = ("--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))


def draw(studies: Studies) -> Figure:
    """Measured medians with their intervals, forecasts as lines; every run is a faint dot.

    Args:
        studies: `critical_rate_depth`, `critical_rate_deep` and `critical_rate_slopes`, or some of them.
    """
    figure = Figure(figsize=(13.5, 6.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_depths(left, studies)
    _draw_slopes(right, studies)
    for panel, name in ((left, "depth L (blocks)"), (right, "slope k of the ramp (rate gained a step)")):
        panel.set_yscale("log")
        panel.set_xlabel(name)
        panel.grid(alpha=0.25)
        panel.tick_params(which="minor", labelsize=8)
        if panel.lines:
            panel.legend(fontsize=7.5, frameon=False)
        panel.set_ylabel("critical rate: learning rate at the onset of the collapse")
    figure.suptitle(
        "Critical learning rate under linear ramps: points, medians and their 90 % bootstrap intervals; "
        "dots, runs; lines, forecasts written before the held-out runs",
        fontsize=10,
    )
    caption(figure, _theory(studies), *_measured(studies))
    return figure


def _draw_depths(panel: Axes, studies: Studies) -> None:
    forecast = forecast_of(studies)
    deep = cases(studies[DEEP]) if DEEP in studies else []
    fitted = cases(studies[DEPTH]) if DEPTH in studies else []
    for group, colour, label in ((fitted, FITTED, "fitted on"), (deep, HELD_OUT, "forecast before")):
        for number, case in enumerate(group):
            named = {} if number else {"label": f"measured, {label}"}
            draw_rates(panel, float(_depth(case)), case, colour, "o", **named)
    if fitted and forecast:
        power = forecast["power_law"]
        depths = np.array([_depth(case) for case in fitted], float)
        reach = [max(depths), *(float(_depth(case)) for case in deep)]
        label = f"L^{power['exponent']:.2f}, fitted on {min(depths):g} to {max(depths):g} blocks"
        for x, style, name in ((depths, "-", label), (np.array(reach), "--", None)):
            line = np.exp(power["intercept"]) * x ** power["exponent"]
            panel.plot(x, line, color=POWER, ls=style, label=name)
    if deep:
        _draw_law(panel, np.array([_depth(case) for case in deep], float), deep)
        anchor = forecast.get("anchor")
        _draw_rivals(panel, [_depth(case) for case in deep], deep, anchor and (anchor["depth"], anchor))
    _ticks(panel, [_depth(case) for case in (*fitted, *deep)])
    panel.set_title("against depth, slope 5e-5 sqrt(16 / L)", fontsize=9.5)


def _draw_slopes(panel: Axes, studies: Studies) -> None:
    if SLOPES in studies:
        group = cases(studies[SLOPES])
        slopes = [float(case.field("slope")) for case in group]
        for number, (slope, case) in enumerate(zip(slopes, group, strict=True)):
            named = {} if number else {"label": "measured, forecast before"}
            draw_rates(panel, slope, case, HELD_OUT, "o", **named)
        _draw_law(panel, np.array(slopes), group)
        _draw_rivals(panel, slopes, group, None)
        _ticks(panel, slopes)
    panel.set_title("against the slope, 16 blocks", fontsize=9.5)


def _ticks(panel: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis with these values named."""
    panel.set_xscale("log")
    panel.set_xticks(values, [f"{value:g}" for value in values])
    panel.set_xticks([], minor=True)


def _draw_law(panel: Axes, x: np.ndarray, group: Sequence[CasePoints]) -> None:
    if "predicted" in group[0].runs:
        middle, low, high = (
            np.array([float(case.field(f"predicted{end}")) for case in group])
            for end in ("", "_low", "_high")
        )
        panel.plot(x, middle, color=LAW, label="law O2 (functional step), 90 % band")
        panel.fill_between(x, low, high, color=LAW, alpha=0.15, lw=0)


def _draw_rivals(
    panel: Axes,
    x: Sequence[float],
    group: Sequence[CasePoints],
    anchor: tuple[float, dict[str, float]] | None,
) -> None:
    """Rivals of law O1 as lines from their anchor; those that say the same are one line."""
    lines: dict[tuple[float, ...], list[str]] = {}
    for name in RIVALS:
        if f"predicted_{name}" in group[0].runs:
            line = tuple(float(case.field(f"predicted_{name}")) for case in group)
            if np.isfinite(line).all():
                lines.setdefault(line, []).append(name)
    for style, (line, names) in zip(RIVAL_STYLES, lines.items(), strict=False):
        begin = ([anchor[0]], [anchor[1]["critical_rate"]]) if anchor else ([], [])
        panel.plot(
            [*begin[0], *x],
            [*begin[1], *line],
            color="0.5",
            lw=1,
            ls=style,
            label=f"O1, {', '.join(names)}",
            zorder=1,
        )


def _depth(case: CasePoints) -> int:
    return int(case.field("depth"))


def _theory(studies: Studies) -> str:
    forecast = forecast_of(studies)
    said = f"Theory. O2: {LAWS['O2'].statement}. O1, anchored at one measured rate: {LAWS['O1'].statement}."
    if not forecast:
        return said
    law, power = forecast["law"], forecast["power_law"]
    fitted = ", ".join(Path(path).stem for path in forecast["made_from"])
    return (
        f"{said} Fitted, on {power['runs']} runs of {fitted}: r = {law['coherence']:.4f}, threshold "
        f"Delta_c = {law['threshold']:.3f} and gamma(t) of O2; exponent {power['exponent']:.3f} "
        f"+- {power['exponent_error']:.3f} of the power law."
    )


def _measured(studies: Studies) -> list[str]:
    """What was run, a paragraph a study."""
    said = []
    for name, data in studies.items():
        collapsed = int(data["critical_rate"].notnull().sum())
        text = f"Measured, {name}: {sizes_of(data)}; {collapsed} of {data.sizes['cell']} runs collapsed."
        if name in (DEPTH, DEEP, SLOPES) and collapsed > 2:
            axis = "slope" if name == SLOPES else "depth"
            text += f" Exponent in {axis} over these runs: {_exponent(data, axis)}."
        said.append(text)
    return said


def _exponent(data: xr.Dataset, axis: str) -> str:
    """Least-squares slope of the logarithms over collapsed runs, and its standard error."""
    known = data["critical_rate"].notnull().values
    x, y = (np.log(data[name].values[known].astype(float)) for name in (axis, "critical_rate"))
    if len(set(x.tolist())) < 2:
        return "one value only"
    (slope, _), covariance = np.polyfit(x, y, 1, cov=True)
    return f"{slope:.3f} +- {np.sqrt(covariance[0, 0]):.3f}"
