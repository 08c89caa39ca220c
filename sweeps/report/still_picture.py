"""A still picture of a run, for readers without JavaScript: the loss, and the first map with its front."""

import io
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from meanmode.sweeps.report.contents import MapSet, Subject

RESOLUTION = 80
"""Pixels per inch."""


def still_picture(subject: Subject) -> bytes | None:
    """A PNG of the first timelines and the first map of a subject; None if it has neither."""
    panels = subject.panels[:2]
    rows = len(panels) + (subject.maps is not None)
    if not rows:
        return None
    picture = Figure(
        figsize=(7.5, 1.9 * rows + (0.8 if subject.maps is not None else 0)), layout="constrained"
    )
    ratios = [1.0] * len(panels) + ([1.5] if subject.maps is not None else [])
    axes = np.ravel(picture.subplots(rows, 1, squeeze=False, height_ratios=ratios))
    for axis, panel in zip(axes, panels, strict=False):
        for line in panel.lines:
            axis.plot(line.x, line.y, lw=1)
        axis.set_title(_plain(panel.title), fontsize=9, loc="left")
        if panel.log:
            axis.set_yscale("log")
        if subject.onset is not None:
            axis.axvline(subject.onset, color="#D55E00", ls="--", lw=1)
    if subject.maps is not None:
        _draw_map(axes[-1], subject.maps)
    held = io.BytesIO()
    picture.savefig(held, format="png", dpi=RESOLUTION)
    return held.getvalue()


def _draw_map(axis: Any, maps: MapSet) -> None:
    first = maps.maps[0]
    levels = np.ma.masked_equal(first.levels, 0)
    extent = (maps.left, maps.left + maps.width, maps.bottom, maps.bottom + maps.height)
    axis.imshow(levels, origin="lower", aspect="auto", extent=extent, cmap="cividis", interpolation="nearest")
    for mark in maps.marks:
        style = "-" if mark.joined else "."
        axis.plot(mark.x, mark.y, style, color="white", lw=1.2, ms=3)
    axis.set_xlim(*extent[:2])
    axis.set_ylim(*extent[2:])
    axis.set_xlabel(maps.x_name)
    axis.set_ylabel(maps.y_name)
    axis.set_title(_plain(first.name), fontsize=9, loc="left")


def _plain(text: str) -> str:
    """A text without what matplotlib would read as a formula."""
    return text.replace("$", r"\$")
