"""Fixtures of the tests of sim."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


def _run(script: Path, folder: Path, count: int) -> None:
    command = [sys.executable, "-W", "error", str(script), str(folder)]
    running = [subprocess.Popen([*command, str(rank)]) for rank in range(count)]
    try:
        assert [one.wait(timeout=900) for one in running] == [0] * count
    finally:
        for one in running:
            one.kill()
            one.wait()


@pytest.fixture(scope="session")
def run_processes() -> Callable[[Path, Path, int], None]:
    """Run a script once per rank, with a folder for what it writes and its rank, and wait for all of them."""
    return _run
