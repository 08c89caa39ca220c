"""JSON lines: one object per row, possibly behind a prefix; wandb histories, MAE, DeiT and DINO logs."""

import json
from typing import Any

from meanmode.sim.imported.log_text import LogText
from meanmode.sim.imported.logged_table import LoggedTable, long_form

DOCUMENTS = ("scalars", "log_history")
"""Fields of objects that are whole documents."""


def recognise(text: LogText) -> bool:
    """Whether a good part of the first lines are objects."""
    lines = text.head_lines()
    rows = [row for row in map(_row, lines) if row]
    if any(name in row for row in rows for name in DOCUMENTS):
        return False
    if len(rows) == 1 and len(lines) == 1 and any(isinstance(value, list) for value in rows[0].values()):
        return False
    return len(rows) >= 0.3 * len(lines) or (text.suffix in (".jsonl", ".ndjson") and bool(rows))


def parse(text: LogText, table: LoggedTable) -> None:
    """Add every object as a row; a last line that is cut, and lines that are no objects, are left out."""
    broken = 0
    for line, content in text.lines():
        row = _row(content)
        if broken:
            table.skip("lines that are not JSON objects", broken)
            broken = 0
        if row:
            table.row(line, long_form(row))
        else:
            broken = line
    if broken:
        table.notes.append(f"the last line ({broken}) is cut short and was left out")


def _row(line: str) -> dict[str, Any] | None:
    """The object in a line, which may follow a prefix such as the name of a logger."""
    begin = line.find("{")
    if begin < 0:
        return None
    try:
        row = json.loads(line[begin:])
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None
