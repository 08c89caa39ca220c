"""What the tests of sweeps share: the command line in this process, and what a store holds to the bit."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sim.store import PROVENANCE
from sweeps import cli

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def mms(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Exit status, stdout and stderr of one command, in this process."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mms", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return run


@pytest.fixture(scope="session")
def result_files() -> Callable[[Path], dict[str, bytes]]:
    """Every file of a store but those of its provenance, to the bit; a killed writer's scraps left out."""

    def read(store: Path) -> dict[str, bytes]:
        files = (path for path in store.rglob("*") if path.is_file() and path.suffix != ".partial")
        names = {path: path.relative_to(store) for path in files}
        return {
            str(name): path.read_bytes() for path, name in names.items() if name.parts[0] not in PROVENANCE
        }

    return read
