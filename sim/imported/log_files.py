"""Training telemetry logged elsewhere: the published viewer file, tables of steps, TensorBoard files."""

# N values of a series

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from meanmode.sim.imported.event_files import event_files, is_event_file, read_scalars

MARKER = re.compile(r"window\.TRAINING_DATA\s*=\s*")
"""What precedes the document in the viewer's page."""


WHOLE = 2**53
"""Below this, a float64 represents every whole number exactly."""


EXPECTED = (
    "expected the published viewer page or its JSON, JSON lines or CSV of step, name and value, "
    "or TensorBoard event files"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """Values of one quantity [N] at strictly increasing steps [N]."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Log:
    """Content of a telemetry source.

    Attributes:
        form: format of the source.
        files: the files that were read.
        series: name in the source -> its values; `NAME/LAYER` for the value of one layer.
        layerwise: names that the source itself declares to be by layer.
        config: configuration of the run, as far as the source states it.
        notes: sentences that say what was left out or replaced.
    """

    form: Literal["viewer", "table", "events"]
    files: tuple[Path, ...]
    series: dict[str, Series]
    layerwise: frozenset[str] = frozenset()
    config: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class _Values:
    """Collects steps and values by name, and the names that had values which are not numbers."""

    def __init__(self) -> None:
        self._taken: dict[str, tuple[list[int], list[float]]] = {}
        self._left_out: dict[str, None] = {}

    def put(self, name: str, step: int, value: float | None) -> None:
        """Add the next value of a quantity; None stands for a value that is not a number."""
        if value is None:
            self._left_out[name] = None
            return
        steps, values = self._taken.setdefault(name, ([], []))
        steps.append(step)
        values.append(value)

    def series(self, path: Path) -> tuple[dict[str, Series], tuple[str, ...]]:
        """All quantities in order of their steps, and notes about what was left out or replaced."""
        found, notes = _ordered(
            {name: (np.array(s), np.array(v)) for name, (s, v) in self._taken.items()}, path
        )
        if self._left_out:
            notes += (f"values of {', '.join(self._left_out)} are no numbers and were left out",)
        return found, notes


def read_log(path: str | Path) -> Log:
    """Read the telemetry in a file, or in a folder of TensorBoard event files of one run.

    If a quantity has several values at one step, as after a restart, the later one counts; a note says so.
    NaN and infinities are kept; null in JSON is NaN. The viewer's document is
    {"config", "scalars": {name: {"s": steps, "v": values}}, "layerwise": {name: {layer: the same}}}.
    A table has a `step` in every row, and either a `name` and a `value` (long form) or quantities by name
    (wide form, in which an empty CSV field means not measured, and values that are not numbers are left out).

    Raises:
        ValueError: the file is not telemetry, or is damaged; the message gives the line or the position.
        OSError: the file cannot be read.
    """
    path = Path(path)
    if path.is_dir() or is_event_file(path):
        return _events(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a telemetry file: {EXPECTED}") from error
    suffix, marker = path.suffix.lower(), MARKER.search(text)
    head = text.lstrip().partition("\n")[0]
    if suffix == ".csv" or (suffix not in (".json", ".jsonl") and "step" in _header(head)):
        return _table(_csv_rows(path, text), path)
    if suffix == ".jsonl" or (marker is None and _is_row(head)):
        return _table(_json_rows(path, text), path)
    if marker is None and not head.startswith("{"):
        raise ValueError(f"{path} is not a telemetry file: {EXPECTED}")
    return _viewer(_document(path, text[marker.end() if marker else 0 :].lstrip()), path)


def _header(line: str) -> list[str]:
    return [name.strip().strip('"') for name in line.split(",")]


def _is_row(line: str) -> bool:
    """Whether a line is a JSON object other than a viewer document."""
    try:
        row = json.loads(line)
    except ValueError:
        return False
    return isinstance(row, dict) and "scalars" not in row


def _document(path: Path, text: str) -> dict[str, Any]:
    """Parse the JSON object at the start of the text and ignore what follows it."""
    try:
        document, _ = json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is truncated or damaged: {error.msg} at character {error.pos} of its JSON; get it again"
        ) from error
    if not isinstance(document, dict) or not isinstance(document.get("scalars"), dict):
        raise ValueError(f"{path} is not a viewer document: it has no scalars; {EXPECTED}")
    for name in ("config", "layerwise"):
        if not isinstance(document.setdefault(name, {}), dict):
            raise ValueError(f"{path} is not a viewer document: its {name} is not an object")
    return document


def _viewer(document: dict[str, Any], path: Path) -> Log:
    """Convert the published document."""
    given = dict(document["scalars"])
    for name, layers in document["layerwise"].items():
        if not isinstance(layers, dict) or not all(layer.isdecimal() for layer in layers):
            raise ValueError(f"{path} is damaged: {name} is layer-wise, so its keys must be layer numbers")
        given |= {f"{name}/{layer}": values for layer, values in layers.items()}
    series, notes = _ordered({name: _pair(path, name, values) for name, values in given.items()}, path)
    layerwise = frozenset(document["layerwise"])
    return Log(
        form="viewer",
        files=(path,),
        series=series,
        layerwise=layerwise,
        config=document["config"],
        notes=notes,
    )


def _pair(path: Path, name: str, given: Any) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Steps and values of one quantity in a viewer document."""
    try:
        steps, values = (np.asarray(given[key], np.float64) for key in ("s", "v"))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f'{path} is damaged: {name} must be {{"s": steps, "v": values}} of numbers'
        ) from error
    if steps.ndim != 1 or steps.shape != values.shape:
        raise ValueError(f"{path} is damaged: {name} has {steps.size} steps and {values.size} values")
    broken = steps[~((np.abs(steps) < WHOLE) & (steps == np.floor(steps)))]
    if len(broken):
        raise ValueError(
            f"{path} is damaged: {name} has a value at step {broken[0]:g}, which is not a whole number"
        )
    return steps.astype(np.int64), values


