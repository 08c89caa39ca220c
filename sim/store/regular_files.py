"""Read what others may have written: regular files only, of a bounded size, JSON of a bounded depth.

A named pipe blocks whoever opens it, a device never ends, and a chain of links can lead back to its start; so
files are opened without blocking, and a folder is walked once whatever its links say.
"""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from meanmode.sim.store.files import StoreError

JSON_BYTES = 256 * 2**20
"""Largest JSON document that is read whole."""

KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading, without waiting for anybody to write to it.

    Raises:
        StoreError: a pipe, a device, a socket or a folder.
        OSError: no such file, or one that may not be read.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
        if kind != stat.S_IFREG:
            raise StoreError(f"{path} is {KINDS.get(kind, 'no regular file')}, not a file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: Path, limit: int) -> bytes:
    """Return the content of a regular file of at most `limit` bytes.

    Raises:
        StoreError: no regular file, or a larger one.
        OSError: no such file, or one that may not be read.
    """
    with open_regular(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise StoreError(f"{path} is larger than the {limit:,} bytes that are read of such a file")
    return content


def parse_json(text: str | bytes, name: object) -> Any:
    """Parse a JSON document; `name` says in the message where it came from.

    Raises:
        StoreError: not JSON, or nested too deep to be read.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise StoreError(f"{name} is JSON nested too deep to be read") from None
    except ValueError as error:
        raise StoreError(f"{name} is not JSON: {error}") from error


def read_json(path: Path, limit: int = JSON_BYTES) -> Any:
    """Read a JSON document from a regular file.

    Raises:
        StoreError: no regular file, too large, or not JSON.
        OSError: no such file, or one that may not be read.
    """
    return parse_json(read_bytes(path, limit), path)


def files_under(folder: Path) -> Iterator[Path]:
    """Yield every regular file in a folder and below, in sorted order, each once.

    Links are followed, since data sets are often made of them, but no folder and no file is visited twice, as
    told by device and inode, and no link leads back to a folder that contains this one. Pipes, devices,
    sockets and links to nothing are skipped.

    Raises:
        OSError: a folder may not be searched.
    """
    seen: set[tuple[int, int]] = set()

    def new(entry: os.DirEntry[str] | Path) -> os.stat_result | None:
        try:
            found = entry.stat()
        except OSError:
            return None
        identity = (found.st_dev, found.st_ino)
        if identity in seen:
            return None
        seen.add(identity)
        return found

    for above in folder.resolve().parents:
        new(above)
    new(folder)
    pending = [_entries(folder)]  # a stack rather than recursion: folders may be nested deeper than calls
    while pending:
        entry = next(pending[-1], None)
        if entry is None:
            pending.pop()
        elif (found := new(entry)) is None:
            continue
        elif stat.S_ISDIR(found.st_mode):
            pending.append(_entries(entry.path))
        elif stat.S_ISREG(found.st_mode):
            yield Path(entry.path)


def _entries(folder: str | Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return iter(sorted(entries, key=lambda entry: entry.name))


def check_regular(folder: Path) -> None:
    """Refuse a store that holds a pipe, a device or a socket, which would block whoever reads it.

    Raises:
        StoreError: naming it.
    """
    pending = [folder]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(Path(entry.path))
                elif not entry.is_file():
                    raise StoreError(f"{entry.path} is no regular file: the store is damaged")
