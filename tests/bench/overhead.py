"""Overhead of a sweep over its cells: opening, writing and the cluster, for cells of about a second.

One process and two local workers, medians over `REPEATS` sweeps. Run with `python tests/bench/overhead.py`.
"""

import contextlib
import dataclasses
import io
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import meanmode.sweeps.engine.simulated
from meanmode.sim.simulate import simulate
from meanmode.sim.store.sweep_store import open_progress
from meanmode.sim.store.sweep_writer import SweepWriter
from meanmode.sweeps.engine.execution import run_sweep
from meanmode.sweeps.engine.store_layout import lay_out
from meanmode.sweeps.engine.sweep import Sweep
from meanmode.theory.setting import Setting

REPEATS = 7
CELLS = 3
SWEEP = Sweep(
    name="overhead",
    claim="cells of about a second on a CPU core",
    base=Setting(depth=80, tokens=128),
    axes={"weight_std": (0.05,)},
    seeds=CELLS,
    laws=(),
)


def quietly(sweep: Sweep, store: Path, workers: int) -> float:
    """Wall time of a sweep, without laying out its store; progress output is hidden."""
    lay_out(sweep, store)
    start = time.perf_counter()
    with contextlib.redirect_stderr(io.StringIO()):
        run_sweep(sweep, store, resume=True, workers=workers)
    return time.perf_counter() - start


def one_process(sweep: Sweep) -> None:
    """Overhead of `run_sweep`, on a store that is already laid out, relative to its `simulate` calls.

    Both are timed in the same run, since the speed of a shared machine varies by more than the overhead.
    """
    plain: list[float] = []

    def timed(*given: Any, **named: Any) -> dict[str, Any]:
        start = time.perf_counter()
        values = simulate(*given, **named)
        plain.append(time.perf_counter() - start)
        return values

    overheads, cells = [], []
    with mock.patch.object(meanmode.sweeps.engine.simulated, "simulate", timed):
        for _ in range(REPEATS):
            plain.clear()
            with tempfile.TemporaryDirectory() as folder:
                total = quietly(sweep, Path(folder) / "s.zarr", 1)
            overheads.append(total / sum(plain) - 1)
            cells += plain
    kind = "backward" if sweep.backward else "forward"
    print(f"{kind} cells of {statistics.median(cells):.2f} s")
    print(json.dumps({f"time of a sweep over that of its {kind} cells": 1 + statistics.median(overheads)}))


def writing(sweep: Sweep) -> None:
    """The parts of the overhead: opening the store, finding the remaining cells, writing one cell."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "s.zarr"
        lay_out(sweep, store)
        cell = sweep.cells[0]
        values = simulate(dataclasses.replace(cell.setting, depth=4), cell.seed, backward=sweep.backward)
        parts: dict[str, list[float]] = {"open": [], "find the remaining cells": [], "write a cell": []}
        for _ in range(20):
            times = [time.perf_counter()]
            writer = SweepWriter(store)
            times.append(time.perf_counter())
            writer.remaining()
            times.append(time.perf_counter())
            writer.write(0, values, 0)
            times.append(time.perf_counter())
            for part, begin, end in zip(parts.values(), times, times[1:], strict=False):
                part.append(end - begin)
    print("; ".join(f"{name} {1e3 * statistics.median(part):.1f} ms" for name, part in parts.items()))


def two_workers(sweep: Sweep) -> None:
    """Share of time that two local workers spend between cells, from the first start to the last end."""
    idle, starts = [], []
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory() as folder:
            store = Path(folder) / "s.zarr"
            total = quietly(sweep, store, 2)
            data = open_progress(store)
        walls, ends = data["wall_seconds"].values, data["finished"].values
        span = ends.max() - (ends - walls).min()
        idle.append(1 - walls.sum() / (2 * span))
        starts.append(total - span)
    print(
        f"two workers: {statistics.median(idle):.1%} of their time not in a cell (of {REPEATS}: "
        f"{min(idle):.1%} to {max(idle):.1%}); start and end of the cluster {statistics.median(starts):.1f} s"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    simulate(dataclasses.replace(SWEEP.base, depth=2), 0, backward=True)
    for backward in (False, True):
        sweep = dataclasses.replace(SWEEP, backward=backward)
        if backward:
            sweep = sweep.with_options({"depth": (30,)})
        writing(sweep)
        one_process(sweep)
    two_workers(dataclasses.replace(SWEEP, seeds=2 * CELLS))
