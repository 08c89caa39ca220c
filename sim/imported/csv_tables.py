"""CSV tables of any separator: Lightning, guided-diffusion, timm, wandb and TensorBoard exports."""

import csv
import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain

from meanmode.sim.imported.known_names import STEPS, normalised
from meanmode.sim.imported.log_text import LogText
from meanmode.sim.imported.logged_table import LoggedTable, long_form, number

SEPARATORS = (",", ";", "\t", "|")


SAMPLE = 20
"""Lines from which the separator is told."""


VALUE = re.compile(r"[:=]\s{0,20}[-+.]?\d")
"""A value beside its name, as in a line of text and not in a header."""


EXPORTED = re.compile(r"run-.*-tag-(?P<tag>.+)")
"""Name of a file that TensorBoard exports."""


Fields = list[str]


def recognise(text: LogText) -> bool:
    """Whether a line of names is followed by rows of numbers."""
    return separator(text) is not None


def separator(text: LogText) -> str | None:
    """The separator of a table; None if the text is none."""
    lines = text.head_lines(SAMPLE)
    while len(lines) > 2 and lines[0].startswith("#") and not _is_table(lines[:2], SEPARATORS):
        lines = lines[1:]
    found = [mark for mark in SEPARATORS if _is_table(lines, (mark,))]
    if found:
        return max(found, key=lambda mark: len(_split(lines[0], mark)))
    one = text.suffix == ".csv" and len(lines) > 1 and number(lines[0].strip()) is None
    return "," if one and number(lines[1].strip()) is not None else None


def _split(line: str, mark: str) -> Fields:
    try:
        return [
            field.strip() for field in next(csv.reader([line], delimiter=mark, skipinitialspace=True), [])
        ]
    except csv.Error:
        return []


