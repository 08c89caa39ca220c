"""Shards, workers and schedulers: the store is bitwise the same whoever computes the cells."""

import contextlib
import functools
import json
import multiprocessing
import operator
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from dask.distributed import Client, LocalCluster

import meanmode.sweeps.engine.execution
import meanmode.sweeps.engine.simulated
import meanmode.sweeps.engine.store_layout
from meanmode.sim.store.files import StoreError
from meanmode.sim.store.sweep_store import DONE, create_sweep, open_cells
from meanmode.sweeps.engine.execution import run_sweep
from meanmode.sweeps.engine.executors import (
    ClusterError,
    WorkerLost,
    joined_scheduler,
    on_processes,
    on_workers,
    prepare_processes,
)
from meanmode.sweeps.engine.shards import Shard, largest_first
from meanmode.sweeps.engine.sweep import Sweep

SMALL = (
    *("sweep", "run", "collapse_front", "--width", "32", "--heads", "2", "--tokens", "4,9", "--seeds", "6"),
    *("--weight-std", "0.2", "--input-cosine", "0.1", "--depth", "10,40"),
)


@pytest.mark.parametrize("count", [1, 3])
def test_shards_one_after_the_other_fill_the_store(
    tiny_sweep: Sweep, tiny_store: Path, tmp_path: Path, result_files, count: int
) -> None:
    store = tmp_path / "s.zarr"
    done: set[int] = set()
    for index in range(1, count + 1):
        shard = Shard(index=index, count=count)
        run_sweep(tiny_sweep, store, shard=shard)
        done |= {cell for unit in shard.units(tiny_sweep) for cell in unit}
        assert set(np.flatnonzero(open_cells(store)["status"].values == DONE)) == done
    assert len(done) == 32
    assert result_files(store) == result_files(tiny_store)


