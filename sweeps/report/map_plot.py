"""Maps and scatters as Bokeh figures: one image whose observable the script of the page exchanges."""

# R rows of pixels, C columns of pixels

import math
from typing import Any

import numpy as np
from bokeh.models import (
    ColorBar,
    ColumnDataSource,
    FixedTicker,
    HoverTool,
    Legend,
    LegendItem,
    LinearColorMapper,
    PlainText,
    Range1d,
)
from bokeh.palettes import Cividis256

from meanmode.sweeps.report.contents import HeatMap, MapSet, Mark, Scatter, Subject
from meanmode.sweeps.report.timeline_plot import COLOURS, TOOLS, Shared, bare_figure, heading, onset_line

HEIGHT, SCATTER = 340, 320
"""Heights in CSS pixels."""

TICKS = (1.0, 64.5, 128.0, 191.5, 255.0)
"""Levels that the colour bar names."""

MARKERS = ("circle", "cross", "square")
"""Markers of the marks that are no lines."""


def map_plot(
    maps: MapSet, number: int, subject: Subject, shared: Shared | None
) -> tuple[Any, dict[str, Any]]:
    """The figure of the maps of a subject, and what the script of the page needs to exchange them.

    Args:
        maps: the maps.
        number: number of the subject on the page.
        subject: the subject.
        shared: range of steps and cursor, for maps over steps.
    """
    joined = shared is not None and maps.over_steps
    right, top = maps.left + maps.width, maps.bottom + maps.height
    plot = bare_figure(
        HEIGHT,
        x_range=shared.steps if joined and shared is not None else Range1d(maps.left, right, bounds="auto"),
        y_range=Range1d(maps.bottom, top, bounds="auto"),
        tools=TOOLS,
        toolbar_location=None,
        name=f"map-{number}",
    )
    _image(plot, maps, number)
    _marks(plot, maps.marks)
    plot.xaxis.axis_label, plot.yaxis.axis_label = PlainText(maps.x_name), PlainText(maps.y_name)
    plot.axis.axis_label_standoff = 4
    plot.xaxis.formatter.use_scientific = False
    plot.grid.visible = False
    if joined and shared is not None:
        plot.add_tools(shared.crosshair())
        if subject.onset is not None:
            plot.add_layout(onset_line(subject.onset))
    return plot, _for_script(maps)


def _image(plot: Any, maps: MapSet, number: int) -> None:
    """The image of the first map, with its colour bar; the others are held beside it."""
    columns = {f"m{at}": [of.levels] for at, of in enumerate(maps.maps)}
    source = ColumnDataSource({"shown": columns["m0"], **columns}, name=f"maps-{number}")
    mapper = LinearColorMapper(palette=Cividis256, low=1, high=255, low_color="rgba(0, 0, 0, 0)")
    plot.image(
        image="shown",
        x=maps.left,
        y=maps.bottom,
        dw=maps.width,
        dh=maps.height,
        source=source,
        color_mapper=mapper,
    )
    bar = ColorBar(
        color_mapper=mapper,
        ticker=FixedTicker(ticks=list(TICKS)),
        major_label_overrides=dict(zip(TICKS, tick_labels(maps.maps[0]), strict=True)),
        orientation="horizontal",
        height=9,
        padding=4,
        background_fill_alpha=0,
        name=f"bar-{number}",
    )
    plot.add_layout(bar, "below")


def _for_script(maps: MapSet) -> dict[str, Any]:
    """What the script of the page needs to exchange the maps and to read their values."""
    extent = {name: getattr(maps, name) for name in ("left", "width", "bottom", "height")}
    held = [
        {name: getattr(of, name) for name in ("name", "definition", "low", "high", "log")}
        | {"labels": tick_labels(of)}
        for of in maps.maps
    ]
    return {**extent, "x": maps.x_name, "y": maps.y_name, "ticks": list(TICKS), "maps": held}


def tick_labels(of: HeatMap) -> list[str]:
    """Values at the levels that the colour bar names."""
    shares = [(level - 1) / 254 for level in TICKS]
    if of.log:
        low, high = math.log(of.low), math.log(of.high)
        return [f"{math.exp(low + share * (high - low)):.2g}" for share in shares]
    return [f"{of.low + share * (of.high - of.low):.3g}" for share in shares]


def _marks(plot: Any, marks: tuple[Mark, ...]) -> None:
    """Draw marks in a light colour with a dark edge, so that they are seen on every level."""
    items = []
    for at, mark in enumerate(marks):
        source = ColumnDataSource({"x": mark.x.astype(np.float32), "y": mark.y.astype(np.float32)})
        if mark.joined:
            plot.line("x", "y", source=source, color="#000000", line_width=4)
            plot.line("x", "y", source=source, color="#FFFFFF", line_width=1.8)
            plot.scatter(
                "x", "y", source=source, color="#FFFFFF", line_color="#000000", size=3, line_width=0.5
            )
            continue
        size = 7 if len(mark.x) < 100 else 4 if len(mark.x) < 400 else 3
        points = plot.scatter(
            "x",
            "y",
            source=source,
            marker=MARKERS[at % len(MARKERS)],
            size=size,
            fill_color="#FFFFFF" if at == 0 else None,
            line_color="#000000" if at == 0 else "#FFFFFF",
            line_width=1 if at == 0 else 2,
        )
        items.append(LegendItem(label={"value": mark.name}, renderers=[points]))
    if items:
        legend = Legend(
            items=items,
            orientation="horizontal",
            location="top_left",
            border_line_alpha=0,
            background_fill_color="#888888",
            background_fill_alpha=0.35,
            label_text_font_size="11px",
            padding=2,
            margin=2,
            spacing=12,
        )
        plot.add_layout(legend, "above")


def scatter_plot(of: Scatter) -> Any:
    """Predicted against measured, with the diagonal."""
    both = np.concatenate([of.predicted, of.measured])
    low, high = float(both.min()), float(both.max())
    log = low > 0 and high > 30 * low
    margin = 0.06 * (high - low) or 1.0
    span = (low / 1.3, high * 1.3) if log else (low - margin, high + margin)
    kind = "log" if log else "linear"
    plot = bare_figure(
        SCATTER,
        max_width=560,
        x_range=Range1d(*span),
        y_range=Range1d(*span),
        x_axis_type=kind,
        y_axis_type=kind,
        tools="",
        toolbar_location=None,
    )
    plot.add_layout(heading(of.quantity), "above")
    plot.line(list(span), list(span), color="#808080", line_dash="dashed")
    source = ColumnDataSource(
        {
            "predicted": of.predicted,
            "measured": of.measured,
            "setting": list(of.settings),
        }
    )
    points = plot.scatter(
        "predicted",
        "measured",
        source=source,
        size=8,
        color=COLOURS[0],
        fill_alpha=0.6,
        line_color=COLOURS[0],
    )
    tips = [("setting", "@setting"), ("predicted", "@predicted"), ("measured", "@measured")]
    plot.add_tools(HoverTool(renderers=[points], tooltips=tips))
    plot.xaxis.axis_label, plot.yaxis.axis_label = PlainText("predicted"), PlainText("measured")
    return plot
