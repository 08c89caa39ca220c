"""Generated blocks of Markdown pages: finding them and rewriting them from the stores they name.

A block stands between two comments, `<!-- generated: TABLE STORE... OPTION=VALUE... -->` and `<!-- end -->`.
TABLE is a name in `meanmode.sweeps.studies.results.tables`; stores are named without their ending.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path

BLOCK = re.compile(
    r"^<!-- generated: (?P<call>.+?) -->\n(?P<text>.*?)^<!-- end -->$", re.MULTILINE | re.DOTALL
)

Tables = Mapping[str, Callable[..., str]]
"""Name -> function of the folder of the stores, the names of stores and options, which gives Markdown."""


def calls_of(page: str) -> list[str]:
    """What stands in the opening comment of every generated block of a page."""
    return [block["call"] for block in BLOCK.finditer(page)]


def generated(call: str, tables: Tables, data: Path) -> str:
    """The Markdown of a block.

    Args:
        call: name of the table, stores and options, as in the opening comment.
        tables: functions by name.
        data: folder of the stores.

    Raises:
        ValueError: an unknown table, or other arguments than it takes.
        StoreError: a missing or damaged store.
    """
    name, *words = call.split()
    if name not in tables:
        raise ValueError(f"unknown table {name!r} in a generated block: choose from {', '.join(tables)}")
    stores = [word for word in words if "=" not in word]
    options = dict(word.split("=", 1) for word in words if "=" in word)
    try:
        inspect.signature(tables[name]).bind(data, *stores, **options)
    except TypeError as error:
        raise ValueError(f"generated block `{call}`: {error}") from error
    return tables[name](data, *stores, **options)


def refreshed(page: str, tables: Tables, data: Path) -> tuple[str, list[str]]:
    """The page with every generated block written anew, and the calls of those that changed.

    Raises:
        ValueError, StoreError: as `generated`.
    """
    stale = []

    def renewed(block: re.Match[str]) -> str:
        text = f"\n{generated(block['call'], tables, data)}\n\n"
        if text != block["text"]:
            stale.append(block["call"])
        return f"<!-- generated: {block['call']} -->\n{text}<!-- end -->"

    return BLOCK.sub(renewed, page), stale
