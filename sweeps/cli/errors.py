"""What the user is told of an error: one sentence that names the culprit and, where it can, the remedy."""

import itertools
import os
import sys
import traceback
from pathlib import Path

import click

from meanmode.sim.store.files import reason

TRACEBACK = "MMS_TRACEBACK"
"""Environment variable that shows where an unexpected error arose."""


def sentence(error: BaseException) -> str:
    """Describe an error that ended a command, in one sentence without line breaks."""
    return " ".join(_described(error).split())


def _described(error: BaseException) -> str:
    text = str(error)
    match error:
        case click.ClickException():
            return error.format_message()
        case OSError() if error.filename is None:
            return f"{_destination()}: {reason(error)}"
        case OSError() if error.strerror:
            return f"{error.filename}: {error.strerror}"
        case MemoryError():
            return (
                f"there is not enough memory{_of(text)}: ask for less at once (depth, tokens, width, batch)"
            )
        case RuntimeError() if "allocate memory" in text or "out of memory" in text:
            return f"there is not enough memory ({text.splitlines()[0][-120:]}): ask for less at once"
        case RecursionError():
            return "something in the input is nested too deep to be read"
        case ArithmeticError():
            return f"the numbers asked for lead out of range{_of(text)}: choose smaller ones"
        case ValueError() if text:
            return text
    return _unexpected(error)


def _of(text: str) -> str:
    return f" ({text})" if text else ""


def _destination() -> str:
    """The path that a command writes to, for errors of the file system that do not name one."""
    words = sys.argv[1:]
    for option, value in itertools.pairwise(words):
        if option == "--out":
            return value
    return next((word for word in words[1:] if Path(word).exists()), "the file system")


def _unexpected(error: BaseException) -> str:
    """An error that no part of the program speaks of: damaged input, or a mistake in the program."""
    if os.environ.get(TRACEBACK):
        traceback.print_exception(error)
    frames = traceback.extract_tb(error.__traceback__)
    where = next((frame for frame in reversed(frames) if "site-packages" not in frame.filename), None)
    place = f" in {Path(where.filename).name} line {where.lineno}" if where else ""
    return (
        f"unexpected {type(error).__name__}{_of(str(error)[:200])}{place}: the input may be damaged; if not, "
        f"please report this with the traceback that {TRACEBACK}=1 shows"
    )
