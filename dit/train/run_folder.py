"""The folder of a run: who trains in it, what it must not hold before a run begins, and its configuration.

One run at a time trains in a folder. A lock says so, and ends with its process however that ends. A new run
never takes a folder that holds something it would have to overwrite. It prepares its telemetry under a hidden
name, writes its configuration and then gives the telemetry its name, so that a run that is killed while it
begins leaves either nothing but hidden names or a run that can be resumed.
"""

import contextlib
import json
import os
import shutil
import socket
import time
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path

import filelock

from meanmode.dit.config.run_config import DATA, RunConfig
from meanmode.sim.store.destination import check_writable
from meanmode.sim.store.files import METADATA, StoreError, StoreExistsError, reason, write_whole
from meanmode.sim.store.regular_files import read_json
from meanmode.sim.store.run_reader import TELEMETRY

CONFIGURATION, CHECKPOINTS, AUTOPSIES = "config.json", "checkpoints", "autopsy-*.txt"
WEIGHTS = "weights"
"""Names in the folder of a run, besides its telemetry; `WEIGHTS` holds checkpoints without moments."""

LOCK, OWNER, BEGUN = ".lock", ".owner.json", ".telemetry.begun"
"""Hidden names: the lock of a folder, a note on who holds it, and the telemetry of a beginning run."""

ASIDE = "before"
"""A run that begins anew moves what it was into the folder `before-1`, or the next free number."""

DOCUMENT_BYTES = 2**24
"""Largest JSON document of a run or a checkpoint."""

NAMED_WITHIN = 2.0
"""Seconds after which the holder of a lock that leaves no note is called unknown."""

SCALE_FIELDS = (
    "steps keep checkpoint_every stop_on on_alarm alarm_factor accumulation recompute recompute_of sharding "
    "compile"
).split()
"""Training fields that may change when a run is resumed."""


