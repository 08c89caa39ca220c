"""Rows of a sharded Zarr array, read one by one from the files of its shards without reading the rest."""

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
"""Files that are kept open at a time."""


CHECKSUM = 4
"""Bytes of a CRC-32C."""


MISSING = np.iinfo(np.uint64).max
"""Offset of a row that was never written."""


def add_sharded(
    group: zarr.Group, name: str, shape: Sequence[int], rows: int, dims: Sequence[str], definition: str
) -> zarr.Array[Any]:
    """A float16 array of single rows with a checksum each, in shards of so many rows.

    Args:
        group: where it is to be.
        name: of it.
        shape: of all of it.
        rows: of a shard, which is one file.
        dims: names of its dimensions.
        definition: what it holds.
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
    """Reads rows of an array of `add_sharded`, in any order, from any thread.

    Zarr takes one to three milliseconds a row, under the interpreter's lock, which a training step would
    feel; this takes some tens of microseconds, and checks the same checksums.

    Args:
        path: of the store.
        array: one of its arrays.

    Raises:
        StoreError: an array that is laid out otherwise.
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
                raise StoreError(f"{path}: {array.basename} is not laid out as rows with checksums in shards")

    def __call__(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[Any]:
        """Rows of these places.

        Raises:
            StoreError: a file that is missing, or damaged where it is read; the message names it.
        """
        found = np.empty((len(indices), *self._array.shape[1:]), self._array.dtype)
        for place, index in enumerate(indices):
            found[place] = self._row(int(index))
        return found

    def _row(self, index: int) -> NDArray[Any]:
        shard, place = divmod(index, self._rows)
        file = chunk_path(self._path, self._array, shard)
        try:
            with self._lock:  # else another thread may close the file, and its number be that of another
                descriptor, table = self._shard(shard, file)
                offset, size = (int(word) for word in table[place])
                content = b"" if offset == MISSING else os.pread(descriptor, size, offset)
        except OSError as error:
            raise StoreError(f"{file} cannot be read ({reason(error)})") from error
        values, checksum = content[:-CHECKSUM], content[-CHECKSUM:]
        whole = len(values) == self._array.dtype.itemsize * int(np.prod(self._array.shape[1:]))
        if not whole or google_crc32c.value(values) != int.from_bytes(checksum, "little"):
            raise StoreError(f"{file} is damaged at row {index} of {self._array.basename}: encode it again")
        return np.frombuffer(values, self._array.dtype).reshape(self._array.shape[1:])

    def holds(self, shard: int) -> bool:
        """Whether the file of a shard is there with its table of rows, none of which is missing."""
        try:
            with self._lock:
                _, table = self._shard(shard, chunk_path(self._path, self._array, shard))
        except (OSError, StoreError):
            return False
        rows = min(self._rows, self._array.shape[0] - shard * self._rows)
        return bool((table[:rows, 0] != MISSING).all())

    def _shard(self, shard: int, file: Path) -> tuple[int, NDArray[np.uint64]]:
        """An open file, and offset and size of its rows [rows, 2]."""
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
        """Close all files."""
        while self._open:
            os.close(self._open.popitem()[1][0])

    def __del__(self) -> None:
        self.close()
