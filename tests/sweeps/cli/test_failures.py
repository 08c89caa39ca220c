"""Failures while a sweep runs: cells that raise, workers that die, a full disk."""

import contextlib
import dataclasses
import errno
import functools
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest

import meanmode.sim.store.sweep_writer
import meanmode.sweeps.engine.execution
import meanmode.sweeps.engine.simulated
from meanmode.sim.simulate import simulate
from meanmode.sim.store.files import StoreError
from meanmode.sim.store.sweep_store import DONE, FAILED, TODO, open_cells
from meanmode.sim.store.sweep_writer import SweepWriter
from meanmode.sweeps.engine.execution import run_sweep
from meanmode.sweeps.engine.plan import Cell, Measured
from meanmode.sweeps.engine.simulated import simulated
from meanmode.sweeps.engine.sweep import Sweep
from meanmode.theory.setting import Setting

SMALL = (
    *("sweep", "run", "collapse_front", "--width", 32, "--heads", 2, "--tokens", "4,9", "--seeds", 2),
    *("--weight-std", 0.2, "--input-cosine", 0.1, "--depth", "3,6"),
)


@pytest.fixture(autouse=True)
def simulated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeps in this process simulate equal cells once: what fails here is what is done with the results."""
    monkeypatch.setattr(meanmode.sweeps.engine.simulated, "simulate", once)


@pytest.fixture(autouse=True)
def tests_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers import this module by its name, also from a server that an earlier test has started."""
    monkeypatch.syspath_prepend(Path(__file__).parents[3])


@functools.cache
def once(setting: Setting, seed: int, **named: object) -> object:
    return simulate(setting, seed, **named)


class OddError(Exception):
    """An exception that no code expects."""


@pytest.mark.parametrize(
    "raised",
    [
        RuntimeError("out of memory"),
        MemoryError(),
        ValueError("two\nlines"),
        OddError("odd"),
        OSError(errno.ENOSPC, "No space left on device"),
        AssertionError("never"),
    ],
    ids=lambda raised: type(raised).__name__,
)
def test_a_failing_cell_keeps_its_error_and_the_others_go_on(
    tiny_sweep: Sweep,
    tiny_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    result_files,
    raised: Exception,
) -> None:
    simulate = meanmode.sweeps.engine.simulated.simulate

    def failing(setting: Setting, seed: int, **named: object) -> object:
        if seed == 1 and setting.tokens == 9:
            raise raised
        return simulate(setting, seed, **named)

    monkeypatch.setattr(meanmode.sweeps.engine.simulated, "simulate", failing)
    store = tmp_path / "s.zarr"
    failures = run_sweep(tiny_sweep, store)
    text = f"{type(raised).__name__}: {' '.join(str(raised).split())}".strip()
    expected = {
        index: text
        for index, cell in enumerate(tiny_sweep.cells)
        if cell.seed == 1 and cell.setting.tokens == 9
    }
    assert dict(failures) == expected and len(expected) == 4
    data = open_cells(store)
    assert dict(enumerate(data["failure"].values)) == {index: expected.get(index, "") for index in range(32)}
    assert data["status"].values.tolist() == [FAILED if index in expected else DONE for index in range(32)]
    assert f"failed: {text}" in capsys.readouterr().err
    monkeypatch.setattr(meanmode.sweeps.engine.simulated, "simulate", simulate)
    assert run_sweep(tiny_sweep, store, resume=True) == []
    assert (open_cells(store)["failure"] == "").all()
    assert result_files(store) == result_files(tiny_store)


