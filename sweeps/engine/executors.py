"""Compute the units of a sweep: one after the other, or on the workers of a dask cluster."""

import asyncio
import concurrent.futures
import contextlib
import logging
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from dask.distributed import Client, Future


Unit = TypeVar("Unit")


Result = TypeVar("Result")


CONNECT_SECONDS = 10
"""Seconds within which a scheduler has to answer."""


ALLOWED_DEATHS = 1
"""Workers of a local cluster that a unit may lose before it is put aside and retried alone."""


ATTEMPTS_ALONE = 2
"""Attempts at a unit alone: the first may go to a worker that the previous unit has just killed."""


class ClusterError(ValueError):
    """A dask cluster that cannot be joined or has gone away."""


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """Takes the place of a result: every worker of the unit died, in the end with no other unit running."""

    text: str


def one_after_the_other(
    compute: Callable[[Unit], Result], units: Sequence[Unit]
) -> Iterator[tuple[int, Result]]:
    """Compute in this process; yield the position of each unit with its result."""
    for position, unit in enumerate(units):
        yield position, compute(unit)


@contextlib.contextmanager
def local_cluster(workers: int) -> "Iterator[Client]":
    """Start a dask cluster of processes on this machine; a worker that dies is replaced.

    Raises:
        ClusterError: dask.distributed is not installed.
    """
    with _imports("--workers above 1"):
        import dask
        from dask.distributed import Client, LocalCluster
    settings = {
        # dask's default environment trims the allocator on every free, which makes tensors 1.8 times slower
        "distributed.nanny.pre-spawn-environ": {"OMP_NUM_THREADS": "1"},
        "distributed.scheduler.allowed-failures": ALLOWED_DEATHS,
        # by default a worker that needs more than 15 s to restart, as on a busy machine, is given up for good
        "distributed.deploy.lost-worker-timeout": "1 day",
    }
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=workers, threads_per_worker=1, dashboard_address=":0", silence_logs=logging.CRITICAL
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@contextlib.contextmanager
def joined_scheduler(address: str) -> "Iterator[Client]":
    """Connect to a dask scheduler that runs elsewhere; its workers must see the store under the same path.

    Raises:
        ClusterError: no scheduler answers within `CONNECT_SECONDS`, or dask.distributed is not installed.
    """
    with _imports("--scheduler"):
        from dask.distributed import Client
    with _silent_log(), concurrent.futures.ThreadPoolExecutor(1) as thread:
        try:
            # ask first: a client that finds no scheduler is noisy when it is garbage-collected
            kind = thread.submit(asyncio.run, _server_kind(address)).result()
        except Exception as error:
            said = " ".join(f"{error}".split()) or type(error).__name__
            raise ClusterError(
                f"no dask scheduler answers at {address!r} ({said}): start one with `dask scheduler`, or use "
                "--workers"
            ) from error
        if kind != "Scheduler":
            raise ClusterError(f"{address!r} is no dask scheduler but a {kind}: give the scheduler's address")
        with Client(address, timeout=CONNECT_SECONDS) as client:
            yield client


async def _server_kind(address: str) -> str:
    from distributed.core import rpc

    async def ask() -> str:
        async with rpc(address, timeout=CONNECT_SECONDS) as server:
            return str((await server.identity())["type"])

    return await asyncio.wait_for(ask(), CONNECT_SECONDS + 1)


@contextlib.contextmanager
def _silent_log() -> Iterator[None]:
    """Keep dask's log of lost connections off stderr; what matters is raised as an error."""
    logs = [logging.getLogger(name) for name in ("distributed", "distributed.client")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


@contextlib.contextmanager
def _imports(option: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise ClusterError(
            f"{option} needs dask.distributed: pip install 'mean-mode-screaming[cluster]'"
        ) from error


def on_workers(
    client: "Client", compute: Callable[[Unit], Result], units: Sequence[Unit]
) -> Iterator[tuple[int, Result | WorkerLost]]:
    """Compute on workers; yield the position of each unit with its result, in order of completion.

    Units start in order. A unit whose worker dies starts again on another. dask gives up on a unit that has
    lost several workers, but cannot tell whether that unit killed them or a neighbour on the same worker did:
    such units are retried at the end, each alone on the cluster, and are lost only if their workers die
    again.

    Raises:
        ClusterError: the cluster has gone away, or its workers cannot run this code.
        StoreError: a worker could not write.
    """
    from dask.distributed import as_completed

    name = f"mean-mode-{uuid.uuid4().hex}"
    submitted = {
        client.submit(compute, unit, key=(name, position), priority=-position): position
        for position, unit in enumerate(units)
    }
    completed = as_completed(list(submitted), loop=client.loop)
    suspects = []
    for future in completed:
        position = submitted.pop(future)
        result = _result(future)
        if isinstance(result, WorkerLost):
            suspects.append(position)
        else:
            yield position, result
    for position in sorted(suspects):
        result: Result | WorkerLost = WorkerLost("")
        for attempt in range(ATTEMPTS_ALONE):
            alone = client.submit(compute, units[position], key=(f"{name}-alone", position, attempt))
            result = _result(alone)
            if not isinstance(result, WorkerLost):
                break
        yield position, result


def _result(future: "Future") -> Any:
    """Result of a future, or `WorkerLost` if its workers died; the future is released."""
    from dask.distributed import KilledWorker

    try:
        return future.result()
    except KilledWorker as error:
        return WorkerLost(
            f"KilledWorker: the worker process died {error.allowed_failures + 1} times while it computed "
            "this cell alone (out of memory?)"
        )
    except ValueError:
        raise
    except (Exception, asyncio.CancelledError) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise ClusterError(f"the dask cluster failed ({said}): continue with --resume") from error
    finally:
        future.release()
