"""What moves the event: interventions from the jump on and other merges, over a jump without a change."""

import dataclasses
from collections.abc import Mapping

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from meanmode.paper_figs.shared.runs import caption
from meanmode.paper_figs.shared.studies import short_sizes
from meanmode.paper_figs.shared.style import COLOURS, PAGE, plain_ticks
from meanmode.sweeps.studies.events.event_rules import event_rows
from meanmode.sweeps.studies.events.event_summaries import (
    at_distance,
    collapsed,
    delays,
    half_rate_groups,
    half_rate_ratio,
)

CAUSES, RATES, UNCHANGED = "event_causes", "event_causes_rates", "event_batches"


STUDIES, BESIDE = (CAUSES,), (RATES, UNCHANGED)
"""What is drawn, and what is drawn beside it where it exists."""


NOTHING = "nothing"
"""Label of the case without a change."""


ACTING, CONTROL = COLOURS[1], "0.45"


ARROW, CLOSE = 1.25, 0.1
"""Length of an arrow, as a ratio, and the distance from 1 that is shaded."""


FINE = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.4, 1.6, 1.8)
"""Ticks where ratios differ by less than a factor of three."""


Bar = tuple[Mapping[str, float], str]
"""A ratio (`value`, or `at_least` where that is open, `low`, `high`) and what is said at its right."""


def draw(studies: Mapping[str, xr.Dataset]) -> Figure:
    """Forests of the steps to the onset, and of half rates where both studies of these are there.

    Args:
        studies: `STUDIES` and any of `BESIDE`.
    """
    panels = {"steps to the onset / those without a change": _delays(studies[CAUSES])}
    if RATES in studies and UNCHANGED in studies:
        panels["half rate / half rate without a change"] = _half_rates(studies[RATES], studies[UNCHANGED])
    figure = Figure(figsize=(PAGE, 3.3), layout="constrained")
    heights = [len(bars) for bars in panels.values()]
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for panel, (words, bars), letter in zip(axes, panels.items(), "ab", strict=False):
        _draw_forest(panel, bars)
        panel.set_xlabel(words)
        panel.set_title(f"({letter})", loc="left")
    shown = {name: data for name, data in studies.items() if name == CAUSES or len(panels) > 1}
    caption(
        figure,
        "Measured: ratios with 90 % intervals over paired seeds (arrows: open); right: how many "
        f"collapsed; hollow: norm-matched control; grey: within 10 %. {short_sizes(shown)}",
    )
    return figure


def _delays(data: xr.Dataset) -> dict[str, Bar]:
    found = delays(event_rows(data), NOTHING)
    return {
        case: (dataclasses.asdict(ratio), f"{share.count} of {share.of}")
        for case, (share, _, ratio) in found.items()
        if case != NOTHING
    }


def _half_rates(changed: xr.Dataset, unchanged: xr.Dataset) -> dict[str, Bar]:
    groups = half_rate_groups(event_rows(changed), event_rows(unchanged))
    found = {label: at_distance(rows) for label, rows in groups.items()}
    return {
        label: (
            dataclasses.asdict(half_rate_ratio(found[NOTHING], of)),
            f"{int(collapsed(groups[label]).sum())} of {len(groups[label])}",
        )
        for label, of in found.items()
        if label != NOTHING
    }


def _draw_forest(panel: Axes, bars: Mapping[str, Bar]) -> None:
    panel.axvspan(1 - CLOSE, 1 + CLOSE, color="0.92", zorder=0)
    panel.axvline(1.0, color="0.35", lw=0.8)
    for y, (label, (ratio, said)) in enumerate(bars.items()):
        _draw_ratio(panel, y, ratio, control=label.startswith("control"))
        panel.text(1.02, y, said, transform=panel.get_yaxis_transform(), va="center")
    panel.set_xscale("log")
    low, high = panel.get_xlim()
    low, high = min(low, 0.75), max(high, 1.4)
    panel.set_xlim(low, high)
    if high / low > 3:
        plain_ticks(panel.xaxis)
    else:
        shown = [tick for tick in FINE if low < tick < high]
        panel.set_xticks(shown, [f"{tick:g}" for tick in shown])
        panel.set_xticks([], minor=True)
    panel.set_yticks(range(len(bars)), list(bars))
    panel.set_ylim(len(bars) - 0.5, -0.5)
    panel.grid(axis="x", alpha=0.25)


def _draw_ratio(panel: Axes, y: float, ratio: Mapping[str, float], *, control: bool) -> None:
    """A point with its interval; arrows where an end, or the point itself, is open."""
    colour = CONTROL if control else ACTING
    known = np.isfinite(ratio["value"]) and ratio["value"] > 0
    start = ratio["value"] if known else ratio["at_least"]
    if not (np.isfinite(start) and start > 0):
        panel.text(1.0, y, "  undetermined", va="center")
        return
    open_ended = not known or not np.isfinite(ratio["high"])
    for end, is_open, arrow in (
        (ratio["low"], not ratio["low"] > 0, start / ARROW),
        (ratio["high"], open_ended, start * ARROW),
    ):
        if is_open:
            ends = {"xytext": (start, y), "xy": (arrow, y)}
            panel.annotate("", **ends, arrowprops={"arrowstyle": "->", "color": colour, "lw": 1})
            panel.plot(arrow, y, alpha=0)  # a panel's limits do not include annotations
        else:
            panel.plot([start, end], [y, y], color=colour, lw=1)
    style = {"color": colour, "mfc": "white" if control else colour, "ms": 4.5, "zorder": 4}
    panel.plot(start, y, "o" if known else "|", **style)
