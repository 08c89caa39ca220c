"""Logs that are one JSON document: trainer_state.json, lists of rows, lists by name, TensorBoard's export."""

import re
from typing import Any

from meanmode.sim.imported.file_kinds import EXPECTED
from meanmode.sim.imported.log_text import LogText
from meanmode.sim.imported.logged_table import LoggedTable, flattened, long_form
from meanmode.sim.store.regular_files import parse_json

BEGIN = re.compile(r'\s*(?:\{\s*["}]|\[\s*[\[{]|\[\s*-?[\d.]+\s*,)')
"""How a document begins, unlike a line of text such as "[rank0]: step 1"."""


CLOSING = ("total_flos", "train_runtime")
"""Fields of the row with which transformers closes its history: means over the whole run."""


def recognise(text: LogText) -> bool:
    """Whether the text begins like a document."""
    return BEGIN.match(text.head) is not None


def parse(text: LogText, table: LoggedTable) -> None:
    """Add the rows of a document.

    Raises:
        ValueError: damaged JSON, or no rows in it.
    """
    document = parse_json(text.whole(), text.path)
    rows = _history(document)
    if rows is None:
        raise ValueError(f"{text.path} is a JSON document without rows of values: {EXPECTED}")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            table.skip("entries that are no objects", number)
        elif any(name in row for name in CLOSING) and "loss" not in row:
            table.notes.append("the closing row, with means over the whole run, was left out")
        else:
            table.row(number, long_form(row))


def _history(document: Any) -> list[Any] | None:
    """The rows of a document."""
    if isinstance(document, list) and document:
        # TensorBoard's export: wall time, step, value
        if all(isinstance(row, list) and len(row) == 3 for row in document):
            return [{"step": step, "value": value} for _, step, value in document]
        return document if any(isinstance(row, dict) for row in document) else None
    if not isinstance(document, dict):
        return None
    for name in ("log_history", *document):
        rows = document.get(name)
        if isinstance(rows, list) and sum(isinstance(row, dict) for row in rows) > len(rows) / 2:
            return rows
    columns = {
        name: values for name, values in flattened(document) if isinstance(values, list) and len(values) > 1
    }
    length = max((len(values) for values in columns.values()), default=0)
    if not length:
        return None
    return [
        {name: values[row] for name, values in columns.items() if len(values) == length}
        for row in range(length)
    ]
