"""What decides the size of an event: growth of G_mean by batch, and by distance above the half rate."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from meanmode.paper_figs.shared.runs import caption
from meanmode.paper_figs.shared.studies import bars, short_sizes
from meanmode.paper_figs.shared.style import COLOURS, MARKERS, PAGE, plain_ticks
from meanmode.sweeps.studies.events.event_rules import event_rows
from meanmode.sweeps.studies.events.event_summaries import (
    DISTANCE,
    AtDistance,
    at_distance,
    collapsed,
    growth,
)

BATCHES, DISTANCES = "event_batches", "event_distances"


STUDIES = (BATCHES, DISTANCES)


FACTOR = "factor of G_mean"


def draw(studies: Mapping[str, xr.Dataset]) -> Figure:
    """Growth by distance for each batch, growth at one distance by batch, growth and delay by distance.

    Args:
        studies: some of `STUDIES`.
    """
    rows = {name: event_rows(data) for name, data in studies.items()}
    widths = [1.25, 0.9] * (BATCHES in rows) + [1.0] * (DISTANCES in rows)
    figure = Figure(figsize=(PAGE, 3.2), layout="constrained")
    grid = figure.add_gridspec(2, len(widths), width_ratios=widths)
    if BATCHES in rows:
        groups = {int(batch): of for batch, of in rows[BATCHES].groupby("batch")}
        found = {batch: at_distance(of) for batch, of in groups.items()}
        left = figure.add_subplot(grid[:, 0])
        _draw_batches(left, groups, found)
        _draw_interpolated(figure.add_subplot(grid[:, 1], sharey=left), found)
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=len(labels))
    if DISTANCES in rows:
        upper = figure.add_subplot(grid[0, -1])
        _draw_distances(upper, figure.add_subplot(grid[1, -1], sharex=upper), rows[DISTANCES])
    caption(
        figure,
        "Measured: medians over the runs that collapsed, with quartiles; (b): 90 % interval; hollow: "
        f"fewer than half collapsed; dashed: {DISTANCE:g} half rates. {short_sizes(studies)}",
    )
    return figure


def _draw_batches(panel: Axes, groups: Mapping[int, pd.DataFrame], found: Mapping[int, AtDistance]) -> None:
    for batch, colour, marker in zip(groups, COLOURS, MARKERS, strict=False):
        half = _half(found[batch])
        label = f"batch {batch}" if half else f"batch {batch}: no half rate among the rates"
        panel.plot([], [], marker, color=colour, label=label)
        if half:
            _draw_medians(panel, groups[batch], growth(groups[batch]), half, colour, marker)
    panel.axvline(DISTANCE, color="0.35", ls="--", lw=0.8)
    panel.set_yscale("log")
    plain_ticks(panel.yaxis)
    panel.set_xlabel("rate / half rate of the batch")
    panel.set_ylabel(FACTOR)
    panel.set_title("(a) by batch")
    panel.grid(alpha=0.25)


def _draw_interpolated(panel: Axes, found: Mapping[int, AtDistance]) -> None:
    for (batch, of), colour, marker in zip(found.items(), COLOURS, MARKERS, strict=False):
        if np.isfinite(of.factor.value):
            ends = bars(of.factor.value, of.factor.low, of.factor.high)
            style = {"color": colour, "ms": 5.1, "capsize": 1.8}
            panel.errorbar(batch, of.factor.value, yerr=ends, fmt=marker, **style)
    panel.set_xscale("log", base=2)
    panel.set_xticks(list(found), [str(batch) for batch in found])
    panel.set_xlim(min(found) / 1.6, max(found) * 1.6)
    panel.set_xlabel("batch")
    panel.tick_params(labelleft=False)
    panel.set_title(f"(b) at {DISTANCE:g} half rates")
    panel.grid(alpha=0.25)


def _draw_distances(upper: Axes, lower: Axes, rows: pd.DataFrame) -> None:
    half = _half(at_distance(rows))
    for panel, values, words in ((upper, growth(rows), FACTOR), (lower, rows["onset"], "steps to the onset")):
        _draw_medians(panel, rows, values, half or 1.0, COLOURS[0], MARKERS[0])
        panel.set_ylabel(words)
        panel.grid(alpha=0.25)
    upper.set_yscale("log")
    plain_ticks(upper.yaxis)
    upper.tick_params(labelbottom=False)
    upper.set_title("(c) by distance")
    lower.set_ylim(bottom=0)
    lower.set_xlabel("rate / half rate" if half else "rate (half rate: below all)")


def _draw_medians(
    panel: Axes, rows: pd.DataFrame, values: pd.Series, half: float, colour: str, marker: str
) -> None:
    """Median and quartiles over the runs that collapsed, by distance."""
    fallen = collapsed(rows)
    shares = fallen.groupby(rows["rate"]).mean()
    for rate, of in values[fallen].groupby(rows["rate"]):
        low, middle, high = np.quantile(of, [0.25, 0.5, 0.75])
        panel.errorbar(
            float(str(rate)) / half,
            middle,
            yerr=bars(middle, low, high),
            fmt=marker,
            color=colour,
            mfc=colour if shares[rate] >= 0.5 else "white",
            ms=3.8,
            capsize=1.2,
            lw=0.8,
        )


def _half(found: AtDistance) -> float | None:
    """The half rate, None if it is not among the rates that were tried."""
    value = found.half.value
    return value if np.isfinite(value) and value > 0 else None
