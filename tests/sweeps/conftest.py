"""Shared by the tests of sweeps: the files of a store, for bitwise comparison."""

from collections.abc import Callable
from pathlib import Path

import pytest

from meanmode.sim.store.sweep_store import PROVENANCE


@pytest.fixture(scope="session")
def result_files() -> Callable[[Path], dict[str, bytes]]:
    """Contents of every file of a store, except provenance and the partial files of a killed writer."""

    def read(store: Path) -> dict[str, bytes]:
        files = (path for path in store.rglob("*") if path.is_file() and path.suffix != ".partial")
        names = {path: path.relative_to(store) for path in files}
        return {
            str(name): path.read_bytes() for path, name in names.items() if name.parts[0] not in PROVENANCE
        }

    return read