def test_shards_started_at_once_lay_out_one_store(start, tmp_path: Path, result_files) -> None:
    whole, shared = tmp_path / "whole.zarr", tmp_path / "shared.zarr"
    processes = [start(*SMALL, "--out", shared, "--shard", f"{index}/2") for index in (1, 2)]
    for index, process in enumerate(processes, start=1):
        assert process.codes() == [0], process.said
        assert f"24 cells of shard {index}/2" in process.said
    assert start(*SMALL, "--out", whole).codes() == [0]
    assert result_files(shared) == result_files(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shared.zarr", "whole.zarr"]


@pytest.fixture
def overtaken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process creates the store between the forecast of this one and its own attempt."""

    def create(path: Path, **given: object) -> None:
        create_sweep(path, **given)
        create_sweep(path, **given)

    monkeypatch.setattr(meanmode.sweeps.engine.store_layout, "create_sweep", create)


@pytest.mark.parametrize(
    "options", [{"shard": Shard(index=1, count=1)}, {"resume": True}], ids=["shard", "resume"]
)
def test_who_loses_the_race_goes_on_with_the_store(
    tiny_sweep: Sweep, tiny_store: Path, tmp_path: Path, overtaken: None, result_files, options
) -> None:
    run_sweep(tiny_sweep, tmp_path / "s.zarr", **options)
    assert result_files(tmp_path / "s.zarr") == result_files(tiny_store)


def test_who_loses_the_race_without_a_shard_is_refused(
    tiny_sweep: Sweep, tmp_path: Path, overtaken: None
) -> None:
    with pytest.raises(StoreError, match="already exists: pass --resume"):
        run_sweep(tiny_sweep, tmp_path / "s.zarr")


def test_a_shard_of_another_sweep_is_refused(tiny_sweep: Sweep, tiny_store: Path) -> None:
    other = tiny_sweep.with_options({"tokens": (4, 16)})
    with pytest.raises(StoreError, match="holds another sweep: its axes"):
        run_sweep(other, tiny_store, shard=Shard(index=1, count=2))


def test_a_dry_run_of_a_shard_tells_its_share(mms, tmp_path: Path) -> None:
    plans = [
        json.loads(mms(*SMALL, "-n", "--shard", f"{index}/5", "--out", tmp_path / "s.zarr")[1])
        for index in range(1, 6)
    ]
    assert sum(plan["cells"] for plan in plans) == 48 and sum(plan["runs"] for plan in plans) == 24
    assert not (tmp_path / "s.zarr").exists()


def test_the_largest_cells_are_run_first(
    tiny_sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order, simulate = [], meanmode.sweeps.engine.simulated.simulate
    monkeypatch.setattr(
        meanmode.sweeps.engine.simulated,
        "simulate",
        lambda setting, seed, **named: order.append(setting) or simulate(setting, seed, **named),
    )
    run_sweep(tiny_sweep, tmp_path / "s.zarr")
    expected = [tiny_sweep.cells[unit[-1]].setting for unit in largest_first(tiny_sweep)]
    assert order == expected and [setting.tokens for setting in order] == [9] * 8 + [4] * 8


def test_two_workers_write_the_same_store(
    tiny_sweep: Sweep, tiny_store: Path, tmp_path: Path, result_files
) -> None:
    """One shard runs on two workers, the other in this process."""
    run_sweep(tiny_sweep, tmp_path / "two.zarr", workers=2, shard=Shard(index=1, count=2))
    assert (open_cells(tmp_path / "two.zarr")["status"] == DONE).sum() == 16
    run_sweep(tiny_sweep, tmp_path / "two.zarr", workers=1, shard=Shard(index=2, count=2))
    assert result_files(tmp_path / "two.zarr") == result_files(tiny_store)


def test_a_running_scheduler_is_joined(
    forked_workers: None, tiny_sweep: Sweep, tiny_store: Path, tmp_path: Path, result_files
) -> None:
    with LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=":0", silence_logs=50) as cluster:
        run_sweep(tiny_sweep, tmp_path / "s.zarr", scheduler=cluster.scheduler_address)
        worker = cluster.workers[0].worker_address
        with pytest.raises(ClusterError, match="is no dask scheduler but a Worker"), joined_scheduler(worker):
            pass
    assert result_files(tmp_path / "s.zarr") == result_files(tiny_store)


@pytest.mark.parametrize("address", ["127.0.0.1:9", "tcp://127.0.0.1:9"])
def test_an_unreachable_scheduler_is_one_line(
    mms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setattr("meanmode.sweeps.engine.executors.CONNECT_SECONDS", 0.3)
    status, out, err = mms("sweep", "run", "--scheduler", address, "--out", tmp_path / "s.zarr")
    assert status == 2 and out == "" and err.count("\n") == 1
    assert f"no dask scheduler answers at '{address}' (Timed out" in err
    assert not (tmp_path / "s.zarr").exists()


def test_a_worker_without_the_store_says_so(tiny_sweep: Sweep, tmp_path: Path) -> None:
    unit = [(0, tiny_sweep.cells[0])]
    with pytest.raises(
        StoreError, match=r"a worker on .* cannot use the store: .*absent\.zarr does not exist"
    ):
        meanmode.sweeps.engine.execution._run_on_worker(
            unit, tmp_path / "absent.zarr", "run", tiny_sweep.measure()
        )


@pytest.fixture
def client(forked_workers: None) -> Iterator[Client]:
    """A cluster of one worker."""
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0", silence_logs=50) as cluster,
        Client(cluster) as joined,
    ):
        yield joined


def test_workers_take_the_units_in_order(client: Client) -> None:
    units = range(12)
    assert list(on_workers(client, operator.neg, units)) == [(unit, -unit) for unit in units]


def test_an_error_of_the_cluster_is_one_sentence(client: Client) -> None:
    with pytest.raises(ClusterError, match="ZeroDivisionError: division by zero"):
        list(on_workers(client, functools.partial(operator.truediv, 1), range(4)))


def test_processes_compute_every_unit_and_raise_what_a_unit_raises() -> None:
    context = prepare_processes([])
    assert sorted(on_processes(context, 2, operator.neg, range(5))) == [(unit, -unit) for unit in range(5)]
    assert list(on_processes(context, 0, operator.neg, [])) == []
    with pytest.raises(ZeroDivisionError):
        list(on_processes(context, 1, functools.partial(operator.truediv, 1), range(4)))


def test_an_error_that_cannot_travel_arrives_as_its_text() -> None:
    context = prepare_processes([])
    local = "exec('class Local(Exception): pass\\nraise Local(\"its words\")')"
    with pytest.raises(RuntimeError, match="Local: its words"):
        list(on_processes(context, 1, eval, [local]))
    assert not multiprocessing.active_children()


def test_a_process_that_dies_again_loses_its_unit_alone() -> None:
    results = dict(on_processes(prepare_processes([]), 2, os._exit, [0, 3]))
    assert all(isinstance(result, WorkerLost) for result in results.values()) and len(results) == 2


def test_processes_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    """Its workers notice that it was killed, also in the middle of a unit."""
    script = tmp_path / "sweep.py"
    script.write_text(
        "from meanmode.sweeps.engine.executors import on_processes, prepare_processes\n"
        "if __name__ == '__main__':\n"
        "    units = ['__import__(\"os\").getpid()', '__import__(\"time\").sleep(600)']\n"
        "    for _, pid in on_processes(prepare_processes([]), 1, eval, units):\n"
        "        print(pid, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as sweep:
        assert sweep.stdout is not None
        worker = psutil.Process(int(sweep.stdout.readline()))
        time.sleep(0.5)  # the worker begins its second unit
        sweep.kill()
    with contextlib.suppress(psutil.NoSuchProcess):
        worker.wait(20)
    assert not worker.is_running()
