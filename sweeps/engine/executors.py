"""How the units of a sweep are computed: one after the other, or by the workers of a dask cluster."""

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
"""How long a scheduler has to answer."""


ALLOWED_DEATHS = 1
"""Workers of a local cluster a unit may lose before it is set aside, to be tried again alone."""


ATTEMPTS_ALONE = 2
"""Of a unit that is tried alone: the first may be given to a worker that the unit before it has killed."""


class ClusterError(ValueError):
    """A dask cluster that cannot be joined, or went away."""


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """Instead of a result: every worker that computed the unit died, at last with no other unit beside it."""

    text: str


def one_after_the_other(
    compute: Callable[[Unit], Result], units: Sequence[Unit]
) -> Iterator[tuple[int, Result]]:
    """Results with the positions of their units, in this process."""
    for position, unit in enumerate(units):
        yield position, compute(unit)


@contextlib.contextmanager
def local_cluster(workers: int) -> "Iterator[Client]":
    """A client of a dask cluster of processes on this machine; a worker that dies is replaced.

    Raises:
        ClusterError: dask.distributed is not installed.
    """
    with _imports("--workers above 1"):
        import dask
        from dask.distributed import Client, LocalCluster
    settings = {
        # dask's own environment trims the allocator on every free, which makes tensors 1.8 times slower
        "distributed.nanny.pre-spawn-environ": {"OMP_NUM_THREADS": "1"},
        "distributed.scheduler.allowed-failures": ALLOWED_DEATHS,
        # else a worker that takes longer than 15 s to come back, as on a busy machine, is given up for good
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
    """A client of a dask scheduler that runs elsewhere; its workers must see the store under the same path.

    Raises:
        ClusterError: nothing answers there within `CONNECT_SECONDS`, or dask.distributed is not installed.
    """
    with _imports("--scheduler"):
        from dask.distributed import Client
    with _silent_log(), concurrent.futures.ThreadPoolExecutor(1) as thread:
        try:
            # asked first, since a client that finds nobody is noisy when it is collected
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
    """Keep dask's own account of lost connections off stderr; what matters becomes an error."""
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
    """Results with the positions of their units, as workers complete them; the first unit starts first.

    A unit whose worker dies starts again on another. dask gives up on one that has lost several workers and
    cannot tell whether the unit killed them or a neighbour on the same worker did: such units are tried
    again at the end, each alone on the cluster, and are lost only if their workers die again.

    Raises:
        ClusterError: the cluster went away, or its workers cannot run this code.
        StoreError: what a worker could not write.
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
    """What a future holds, `WorkerLost` where its workers died; it is released."""
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
        raise ClusterError(f"the dask cluster failed ({said}): go on with --resume") from error
    finally:
        future.release()
