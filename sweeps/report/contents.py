"""What a report holds, as plain data: verdicts, timelines, maps, tables; nothing here is drawn."""

# N points, M measured rows, R rows of pixels, C columns of pixels

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LONGEST_NAME, LONGEST_TEXT = 60, 2000
"""Characters of a name and of a longer text from a file that are shown."""


def shown(text: Any, longest: int = LONGEST_NAME) -> str:
    """A text from a file as it is shown: printable, on one line, cut to a readable length."""
    line = " ".join(str(text).split())
    plain = "".join(letter if letter.isprintable() else "?" for letter in line[: longest + 1])
    return plain if len(plain) <= longest else plain[: longest - 3] + "..."


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One curve of a timeline.

    Attributes:
        name: what is drawn.
        x: steps [N].
        y: finite values [N].
    """

    name: str
    x: Array
    y: Array


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """Curves over steps that share an axis.

    Attributes:
        title: what the panel shows.
        lines: its curves.
        log: whether the axis is logarithmic.
        level: height of a horizontal line; None for none.
        level_name: what the line is, such as the initial loss; empty without one.
    """

    title: str
    lines: tuple[Line, ...]
    log: bool = False
    level: float | None = None
    level_name: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeatMap:
    """An observable over two axes, reduced to pixels.

    Attributes:
        name: name of the observable, with its writer.
        definition: what it is.
        levels: 0 where nothing was measured, else 1 to 255 from `low` to `high` [R, C].
        low: value of level 1.
        high: value of level 255.
        log: whether levels are equidistant in the logarithm.
    """

    name: str
    definition: str
    levels: NDArray[np.uint8]
    low: float
    high: float
    log: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """A line or points drawn into all maps of a set, such as the collapse front.

    Attributes:
        name: what is marked.
        x: positions along the horizontal axis [N]; NaN interrupts a line.
        y: positions along the vertical axis [N].
        joined: whether the points are joined by a line.
    """

    name: str
    x: Array
    y: Array
    joined: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class MapSet:
    """Maps of one subject over the same axes.

    Attributes:
        maps: the maps, the first of which is shown first.
        left, width: extent along the horizontal axis.
        bottom, height: extent along the vertical axis.
        x_name, y_name: what the axes are.
        over_steps: whether the horizontal axis is that of the timelines.
        marks: what is drawn into all maps.
        said: how many of how many are there, and how they were reduced.
    """

    maps: tuple[HeatMap, ...]
    left: float
    width: float
    bottom: float
    height: float
    x_name: str
    y_name: str
    over_steps: bool
    marks: tuple[Mark, ...] = ()
    said: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table; its cells are texts, numbers, or None.

    Attributes:
        title: what it shows.
        columns: headings.
        rows: cells of every row.
        note: a sentence below the title.
        folded: whether it is shown only on demand.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    note: str = ""
    folded: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Scatter:
    """Predicted against measured values of one quantity.

    Attributes:
        quantity: what was predicted.
        predicted, measured: finite values [N].
        settings: the setting of each point, in words.
    """

    quantity: str
    predicted: Array
    measured: Array
    settings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """One run, store or log of a report.

    Attributes:
        name: its path as the user gave it.
        kind: what it is, in words.
        verdict: the answer in one sentence.
        tone: `bad` for a run that failed, `good` for one that did not and learned, `open` for all else.
        facts: label -> sentence, in the order in which they are read.
        cannot_say: what is left open; phrases that follow "cannot say".
        notes: what was noticed.
        panels: timelines.
        onset: step to mark in the timelines; None for none.
        alarms: steps of alarms to mark.
        maps: heat maps; None where nothing was measured by block.
        scatters: predictions beside measurements.
        tables: tables.
        reports: title and text of event reports.
        next_steps: what to try next and, where there is one, the command.
        unfinished: whether more may come; of a log this is not known.
    """

    name: str
    kind: str
    verdict: str
    tone: str
    facts: tuple[tuple[str, str], ...] = ()
    cannot_say: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    panels: tuple[Panel, ...] = ()
    onset: int | None = None
    alarms: tuple[int, ...] = ()
    maps: MapSet | None = None
    scatters: tuple[Scatter, ...] = ()
    tables: tuple[Table, ...] = ()
    reports: tuple[tuple[str, str], ...] = ()
    next_steps: tuple[tuple[str, str], ...] = ()
    unfinished: bool = False


def rows_table(
    title: str, rows: Sequence[dict[str, Any]], *, most: int, note: str = "", folded: bool = False
) -> Table:
    """A table of rows with the same meaning; columns without any value are left out.

    Args:
        title: what it shows.
        rows: column -> value, of every row.
        most: rows that are shown at most; the note says if there are more.
        note: a sentence below the title.
        folded: whether it is shown only on demand.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    columns = [name for name in names if any(row.get(name) is not None for row in rows)]
    if len(rows) > most:
        note = f"{note} The first {most} of {len(rows)} rows.".strip()
    cells = tuple(tuple(row.get(name) for name in columns) for row in rows[:most])
    return Table(
        title=title,
        columns=tuple(shown(name).replace("_", " ") for name in columns),
        rows=cells,
        note=note,
        folded=folded,
    )
