"""Compute the units of a sweep: one after the other, on processes of this machine, or on a dask cluster."""

import asyncio
import concurrent.futures
import contextlib
import logging
import multiprocessing
import multiprocessing.forkserver
import os
import pickle
import signal
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from typing import TYPE_CHECKING, Any, TypeVar

from meanmode.sim.train.allocator import keep_freed_memory

if TYPE_CHECKING:
    from dask.distributed import Client, Future


Unit = TypeVar("Unit")


Result = TypeVar("Result")


CONNECT_SECONDS = 10
"""Seconds within which a scheduler has to answer."""


ATTEMPTS_ALONE = 2
"""Attempts at a unit alone on a cluster: the first may go to a worker that the previous unit has killed."""


THREADS = {"OMP_NUM_THREADS": "1"}
"""Environment of worker processes: their number is what fills the cores."""


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


def prepare_processes(modules: Sequence[str]) -> BaseContext:
    """Start the server that worker processes are forked from; it imports these modules in the background.

    Where the system knows no such server, workers are started afresh.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(modules))
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(THREADS)
    try:
        with _interrupts_kept_back():
            multiprocessing.forkserver.ensure_running()
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            os.environ.update({} if value is None else {name: value})
    return context


@contextlib.contextmanager
def _interrupts_kept_back() -> Iterator[None]:
    """Let Ctrl-C wait, also in what is started meanwhile, which would print a traceback of its own."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(connection: Connection, compute: Callable[[Any], Any]) -> None:
    """Compute the units that arrive, until the other end is closed or its process has died."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the sweep's own process ends its workers
    keep_freed_memory()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            unit = connection.recv()
            try:
                reply = (True, compute(unit))
            except Exception as error:
                reply = (False, _portable(error))
            connection.send(reply)


def _end_with_parent() -> None:
    """End this process when the one that started it has died, also in the middle of a unit."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _portable(error: Exception) -> Exception:
    """The error, or its text if it does not survive the way to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


class _Process:
    """A worker process, and the unit that it computes."""

    def __init__(self, context: BaseContext, compute: Callable[[Any], Any]) -> None:
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, compute), daemon=True)
        self.process.start()
        theirs.close()

    def give(self, unit: Any) -> None:
        """Send a unit; if the process has died, `result` will say so."""
        with contextlib.suppress(ConnectionError):
            self.connection.send(unit)

    def result(self) -> Any:
        """What arrived: a result, or `WorkerLost` if the process has died.

        Raises:
            Exception: what the computation raised.
        """
        try:
            done, reply = self.connection.recv()
        except (EOFError, ConnectionResetError):
            return WorkerLost(
                "WorkerLost: the worker process died twice, the second time with no other at work (out of "
                "memory?)"
            )
        if done:
            return reply
        raise reply

    def stop(self) -> None:
        """End the process, even in the middle of a unit."""
        self.connection.close()
        self.process.terminate()
        self.process.join()


def on_processes(
    context: BaseContext, count: int, compute: Callable[[Unit], Result], units: Sequence[Unit]
) -> Iterator[tuple[int, Result | WorkerLost]]:
    """Compute on `count` processes of this machine; yield the position of each unit with its result.

    Units start in order, and results come in order of completion. A process that dies is replaced; its unit
    is tried again at the end, when no other is at work, and is lost only if its process dies again.
    """
    waiting, again = deque(range(len(units))), []
    idle = [_Process(context, compute) for _ in range(count)]
    busy: dict[Any, tuple[_Process, int]] = {}
    try:
        while waiting or busy:
            while waiting and idle:
                worker, position = idle.pop(), waiting.popleft()
                busy[worker.connection] = worker, position
                worker.give(units[position])
            for connection in wait(list(busy)):
                worker, position = busy[connection]
                result = worker.result()
                del busy[connection]
                if isinstance(result, WorkerLost):
                    worker.stop()
                    again.append(position)
                    idle.append(_Process(context, compute))
                    continue
                idle.append(worker)
                yield position, result
        while idle:
            idle.pop().stop()
        for position in sorted(again):
            worker = _Process(context, compute)
            busy[worker.connection] = worker, position
            worker.give(units[position])
            yield position, worker.result()
            busy.pop(worker.connection)[0].stop()
    finally:
        for worker in [*idle, *(worker for worker, _ in busy.values())]:
            worker.stop()


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
            f"WorkerLost: the worker process died {error.allowed_failures + 1} times while it computed this "
            "cell alone (out of memory?)"
        )
    except ValueError:
        raise
    except (Exception, asyncio.CancelledError) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise ClusterError(f"the dask cluster failed ({said}): continue with --resume") from error
    finally:
        future.release()