class RunFolder:
    """A folder in which only this process trains, from construction until `release`.

    The lock is that of the operating system (flock), so on a file system shared by several machines it holds
    as far as that file system provides it. It is released with the object, at the latest with the process.

    Args:
        out: the folder; it is created if it does not exist, and removed by `release` if no run began in it.

    Raises:
        StoreError: another process trains in it, or it cannot be written.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        check_writable(out)
        made = [folder for folder in (out, *out.absolute().parents) if not folder.exists()]
        lock = filelock.FileLock(out / LOCK, timeout=0, thread_local=False)
        try:
            _acquire(lock, out, made)
        except (OSError, NotImplementedError) as error:
            why = reason(error) if isinstance(error, OSError) else str(error)
            raise StoreError(f"{out} cannot be written ({why}): choose another --out") from error
        self._release = weakref.finalize(self, _leave, lock, out, made, os.getpid())

    def release(self) -> None:
        """Let others train here; the second call does nothing."""
        self._release()


def _acquire(lock: filelock.BaseFileLock, out: Path, made: Iterable[Path]) -> None:
    """Take a lock and leave a note, or say who holds it."""
    refused = 0.0
    while True:
        out.mkdir(parents=True, exist_ok=True)  # the holder of the lock may just have removed it
        with contextlib.suppress(filelock.Timeout):
            lock.acquire()
            break
        now = time.monotonic()
        refused = refused or now
        time.sleep(0.05)
        owner = _owner(out)
        if owner or now > refused + NAMED_WITHIN:
            raise StoreError(
                f"{out} is in use: {owner or 'another process trains in it'}: wait for it, stop it, or "
                "choose another --out"
            )
    try:
        (out / OWNER).unlink(missing_ok=True)
        note = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}
        write_whole(out / OWNER, json.dumps(note).encode())
    except BaseException:
        _leave(lock, out, made, os.getpid())
        raise


def _owner(out: Path) -> str:
    """Describe the process that holds the lock of a folder; empty while it has left no note."""
    try:
        note = read_json(out / OWNER, DOCUMENT_BYTES)
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(note["since"]))
        return f"process {note['pid']} on {note['host']} has been training in it since {since}"
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return ""


def _leave(lock: filelock.BaseFileLock, out: Path, made: Iterable[Path], process: int) -> None:
    """Release a lock; where no run has begun, leave the folder as it was."""
    if os.getpid() != process:
        return  # a fork of the process that holds the lock
    with contextlib.suppress(OSError):
        (out / OWNER).unlink(missing_ok=True)
        if not (out / CONFIGURATION).exists():
            clear_beginning(out)
            (out / LOCK).unlink(missing_ok=True)
            for folder in made:
                folder.rmdir()
    lock.release()


@contextlib.contextmanager
def nobody_trains(path: Path) -> Iterator[None]:
    """Context in which nobody trains in the run that a path belongs to, if it belongs to one.

    Args:
        path: folder of a run, its telemetry, or any other path.

    Raises:
        StoreError: a process trains in it.
    """
    folder = next((of for of in (path, path.absolute().parent) if (of / CONFIGURATION).is_file()), None)
    if folder is None or (folder != path and path.name != TELEMETRY):
        yield
        return
    held = RunFolder(folder)
    try:
        yield
    finally:
        held.release()


def refuse_taken(out: Path) -> None:
    """Check that a new run can begin in a folder without overwriting anything.

    Raises:
        StoreExistsError: the path is not a folder, or the folder holds a run, a store, or one of the names
            that a run writes.
    """
    if out.exists() and not out.is_dir():
        raise StoreExistsError(f"{out} is not a folder: choose another --out")
    if os.path.lexists(out / CONFIGURATION):
        raise StoreExistsError(f"{out} already holds a run: pass --resume to resume it, or another --out")
    if (out / METADATA).exists():
        raise StoreExistsError(f"{out} is a Zarr store, not the folder of a run: choose another --out")
    names = [name for name in (TELEMETRY, CHECKPOINTS, WEIGHTS) if os.path.lexists(out / name)]
    names += sorted(path.name for path in out.glob(AUTOPSIES)) if out.is_dir() else []
    if names:
        raise StoreExistsError(
            f"{out} already holds {names[0]}, which a new run would overwrite: choose another --out"
        )


def clear_beginning(out: Path) -> None:
    """Delete the hidden telemetry of a beginning that was cut off, whole or half written."""
    for path in (out / BEGUN, *out.glob(f".{BEGUN}.*.partial")):
        shutil.rmtree(path, ignore_errors=True)


def finish_beginning(out: Path) -> None:
    """Give the telemetry of a beginning that was cut off its name, or delete it if there is another."""
    if not os.path.lexists(out / TELEMETRY) and (out / BEGUN).is_dir():
        (out / BEGUN).rename(out / TELEMETRY)
    clear_beginning(out)


def set_aside(out: Path) -> Path:
    """Move all that a run has made into a folder of its own, with its configuration; return that folder.

    The telemetry goes first: whoever is killed in between still finds checkpoints, and is not taken for a run
    that was stopped before its first one.

    Raises:
        StoreError: an error of the file system.
    """
    taken = {path.name for path in out.iterdir()}
    number = next(number for number in range(1, len(taken) + 2) if f"{ASIDE}-{number}" not in taken)
    folder = out / f"{ASIDE}-{number}"
    try:
        folder.mkdir()
        write_whole(folder / CONFIGURATION, (out / CONFIGURATION).read_bytes())
        for path in (out / TELEMETRY, *sorted(out.glob(AUTOPSIES)), out / WEIGHTS, out / CHECKPOINTS):
            if os.path.lexists(path):
                path.rename(folder / path.name)
    except OSError as error:
        raise StoreError(f"{out} could not be moved to {folder} ({reason(error)})") from error
    return folder


def read_configuration(run: Path) -> RunConfig:
    """Read the configuration of a run.

    Raises:
        StoreError: the folder has no configuration, or it cannot be read.
    """
    try:
        return RunConfig.of_document(read_json(run / CONFIGURATION, DOCUMENT_BYTES))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(f"{run} holds no run: it has no {CONFIGURATION}") from error
    except OSError as error:
        raise StoreError(f"{run / CONFIGURATION} cannot be read: {reason(error)}") from error
    except StoreError:
        raise
    except ValueError as error:
        raise StoreError(f"{run / CONFIGURATION} is damaged: {error}") from error


def write_configuration(run: Path, configuration: RunConfig) -> None:
    """Write the configuration of a run atomically.

    Raises:
        StoreError: the disk is full, or another error of the file system.
    """
    try:
        write_whole(run / CONFIGURATION, json.dumps(configuration.document(), indent=1).encode())
    except OSError as error:
        raise StoreError(f"{run / CONFIGURATION} could not be written ({reason(error)})") from error


def difference(found: RunConfig, wanted: RunConfig) -> str:
    """Return why a configuration is that of another run than `wanted`; empty if it is of the same run."""
    before, now = found.document(), wanted.document()
    for part in ("model", "training"):
        for name, value in now[part].items():
            if name not in SCALE_FIELDS and before[part][name] != value:
                return f"its {name} is {before[part][name]}, not {value}"
    moved = found.data_digest and found.data_digest == wanted.data_digest
    for name in DATA:
        if before[name] != now[name] and not moved:  # the same store may have moved
            return f"its {name} is {before[name]}, not {now[name]}"
    return ""


def resumable(asked: RunConfig, out: Path) -> RunConfig:
    """Return the configuration with which to resume a run: its own, with the fields that may change as asked.

    Raises:
        StoreError: there is no run, or its configuration differs; the message names the first difference.
    """
    before = read_configuration(out)
    other = difference(before, asked)
    if other:
        raise StoreError(f"{out} holds another run: {other}")
    return asked
