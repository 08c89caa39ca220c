"""Rows of a sharded Zarr array, read one at a time from the shard files without reading the rest."""

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, Crc32cCodec, Endian, ShardingCodec, ShardingCodecIndexLocation

from meanmode.sim.store.files import StoreError, chunk_path, reason

OPEN_SHARDS = 256
"""Most shard files kept open at once."""


CHECKSUM = 4
"""Bytes of a CRC-32C checksum."""


MISSING = np.iinfo(np.uint64).max
"""Offset of a row that was never written."""


def add_sharded(
    group: zarr.Group, name: str, shape: Sequence[int], rows: int, dims: Sequence[str], definition: str
) -> zarr.Array[Any]:
    """Create a float16 array whose chunks are single rows with a checksum each, grouped into shards.

    Args:
        group: group to create the array in.
        name: name of the array.
        shape: shape of the whole array, rows first.
        rows: rows per shard; a shard is one file.
        dims: names of the dimensions.
        definition: one line that says what the array holds.
    """
    return group.create_array(
        name,
        shape=tuple(shape),
        chunks=(1, *shape[1:]),
        shards=(rows, *shape[1:]),
        dtype="float16",
        fill_value=np.nan,
        compressors=Crc32cCodec(),
        dimension_names=tuple(dims),
        attributes={"long_name": definition, "units": "1"},
        config={"write_empty_chunks": True},
    )


class ShardedRows:
    """Reads rows of an array made by `add_sharded`, in any order, from any thread.

    Zarr takes one to three milliseconds per row while holding the interpreter's lock, enough to slow a
    training step; this takes some tens of microseconds and verifies the same checksums.

    Args:
        path: path of the store.
        array: one of its arrays.

    Raises:
        StoreError: the array has another layout.
    """

    def __init__(self, path: Path, array: zarr.Array[Any]) -> None:
        self._path, self._array = path, array
        self._open: OrderedDict[int, tuple[int, NDArray[np.uint64]]] = OrderedDict()
        self._lock = threading.Lock()
        match getattr(array.metadata, "codecs", ()):
            case (
                ShardingCodec(
                    codecs=(BytesCodec(endian=Endian.little), Crc32cCodec()),
                    index_codecs=(BytesCodec(endian=Endian.little), Crc32cCodec()),
                    index_location=ShardingCodecIndexLocation.end,
                ),
            ) if array.shards is not None and array.chunks[0] == 1:
                self._rows = array.shards[0]
            case _:
                raise StoreError(f"{path}: {array.basename} is not made of rows with checksums in shards")

    def __call__(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[Any]:
        """Read the rows at these indices.

        Raises:
            StoreError: a file is missing, or damaged where it is read; the message names it.
        """
        found = np.empty((len(indices), *self._array.shape[1:]), self._array.dtype)
        for position, index in enumerate(indices):
            found[position] = self._row(int(index))
        return found

    def _row(self, index: int) -> NDArray[Any]:
        shard, position = divmod(index, self._rows)
        file = chunk_path(self._path, self._array, shard)
        length = self._array.dtype.itemsize * int(np.prod(self._array.shape[1:]))
        try:
            with self._lock:  # another thread could close the file and its descriptor be reused
                descriptor, table = self._shard(shard, file)
                offset, size = (int(word) for word in table[position])
                # the table is as trustworthy as the file: nothing of another size or beyond its end is read
                inside = size == length + CHECKSUM and offset <= os.fstat(descriptor).st_size - size
                content = os.pread(descriptor, size, offset) if inside else b""
        except OSError as error:
            raise StoreError(f"{file} cannot be read ({reason(error)})") from error
        values, checksum = content[:-CHECKSUM], content[-CHECKSUM:]
        if len(values) != length or google_crc32c.value(values) != int.from_bytes(checksum, "little"):
            raise StoreError(f"{file} is damaged at row {index} of {self._array.basename}: encode it again")
        return np.frombuffer(values, self._array.dtype).reshape(self._array.shape[1:])

    def holds(self, shard: int) -> bool:
        """Whether a shard's file exists and its table lists every row."""
        try:
            with self._lock:
                _, table = self._shard(shard, chunk_path(self._path, self._array, shard))
        except (OSError, StoreError):
            return False
        rows = min(self._rows, self._array.shape[0] - shard * self._rows)
        return bool((table[:rows, 0] != MISSING).all())

    def _shard(self, shard: int, file: Path) -> tuple[int, NDArray[np.uint64]]:
        """Open file descriptor of a shard, and the offset and size of each of its rows [rows, 2]."""
        found = self._open.get(shard)
        if found is None:
            descriptor = os.open(file, os.O_RDONLY)
            size = 16 * self._rows
            start = os.fstat(descriptor).st_size - size - CHECKSUM
            content = os.pread(descriptor, size + CHECKSUM, start) if start >= 0 else b""
            table, checksum = content[:size], content[size:]
            if google_crc32c.value(table) != int.from_bytes(checksum, "little") or len(table) < size:
                os.close(descriptor)
                raise StoreError(f"{file} is damaged: its table of rows does not match its checksum")
            found = descriptor, np.frombuffer(table, "<u8").reshape(-1, 2)
            self._open[shard] = found
        self._open.move_to_end(shard)
        if len(self._open) > OPEN_SHARDS:
            os.close(self._open.popitem(last=False)[1][0])
        return found

    def close(self) -> None:
        """Close all open shard files."""
        while self._open:
            os.close(self._open.popitem()[1][0])

    def __del__(self) -> None:
        self.close()
