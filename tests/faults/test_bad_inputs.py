"""Bad input: each is refused in one sentence that names the culprit, and nothing is written."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LINES = Path(__file__).with_name("bad_inputs.txt").read_text().splitlines()
ROWS = [tuple(part.strip() for part in line.split("=>")) for line in LINES if line and line[0] != "#"]


def files(folder: Path) -> dict[str, int]:
    """Every file below a folder, and when it was last changed."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize(("typed", "culprit"), ROWS, ids=[row[0] for row in ROWS])
def test_bad_input_is_refused_in_a_sentence(
    attempt: Callable[..., Any], whole: Path, typed: str, culprit: str
) -> None:
    before = files(whole)
    said = attempt(*shlex.split(typed), folder=whole).refusal()
    assert culprit in said and not said.startswith("mms: unexpected ")
    assert files(whole) == before


def test_the_suite_is_large_enough() -> None:
    assert len(ROWS) == len(set(ROWS)) >= 150
