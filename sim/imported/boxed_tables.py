"""Tables that a logger prints in boxes, a name and a value per line: guided-diffusion and its kin."""

import re

from meanmode.sim.imported.log_text import LogText
from meanmode.sim.imported.logged_table import LoggedTable

LINE = re.compile(r"\s*\|\s*(?P<name>[^|]*[^|\s])\s*\|\s*(?P<value>\S+)\s*\|\s*")


RULE = re.compile(r"\s*[-+=]{4,}\s*")


def recognise(text: LogText) -> bool:
    """Whether some lines are rules and some are boxed pairs."""
    lines = text.head_lines(5000)
    return (
        any(RULE.fullmatch(line) for line in lines) and sum(bool(LINE.fullmatch(line)) for line in lines) > 1
    )


def parse(text: LogText, table: LoggedTable) -> None:
    """Add each box as a row; a box that is cut at the end of the file is left out."""
    box: dict[str, str] = {}
    begin = 0
    for line, content in text.lines():
        found = LINE.fullmatch(content) if len(content) < 1000 else None
        if found:
            begin = begin or line
            box[found["name"]] = found["value"]
        elif box and RULE.fullmatch(content):
            table.row(begin, box.items())
            box, begin = {}, 0
    if box:
        table.notes.append(f"the last table, from line {begin}, is cut short and was left out")