def test_failures_on_the_command_line(mms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 1 and a summary; status shows which cells failed and why; --resume computes them."""
    simulate, store = meanmode.sweeps.engine.simulated.simulate, tmp_path / "s.zarr"

    def failing(setting: Setting, seed: int, **named: object) -> object:
        if seed == 1 and setting.merge == "plain":
            raise OddError("odd")
        return simulate(setting, seed, **named)

    monkeypatch.setattr(meanmode.sweeps.engine.simulated, "simulate", failing)
    status, out, err = mms(*SMALL, "--out", store)
    assert status == 1 and out == ""
    assert err.count("failed: OddError: odd") == 4 and f"{store}: 4 of them failed" in err
    document = json.loads(mms("sweep", "status", store, "--json")[1])
    assert (document["failed"], document["done"], document["to_do"]) == (4, 12, 0)
    keys = {"cell", "error", "depth", "tokens", "weight_std", "input_cosine", "merge", "seed"}
    for failure in document["failures"]:
        assert set(failure) == keys and failure["error"] == "OddError: odd"
        assert failure["seed"] == 1 and failure["merge"] == "plain"
    shown = mms("sweep", "status", store)[1]
    assert "failed 4" in shown and shown.count("merge plain, seed 1) failed: OddError: odd") == 4
    status, _, err = mms("sweep", "compact", store)
    assert status == 2 and "still has 4 unfinished cells" in err
    monkeypatch.setattr(meanmode.sweeps.engine.simulated, "simulate", simulate)
    status, _, err = mms(*SMALL, "--out", store, "--resume")
    assert status == 0 and "failed" not in err
    assert json.loads(mms("sweep", "status", store, "--json")[1])["failures"] == []


@pytest.mark.parametrize("stopped", [KeyboardInterrupt, SystemExit])
def test_a_stop_is_no_failure(
    tiny_sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: type[BaseException]
) -> None:
    def stopping(setting: Setting, seed: int, **named: object) -> object:
        raise stopped

    monkeypatch.setattr(meanmode.sweeps.engine.simulated, "simulate", stopping)
    with pytest.raises(stopped):
        run_sweep(tiny_sweep, tmp_path / "s.zarr")
    assert (open_cells(tmp_path / "s.zarr")["status"] == TODO).all()


@pytest.mark.parametrize("files", [0, 1, 13, 30])
def test_a_full_disk_while_laying_out_is_one_line_and_leaves_nothing(
    mms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    write, done = Path.write_bytes, []

    def filling(path: Path, content: bytes) -> int:
        if len(done) == files:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        done.append(path)
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", filling)
    status, out, err = mms(*SMALL, "--out", tmp_path / "s.zarr")
    assert status == 2 and out == ""
    assert err.splitlines()[-1].endswith(
        "could not be created (No space left on device): nothing was written"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("writes", [0, 4, 15, 16, 17, 40])
def test_a_full_disk_is_one_line_and_the_sweep_goes_on(
    mms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, result_files, writes: int
) -> None:
    store, write, done = tmp_path / "s.zarr", Path.write_bytes, []

    def filling(path: Path, content: bytes) -> int:
        if path.suffix != ".partial":
            return write(path, content)
        if len(done) == writes:
            write(path, content[:10])
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        done.append(path)
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", filling)
    status, out, err = mms(*SMALL, "--out", store)
    assert status == 2 and out == ""
    assert "could not be written (No space left on device) and stays unfinished" in err.splitlines()[-1]
    monkeypatch.setattr(Path, "write_bytes", write)
    assert not list(tmp_path.rglob("*.partial"))
    codes = open_cells(store)["status"].values
    per_cell = len(SweepWriter(store).arrays) + 2
    assert (codes == DONE).sum() == writes // per_cell and (codes == TODO).sum() == 16 - writes // per_cell
    assert mms(*SMALL, "--out", store, "--resume")[0] == 0
    assert mms(*SMALL, "--out", tmp_path / "whole.zarr")[0] == 0
    assert result_files(store) == result_files(tmp_path / "whole.zarr")


def filling(*given: object) -> None:
    """Write to a disk that is full."""
    raise OSError(errno.ENOSPC, "No space left on device")


def on_a_full_disk(cells: Sequence[tuple[int, Cell]]) -> Measured:
    """Simulate on a worker whose disk is full."""
    meanmode.sim.store.sweep_writer.write_chunk = filling
    return simulated(cells, backward=False)


def deadly(cells: Sequence[tuple[int, Cell]]) -> Measured:
    """Simulate, but kill the process in one cell."""
    _, cell = cells[-1]
    if cell.seed == 3 and cell.setting.tokens == 4 and cell.setting.merge == "plain":
        os.kill(os.getpid(), signal.SIGKILL)
    return simulated(cells, backward=False)


def measured_by(sweep: Sweep, measure: Callable[[Sequence[tuple[int, Cell]]], Measured]) -> Sweep:
    """The sweep, measured by a function that worker processes can import."""
    kind = type("Replaced", (Sweep,), {"measure": lambda _: measure})
    return kind(**{entry.name: getattr(sweep, entry.name) for entry in dataclasses.fields(sweep)})


def test_a_full_disk_on_a_worker_ends_the_sweep(tiny_sweep: Sweep, tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    with pytest.raises(StoreError, match=r"could not be written \(No space left on device\) and stays"):
        run_sweep(measured_by(tiny_sweep, on_a_full_disk), store, workers=2)
    assert (open_cells(store)["status"] == TODO).all()
    assert not worker_processes()


def test_a_cell_that_kills_every_worker_fails_alone(
    tiny_sweep: Sweep, tiny_store: Path, tmp_path: Path, result_files
) -> None:
    store = tmp_path / "s.zarr"
    failures = run_sweep(measured_by(tiny_sweep, deadly), store, workers=2)
    killing = [
        index
        for index, cell in enumerate(tiny_sweep.cells)
        if (cell.seed, cell.setting.tokens, cell.setting.merge) == (3, 4, "plain")
    ]
    assert [index for index, _ in failures] == killing and len(killing) == 2
    data = open_cells(store)
    assert np.flatnonzero(data["status"] != DONE).tolist() == killing
    for cell in killing:
        assert data["status"].values[cell] == FAILED
        assert str(data["failure"].values[cell]).startswith("WorkerLost: the worker process died twice")
    run_sweep(tiny_sweep, store, resume=True)
    assert result_files(store) == result_files(tiny_store)


def done_cells(store: Path) -> int:
    """Number of cells whose status file exists."""
    return len(list((store / "status" / "c").glob("*")))


def worker_processes() -> list[psutil.Process]:
    """Worker processes of this process: forks of the server that makes them."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if any("multiprocessing.forkserver" in argument for argument in child.cmdline()):
                found += child.children()
    return found


def test_killed_workers_lose_no_cell(
    tiny_sweep: Sweep, tiny_store: Path, tmp_path: Path, result_files
) -> None:
    """A worker process is killed three times, each time some more cells are done."""
    store = tmp_path / "s.zarr"
    choice, killed, over = random.Random(1), [], threading.Event()

    def kill() -> None:
        for goal in (2, 10, 18):
            while done_cells(store) < goal and not over.is_set():
                time.sleep(0.01)
            while not (workers := worker_processes()) and not over.is_set():
                time.sleep(0.01)
            if not over.is_set():
                victim = choice.choice(workers)
                victim.kill()
                killed.append(victim.pid)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        failures = run_sweep(tiny_sweep, store, workers=2)
    finally:
        over.set()
        thread.join()
    assert len(set(killed)) == 3 and failures == []
    assert result_files(store) == result_files(tiny_store)
