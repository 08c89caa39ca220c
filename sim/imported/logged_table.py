"""The table that every form of a log is read into: columns of numbers by name, over the rows of the file."""

# R rows of the file, N values of a column

import math
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meanmode.sim.imported.file_kinds import EXPECTED

MOST_ROWS, MOST_COLUMNS = 20_000_000, 20_000
"""Bounds of a log: numbers are kept in memory, twelve bytes each."""


NO_NUMBERS = ("none", "null")
"""Words that stand for a value that was logged and is no number."""


IDENTITIES = (
    *("rank", "local_rank", "global_rank", "process", "process_index", "process_id", "worker", "worker_id"),
    *("run", "run_id", "run_name", "run_idx", "replica", "seed", "trial", "host", "hostname", "node"),
)
"""Columns that say which of several runs or processes a row belongs to, also as the last part of a path."""


@dataclass(slots=True)
class LoggedColumn:
    """Values of one name: the rows that have one, and the numbers."""

    rows: "array[int]" = field(default_factory=lambda: array("i"))
    values: "array[float]" = field(default_factory=lambda: array("d"))

    def arrays(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Rows [N] and values [N]."""
        return np.array(self.rows, np.int64), np.array(self.values, np.float64)


class LoggedTable:
    """Collects the rows of a log.

    Args:
        only: column and text of its value; rows with another value are passed over.

    Attributes:
        columns: name -> values.
        identities: name of an identity column -> the text of its value in every row that has one.
        count: number of rows.
        config: configuration of the run, as far as the log states it.
        layerwise: names that the log itself declares to be by layer.
        notes: sentences about the log as a whole.
    """

    def __init__(self, only: tuple[str, str] | None = None) -> None:
        self.only = only
        self.columns: dict[str, LoggedColumn] = {}
        self.identities: dict[str, tuple[dict[str, int], LoggedColumn]] = {}
        self.count = 0
        self.config: dict[str, Any] = {}
        self.layerwise: set[str] = set()
        self.notes: list[str] = []
        self._skipped: dict[str, list[int]] = {}
        self._texts: dict[str, int] = {}

    def row(self, line: int, fields: Iterable[tuple[str, Any]]) -> None:
        """Add a row: names and their values, as numbers or text; text that is no number is noted.

        Raises:
            ValueError: the log has too many rows or columns.
        """
        if self.only is not None:
            fields = list(fields)
            if not any(name == self.only[0] and text_of(value) == self.only[1] for name, value in fields):
                self.skip(f"rows whose {self.only[0]} is not {self.only[1]}", line)
                return
        row = self.count
        columns = self.columns
        for name, given in fields:
            value = given if type(given) is float else number(given)
            column = columns.get(name)
            if column is None:
                if is_identity(name):
                    self._identify(name, row, given)
                if value is None:
                    self._texts[name] = self._texts.get(name, 0) + 1
                    continue
                if is_identity(name):
                    continue
                column = columns[name] = self._new()
            elif value is None:
                self._texts[name] = self._texts.get(name, 0) + 1
                continue
            column.rows.append(row)
            column.values.append(value)
        self.count += 1
        if self.count > MOST_ROWS:
            raise ValueError(f"the log has more than {MOST_ROWS:,} rows: log fewer, or give a part of it")

    def _new(self) -> LoggedColumn:
        if len(self.columns) >= MOST_COLUMNS:
            raise ValueError(
                f"the log has more than {MOST_COLUMNS:,} names of values: it is no table of steps"
            )
        return LoggedColumn()

    def _identify(self, name: str, row: int, value: Any) -> None:
        texts, column = self.identities.setdefault(name, ({}, LoggedColumn()))
        column.rows.append(row)
        column.values.append(texts.setdefault(text_of(value), len(texts)))

    def skip(self, what: str, line: int) -> None:
        """Count a line or a value that is left out; `what` is plural, such as "lines that are not JSON"."""
        counted = self._skipped.setdefault(what, [0, line])
        counted[0] += 1

    def said(self) -> list[str]:
        """All notes, in order."""
        notes = list(self.notes)
        for what, (count, line) in self._skipped.items():
            notes.append(f"{what} were left out: {count:,}, the first in line {line}")
        texts = [name for name in self._texts if not is_identity(name)]
        if texts:
            shown = ", ".join(texts[:8]) + (f" and {len(texts) - 8} more" if len(texts) > 8 else "")
            notes.append(f"values of {shown} are no numbers and were left out")
        return notes

    def require_values(self, path: object) -> None:
        """Refuse a log without a single value.

        Raises:
            ValueError: it has none.
        """
        if not any(len(column.values) for column in self.columns.values()):
            chosen = f" with {self.only[0]} {self.only[1]}" if self.only is not None else ""
            raise ValueError(f"{path} contains no values{chosen}: {EXPECTED}")


def is_identity(name: str) -> bool:
    """Whether a column says which run or process a row belongs to."""
    return name.rpartition("/")[2].lower() in IDENTITIES


def text_of(value: Any) -> str:
    """Text of a value as a person writes it: 0, not 0.0."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def number(value: Any) -> float | None:
    """Number in a field, possibly as text; NaN for null, None if it is not a number."""
    if value is None:
        return math.nan
    if type(value) is not str and isinstance(value, (bool, list, dict)):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan if isinstance(value, str) and value.lower() in NO_NUMBERS else None


def flattened(row: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    """Names and values of an object; those of an inner object are named OUTER/INNER."""
    if not any(type(value) is dict for value in row.values()):
        return row.items()
    found: list[tuple[str, Any]] = []
    pending: list[tuple[str, Any]] = list(reversed(row.items()))
    while pending:
        name, value = pending.pop()
        # wandb's media and histograms are objects that say their type
        if isinstance(value, dict) and "_type" not in value:
            pending += [(f"{name}/{inner}", given) for inner, given in reversed(value.items())]
        else:
            found.append((name, value))
    return found


def long_form(fields: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    """Fields of a row; one with a `name` and a `value` is a value of that name, with its step."""
    if "name" in fields and "value" in fields and isinstance(fields["name"], str) and fields["name"]:
        rest = [(name, value) for name, value in fields.items() if name not in ("name", "value")]
        return [*rest, (fields["name"], fields["value"])]
    return flattened(fields)