def _is_table(lines: list[str], marks: tuple[str, ...]) -> bool:
    """Whether the first line holds names and most others as many fields, mostly numbers."""
    for mark in marks:
        header = _split(lines[0].lstrip("#"), mark)
        rows = [_split(line, mark) for line in lines[1:]]
        names = [name for name in header if name]
        if len(header) < 2 or len(names) < 2:
            continue
        if any(number(name) is not None or VALUE.search(name) for name in names):
            continue
        if len(lines) == 1:
            return {normalised(name) for name in names} & {*STEPS, "epoch", "loss"} != set()
        numeric = [row for row in rows if len(row) > 1 and any(_looks_numeric(field) for field in row)]
        alike = [row for row in rows if len(row) >= 2 and abs(len(row) - len(header)) <= len(header) // 2]
        if len(alike) >= len(rows) / 2 and len(numeric) >= len(rows) / 3:
            return True
    return False


def _looks_numeric(field: str) -> bool:
    """Whether a field is a number, possibly with a decimal comma."""
    return number(field) is not None or number(field.replace(".", "").replace(",", ".")) is not None


def parse(text: LogText, table: LoggedTable) -> None:
    """Add every row below the header.

    A header that comes again, as after a resume, replaces the one before it. Shorter rows have no values in
    the columns they lack, except a last row that is cut; longer ones count only if several are as long.
    """
    mark = separator(text) or ","
    columns: _Columns | None = None
    known: set[int] = set()
    pending: tuple[int, Fields] | None = None
    again = 0
    for line, fields, last in _rows(text, mark):
        if columns is None or _is_header(fields, columns.header):
            if columns is None and len(fields) < 2 and fields[0].startswith("#"):
                continue
            again += columns is not None
            columns = _Columns(fields, mark, text, table)
            known.add(len(fields))
            continue
        if pending is not None:
            if len(pending[1]) == len(fields):
                known.add(len(fields))
                columns.put(*pending)
            else:
                table.skip("rows with more fields than the header", pending[0])
            pending = None
        if (
            len(fields) > len(columns.header)
            and len(fields) not in known
            and any(fields[len(columns.header) :])
        ):
            pending = line, fields
        elif last and len(fields) < len(columns.header):
            table.notes.append(f"the last line ({line}) is cut short and was left out")
        else:
            columns.put(line, fields)
    if pending is not None:
        table.skip("rows with more fields than the header", pending[0])
    if again:
        table.notes.append(f"the header comes again, as after a resume, and was passed over: {again:,}")


def _rows(text: LogText, mark: str) -> Iterator[tuple[int, Fields, bool]]:
    """Yield line number and fields of every row, and whether it is the last."""
    numbers = [0]

    def content() -> Iterator[str]:
        for line, row in text.lines():
            numbers[0] = line
            # a NUL is where a disk lost a block
            yield row.replace("\0", "") + "\n"

    reader = csv.reader(content(), delimiter=mark, skipinitialspace=True)
    before: tuple[int, Fields] | None = None
    while True:
        try:
            fields = next(reader, None)
        except csv.Error:
            continue
        if fields is None:
            break
        if before is not None:
            yield *before, False
        before = numbers[0], [field.strip() for field in fields]
    if before is not None:
        yield *before, True


def _names(header: Fields, text: LogText, table: LoggedTable) -> list[tuple[str, str]]:
    """Run, mostly empty, and name of every column; an empty name marks a column that is left out."""
    header = [name.lstrip("# ") if index == 0 else name for index, name in enumerate(header)]
    if [name.lower() for name in header] == ["wall time", "step", "value"]:
        exported = EXPORTED.fullmatch(text.stem)
        return [("", ""), ("", "step"), ("", exported["tag"] if exported else text.stem)]
    if any(name.endswith(("__MIN", "__MAX")) for name in header):
        parts = [name.rpartition(" - ") for name in header]
        runs = {run for run, _, name in parts if run}
        return [
            ("", "") if name.endswith(("__MIN", "__MAX")) else (run if len(runs) > 1 else "", name)
            for run, _, name in parts
        ]
    found: list[tuple[str, str]] = []
    seen: Counter[str] = Counter()
    for name in header:
        times = seen[name]
        seen[name] += 1
        if name and times:
            table.notes.append(f"the header has {name} twice: the later column is called {name}_{times + 1}")
        found.append(("", f"{name}_{times + 1}" if name and times else name))
    return found


def _is_header(fields: Fields, header: Fields) -> bool:
    """Whether a row repeats the header, possibly with further columns."""
    if header[0] not in fields:
        return False
    shared = len(set(fields) & set(header))
    return shared >= len(set(header)) / 2 and all(number(field) is None for field in fields if field)


class _Columns:
    """The columns of a table, which put its rows into a log.

    Args:
        header: names as in the file.
        mark: separator; with any other than a comma, numbers may have decimal commas.
        text: the file.
        table: the log.
    """

    def __init__(self, header: Fields, mark: str, text: LogText, table: LoggedTable) -> None:
        self.header, self._mark, self._table = header, mark, table
        self._names = _names(header, text, table)
        names = {name for _, name in self._names}
        self._long = {"name", "value"} <= names
        self._plain = [name for _, name in self._names]
        self._simple = mark == "," and not self._long and not any(run for run, _ in self._names)

    def put(self, line: int, fields: Fields) -> None:
        """Add a row; an empty field is not measured. Columns of several runs give a row for each."""
        if self._simple:
            pairs = [pair for pair in zip(self._plain, fields, strict=False) if pair[0] and pair[1]]
            self._table.row(line, pairs)
            return
        given = [
            (run, name, self._decimal(field))
            for (run, name), field in zip(self._names, fields, strict=False)
            if name and field
        ]
        runs = dict.fromkeys(run for run, _, _ in given if run)
        for run in runs:
            own = ((name, field) for of, name, field in given if of in ("", run))
            self._table.row(line, chain((("run", run),), own))
        if not runs:
            row = {name: field for _, name, field in given}
            self._table.row(line, long_form(row) if self._long else row.items())

    def _decimal(self, field: str) -> str:
        """The field with a decimal point, if it is a number with a decimal comma."""
        if self._mark == "," or "," not in field or number(field) is not None:
            return field
        pointed = field.replace(".", "").replace(",", ".")
        return field if number(pointed) is None else pointed
