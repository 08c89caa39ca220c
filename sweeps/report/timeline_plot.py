"""Timelines as Bokeh figures: one per panel, with a range of steps and a cursor that all of them share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from bokeh.layouts import gridplot
from bokeh.models import (
    ColumnDataSource,
    CrosshairTool,
    DataRange1d,
    FixedTicker,
    GridPlot,
    Legend,
    LegendItem,
    PlainText,
    Range1d,
    Span,
    Title,
)
from bokeh.plotting import figure

from meanmode.sweeps.report.contents import Panel, Subject

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
"""Those colours of Okabe and Ito that are seen on white and on black."""

MARK, GREY = "#D55E00", "#808080"
"""Colour of the onset, and of the cursor and other lines."""

TOOLS = "xpan,xbox_zoom,xwheel_zoom,reset"

HEIGHT, LEGEND, AXIS = 136, 20, 22
"""Heights in CSS pixels of a panel, of a legend, and of the name of an axis."""

DECADES = 4
"""Labels of a logarithmic axis."""

MOST_ALIGNED = 24
"""Panels of several subjects up to which those that a subject lacks are left free, so that rows align."""


@dataclass(kw_only=True, slots=True)
class Shared:
    """What the figures of a page share.

    Attributes:
        steps: range of the steps of all timelines.
        cursor: vertical line at the chosen step.
        heights: title and kind of axis -> range of the values.
    """

    steps: Range1d
    cursor: Span
    heights: dict[tuple[str, bool], DataRange1d] = field(default_factory=dict)

    @classmethod
    def over(cls, subjects: Sequence[Subject]) -> "Shared | None":
        """For some subjects; None if none of them has steps."""
        lines = [line for subject in subjects for panel in subject.panels for line in panel.lines]
        firsts = [float(line.x[0]) for line in lines]
        lasts = [float(line.x[-1]) for line in lines]
        for subject in subjects:
            if subject.maps is not None and subject.maps.over_steps:
                firsts.append(subject.maps.left + 0.5)
                lasts.append(subject.maps.left + subject.maps.width - 0.5)
        if not firsts:
            return None
        first, last = min(firsts), max(max(lasts), min(firsts) + 1)
        onsets = [subject.onset for subject in subjects if subject.onset is not None]
        margin = 0.01 * (last - first)
        steps = Range1d(first - margin, last + margin, bounds=(first - margin, last + margin), name="steps")
        cursor = Span(
            dimension="height",
            location=onsets[0] if onsets else last,
            line_color=GREY,
            line_width=1.5,
            level="overlay",
            name="cursor",
        )
        return cls(steps=steps, cursor=cursor)

    def crosshair(self) -> CrosshairTool:
        """A tool that moves the cursor."""
        return CrosshairTool(overlay=self.cursor, dimensions="height")


def timelines_plot(
    subject: Subject, number: int, titles: Sequence[str], shared: Shared
) -> tuple[GridPlot, list[dict[str, Any]]]:
    """The panels of a subject below each other, and for the script of the page what its curves are called.

    Args:
        subject: the subject.
        number: its number on the page.
        titles: panels in their order; those that the subject lacks are left free.
        shared: range of steps and cursor.
    """
    held = {panel.title: (place, panel) for place, panel in enumerate(subject.panels)}
    figures, curves = [], []
    for title in titles:
        if title not in held:
            figures.append(_blank(title, shared))
            continue
        place, panel = held[title]
        plot = _panel(panel, f"{number}-{place}", subject, shared)
        figures.append(plot)
        for at, line in enumerate(panel.lines):
            name = panel.title if len(panel.lines) == 1 else line.name
            curves.append({"source": f"line-{number}-{place}-{at}", "name": name})
    figures[-1].xaxis.axis_label = PlainText("step")
    figures[-1].height += AXIS
    grid = gridplot(
        [[of] for of in figures],
        sizing_mode="stretch_width",
        toolbar_location="above",
        toolbar_options={"logo": None},
    )
    return grid, curves


def bare_figure(height: int, **options: Any) -> Any:
    """A figure without a background of its own, as wide as the page allows, on which touching scrolls."""
    plot = figure(
        height=height,
        min_width=200,
        sizing_mode="stretch_width",
        active_drag=None,
        active_scroll=None,
        background_fill_alpha=0,
        border_fill_alpha=0,
        min_border_left=56,
        min_border_right=14,
        **options,
    )
    plot.axis.minor_tick_line_alpha = 0
    return plot


def _figure(height: int, shared: Shared, **options: Any) -> Any:
    plot = bare_figure(height, x_range=shared.steps, tools=TOOLS, **options)
    plot.add_tools(shared.crosshair())
    plot.yaxis.ticker.desired_num_ticks = 4
    plot.xaxis.formatter.use_scientific = False
    return plot


def _panel(panel: Panel, name: str, subject: Subject, shared: Shared) -> Any:
    size = max(float(np.abs(line.y).max()) for line in panel.lines)
    heights = shared.heights.setdefault((panel.title, panel.log), DataRange1d(default_span=size or 1.0))
    several = len(panel.lines) > 1
    plot = _figure(
        HEIGHT + (LEGEND if several else 0),
        shared,
        y_axis_type="log" if panel.log else "linear",
        y_range=heights,
    )
    if panel.log:
        low = min(float(line.y.min()) for line in panel.lines)
        high = max(float(line.y.max()) for line in panel.lines)
        decades = math.log10(high) - math.log10(low)
        if decades > DECADES:
            every = math.ceil(decades / DECADES)
            plot.yaxis.ticker = FixedTicker(ticks=[10.0**of for of in range(-308, 309, every)])
    drawn = []
    for at, line in enumerate(panel.lines):
        # in double precision: a loss that diverges may be beyond single precision, and would be no number
        source = ColumnDataSource({"x": line.x, "y": line.y}, name=f"line-{name}-{at}")
        dash = "solid" if at < len(COLOURS) else "dashed"
        colour = COLOURS[at % len(COLOURS)]
        drawn.append(plot.line("x", "y", source=source, color=colour, line_width=1.6, line_dash=dash))
        if len(line.x) < 60:
            plot.scatter("x", "y", source=source, color=colour, size=4)
    if several:
        items = [
            LegendItem(label={"value": of.name}, renderers=[by])
            for of, by in zip(panel.lines, drawn, strict=True)
        ]
        legend = Legend(
            items=items,
            orientation="horizontal",
            location="top_left",
            border_line_alpha=0,
            background_fill_alpha=0,
            label_text_font_size="11px",
            label_height=14,
            glyph_height=14,
            padding=0,
            margin=0,
            spacing=12,
        )
        plot.add_layout(legend, "above")
    plot.add_layout(heading(panel.title), "above")
    if panel.level is not None:
        plot.add_layout(Span(location=panel.level, dimension="width", line_dash="dashed", line_color=GREY))
    for step in subject.alarms:
        plot.add_layout(Span(location=step, dimension="height", line_dash="dotted", line_color=GREY))
    if subject.onset is not None:
        plot.add_layout(onset_line(subject.onset))
    return plot


def heading(text: str) -> Title:
    """What a figure shows, above it."""
    return Title(text=PlainText(text), text_font_size="12.5px", text_font_style="normal")


def onset_line(step: int) -> Span:
    """A line at the onset."""
    return Span(
        location=step, dimension="height", line_dash="dashed", line_width=1.6, line_color=MARK, name="onset"
    )


def _blank(title: str, shared: Shared) -> Any:
    """An empty panel, in place of one that other subjects have."""
    plot = _figure(HEIGHT, shared, y_range=Range1d(0, 1))
    plot.line([math.nan], [math.nan])
    plot.add_layout(heading(f"{title}: not logged"), "above")
    plot.yaxis.visible = False
    return plot
