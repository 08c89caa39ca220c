"""Run a sweep: compute the cells missing from its store, in this process, on workers, or one shard."""

import contextlib
import functools
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from meanmode.sim.store.files import StoreError, StoreExistsError
from meanmode.sim.store.sweep_store import FAILED
from meanmode.sim.store.sweep_writer import SweepWriter
from meanmode.sweeps.engine.cost import unit_cost
from meanmode.sweeps.engine.executors import (
    WorkerLost,
    joined_scheduler,
    on_processes,
    on_workers,
    one_after_the_other,
    prepare_processes,
)
from meanmode.sweeps.engine.plan import Measured, Plan, PlannedCell
from meanmode.sweeps.engine.shards import Shard
from meanmode.sweeps.engine.store_layout import check_same, lay_out
from meanmode.sweeps.engine.study import check_compiled

Failures = list[tuple[int, str]]
"""Index and error of every failed cell."""


Cells = Sequence[tuple[int, PlannedCell]]
"""The cells of a unit with their indices."""


def run_unit(cells: Cells, writer: SweepWriter, measure: Callable[[Cells], Measured]) -> Failures:
    """Compute the cells of a unit and write them all; return the failures.

    A cell is computed with one thread, so that its bits do not depend on the number of workers. Any exception
    that the computation raises is stored as the result of the cells.

    Raises:
        StoreError: the file system refused a write.
    """
    import torch

    torch.set_num_threads(1)
    start = time.perf_counter()
    try:
        measured = measure(cells)
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return record_failure(cells, writer, text, time.perf_counter() - start)
    wall_seconds = time.perf_counter() - start
    for (index, _), (values, status) in zip(cells, measured, strict=True):
        writer.write(index, values, status, wall_seconds=wall_seconds)
    return []


def record_failure(cells: Cells, writer: SweepWriter, text: str, wall_seconds: float = np.nan) -> Failures:
    """Mark all cells of a unit as failed, and store the text of the exception.

    Raises:
        StoreError: the file system refused a write.
    """
    for index, _ in cells:
        writer.write(index, {}, FAILED, wall_seconds=wall_seconds, failure=text)
    return [(index, text) for index, _ in cells]


@functools.lru_cache(maxsize=8)
def _writer(path: Path, run: str) -> SweepWriter:
    """The store, opened and validated once per worker process and run of a sweep."""
    try:
        return SweepWriter(path)
    except StoreError as error:
        raise StoreError(f"a worker on {socket.gethostname()} cannot use the store: {error}") from error


def _run_on_worker(cells: Cells, path: Path, run: str, measure: Callable[[Cells], Measured]) -> Failures:
    return run_unit(cells, _writer(path, run), measure)


def check_executor(workers: int | None, scheduler: str | None, shard: Shard | None) -> None:
    """Refuse options that contradict each other; a shard may use several workers.

    Raises:
        ValueError: a scheduler together with workers or a shard.
    """
    if scheduler is not None and workers is not None:
        raise ValueError("a scheduler has workers of its own: give --scheduler or --workers")
    if scheduler is not None and shard is not None:
        raise ValueError("a scheduler distributes the cells itself: give --scheduler or --shard")


def run_sweep(
    sweep: Plan,
    path: Path,
    *,
    resume: bool = False,
    workers: int | None = None,
    scheduler: str | None = None,
    shard: Shard | None = None,
) -> Failures:
    """Compute every missing cell of a sweep into its store, largest first; create the store if needed.

    Args:
        sweep: what to run.
        path: the store.
        resume: continue an existing store; without this or a shard, an existing path is refused.
        workers: number of processes (default 1); more than one start workers of their own.
        scheduler: address of a running dask scheduler whose workers compute instead.
        shard: share of this process. Any number of shards can work on one store at once; the first creates
            it and the others join it, as with `resume`.

    Returns:
        The cells that failed, with their errors.

    Raises:
        StoreError: the path holds another sweep, or the file system refused a write.
        ValueError: a scheduler together with workers or a shard, a scheduler that does not answer, or a sweep
            that cannot be measured here.
    """
    check_executor(workers, scheduler, shard)
    with contextlib.ExitStack() as stack:
        client = None if scheduler is None else stack.enter_context(joined_scheduler(scheduler))
        measure = sweep.measure()
        if client is None:
            check_compiled(sweep)
        several = workers is not None and workers > 1
        context = prepare_processes([__name__, _module(measure)]) if several else None
        _begin(sweep, path, existing=resume or shard is not None)
        writer = SweepWriter(path)
        units = _missing_units(sweep, writer, shard or Shard(index=1, count=1))
        work = [[(index, sweep.cells[index]) for index in unit] for unit in units]
        results: Iterator[tuple[int, Failures | WorkerLost]]
        if client is None and context is None:
            here = functools.partial(run_unit, writer=writer, measure=measure)
            results = one_after_the_other(here, work)
        else:
            there = functools.partial(
                _run_on_worker, path=path.absolute(), run=uuid.uuid4().hex, measure=measure
            )
            if context is None:
                results = on_workers(client, there, work)
            else:
                results = on_processes(context, min(workers or 1, len(units)), there, work)
                stack.enter_context(contextlib.closing(results))
        return _collect(sweep, units, work, results, writer)


def _module(measure: Callable[[Cells], Measured]) -> str:
    """Name of the module that a function, or what a partial function calls, was defined in."""
    return getattr(measure, "func", measure).__module__


def _begin(sweep: Plan, path: Path, *, existing: bool) -> None:
    """Create the store, or check that the existing one holds the same sweep."""
    if not (existing and path.exists()):
        try:
            lay_out(sweep, path)
            return
        except StoreExistsError:
            if not existing:
                raise
    check_same(sweep, path)


def _missing_units(sweep: Plan, writer: SweepWriter, shard: Shard) -> list[tuple[int, ...]]:
    """The units of a shard with a cell to do, largest first."""
    units = shard.units(sweep)
    todo, lost = writer.remaining(index for unit in units for index in unit)
    if lost:
        print(
            f"{writer.path}: {len(lost)} finished cells had lost their data and are computed again",
            file=sys.stderr,
        )
    missing = set(todo)
    return [unit for unit in units if missing & set(unit)]


def _collect(
    sweep: Plan,
    units: list[tuple[int, ...]],
    work: list[Cells],
    results: Iterator[tuple[int, Failures | WorkerLost]],
    writer: SweepWriter,
) -> Failures:
    """Collect the failures, with a progress bar by cost on stderr; mark units of lost workers as failed."""
    costs = [unit_cost(sweep, unit) for unit in units]
    failures: Failures = []
    bar = tqdm(
        total=sum(costs),
        desc=sweep.name,
        file=sys.stderr,
        dynamic_ncols=True,
        leave=False,
        bar_format="{desc}: {percentage:3.0f}%|{bar}|{postfix} [{elapsed}<{remaining}]",
    )
    with bar:
        for done, (position, result) in enumerate(results, start=1):
            if isinstance(result, WorkerLost):
                result = record_failure(work[position], writer, result.text)
            for index, error in result:
                tqdm.write(f"cell {index} failed: {error}", file=sys.stderr)
            failures += result
            bar.set_postfix_str(f"{done}/{len(units)} runs", refresh=False)
            bar.update(costs[position])
    return failures