def _ordered(
    given: Mapping[str, tuple[ArrayLike, ArrayLike]], path: Path
) -> tuple[dict[str, Series], tuple[str, ...]]:
    """Sort every series by step, keep the later of two values at one step, and note where that happened."""
    found, back, replaced = {}, None, 0
    for name, (steps, values) in given.items():
        s, v = np.asarray(steps, np.int64), np.asarray(values, np.float64)
        if not len(s):
            continue
        falls = np.flatnonzero(np.diff(s) < 0)
        if len(falls) and back is None:
            back = f"steps go back, first from {s[falls[0]]} to {s[falls[0] + 1]} ({name})"
        # reversed, so that np.unique keeps the last value of each step
        unique, index = np.unique(s[::-1], return_index=True)
        replaced += len(s) - len(unique)
        found[name] = Series(steps=unique, values=v[::-1][index])
    if not found:
        raise ValueError(f"{path} contains no values: {EXPECTED}")
    counted = f"{replaced} values are given again at the same step, of which the later one counts"
    return found, tuple(note for note in (back, counted if replaced else None) if note)


def _table(rows: Iterator[tuple[int, dict[str, Any]]], path: Path) -> Log:
    """Convert rows of a table; a row with a `name` and a `value` is in long form, any other in wide form."""
    taken = _Values()
    for line, row in rows:
        if "step" not in row:
            raise ValueError(f"{path} line {line} has no step: every row needs a field named step")
        step = _number(row["step"])
        if step is None or not abs(step) < WHOLE or step != int(step):
            raise ValueError(f"{path} line {line}: the step must be a whole number, got {row['step']!r}")
        if not {"name", "value"} <= row.keys():
            for name, given in row.items():
                if name not in ("step", "") and given != "":
                    taken.put(name, int(step), _number(given))
            continue
        value = _number(row["value"])
        if value is None or not isinstance(row["name"], str) or not row["name"]:
            raise ValueError(
                f"{path} line {line}: {row['name']!r} must be a name with a number as its value, "
                f"got {row['value']!r}"
            )
        taken.put(row["name"], int(step), value)
    series, notes = taken.series(path)
    return Log(form="table", files=(path,), series=series, notes=notes)


def _number(value: Any) -> float | None:
    """Number in a field, possibly as text; NaN for null, None if it is not a number."""
    if value is None:
        return math.nan
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line number and object of every non-empty line."""
    # a line of JSON may contain characters at which splitlines would split it
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} line {line} is not JSON ({error.msg}): fix or delete it") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path} line {line} is not a JSON object: {EXPECTED}")
        yield line, row


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line number and fields of every row; the first row holds the names."""
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)
    try:
        names = [name.strip() for name in next(reader, [])]
        twice = [name for name in names if name and names.count(name) > 1]
        if twice:
            raise ValueError(f"{path} line 1 has {twice[0]} twice: every column needs a name of its own")
        for fields in reader:
            if fields and len(fields) != len(names):
                raise ValueError(
                    f"{path} line {reader.line_num} has {len(fields)} fields, but the header has {len(names)}"
                )
            if fields:
                yield reader.line_num, dict(zip(names, (text.strip() for text in fields), strict=True))
    except csv.Error as error:
        raise ValueError(f"{path} line {reader.line_num} is not CSV ({error})") from error


def _events(path: Path) -> Log:
    """Read the scalars of TensorBoard event files, one file after the other."""
    files, taken = event_files(path), _Values()
    cut: list[str] = []
    for file in files:
        for name, step, value in read_scalars(file, cut.append):
            taken.put(name, step, value)
    series, notes = taken.series(path)
    return Log(form="events", files=tuple(files), series=series, notes=(*cut, *notes))
