"""Shared by the tests of sweeps: files of a store, for bitwise comparison, and workers that start soon."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from meanmode.sim.store.sweep_store import PROVENANCE

IMPORTED = ("distributed.nanny", "meanmode.sweeps.engine.execution", "meanmode.sweeps.engine.simulated")
"""What a worker imports before it computes."""


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Workers of local clusters are forks of a process that has imported everything, not fresh ones."""
    dask = pytest.importorskip("dask")
    from distributed.utils import get_mp_context

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        get_mp_context().set_forkserver_preload(list(IMPORTED))
        yield


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
