"""What all Zarr stores share: errors, descriptions of variables, and files written whole or not at all."""

import hashlib
import shutil
import struct
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numcodecs.zstd import Zstd  # type: ignore[import-untyped]
from numpy.typing import NDArray
from zarr.abc.buffer import Buffer
from zarr.codecs import BytesCodec, Endian, ZstdCodec
from zarr.core.metadata import ArrayV3Metadata

UNREADABLE = (
    *(OSError, ValueError, LookupError, TypeError, RuntimeError),
    *(AttributeError, ArithmeticError, AssertionError, struct.error),
)
"""What Zarr and its codecs raise on missing metadata and damaged bytes."""


METADATA = "zarr.json"
"""Metadata file of a group or an array."""


class StoreError(ValueError):
    """A missing, damaged or unsuitable store; the message says which, what is wrong and what to do."""


class StoreExistsError(StoreError):
    """The path of a store to be created is already taken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Variable:
    """Description of a stored variable.

    Attributes:
        dims: dimensions after `cell` or `step`.
        definition: one line that says what is measured (the array's `long_name`).
        units: unit of the values.
    """

    dims: tuple[str, ...] = ()
    definition: str
    units: str = "1"

    def attributes(self) -> dict[str, Any]:
        """Attributes of the array."""
        return {"long_name": self.definition, "units": self.units}


DIMENSIONS = {
    "block": Variable(definition="block; 0 is the input, l the state after block l", units="block"),
    "writer": Variable(definition="residual writer whose branch is measured: attention or SwiGLU"),
    "step": Variable(definition="optimiser step, counted from 1", units="step"),
    "since_jump": Variable(
        definition="steps since the jump of the rate; 0 is the last before it", units="step"
    ),
    "since_onset": Variable(definition="steps since the onset; 0 is its first step", units="step"),
    "measurement": Variable(definition="measured optimiser step, counted from 1", units="step"),
    "alarm": Variable(definition="number of the alarm in its run, from 1"),
}
"""Coordinates that all kinds of store share."""


def check_free(path: Path) -> None:
    """Refuse a path that is already taken.

    Raises:
        StoreExistsError: something exists at the path.
    """
    if path.exists():
        raise StoreExistsError(f"{path} already exists: pass --resume to continue it, or another --out")


def put_in_place(files: Mapping[str, Buffer], path: Path) -> None:
    """Write the files of an in-memory Zarr store; it appears at `path` complete or not at all.

    If several processes create the same path at once, exactly one succeeds.

    Raises:
        StoreExistsError: something exists at the path.
        StoreError: the disk is full, or another error of the file system.
    """
    partial = partial_path(path)
    try:
        write_files(files, partial)
        _rename(partial, path)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise StoreError(f"{path} could not be created ({reason(error)}): nothing was written") from error
        raise


def partial_path(path: Path) -> Path:
    """Temporary path beside a store or file; inside a store it would be taken for an array."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")


def _rename(partial: Path, path: Path) -> None:
    """Move a complete store to its path; the system refuses to rename a folder onto a non-empty one."""
    try:
        partial.rename(path)
    except OSError:
        check_free(path)
        raise


def write_files(files: Mapping[str, Buffer], folder: Path) -> None:
    """Write the files of an in-memory Zarr store one after the other.

    Zarr itself writes the files of an array concurrently and continues after one of them has failed.
    """
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.to_bytes())


def write_whole(file: Path, content: bytes, partial: Path | None = None) -> None:
    """Write a file atomically: it is replaced whole or not at all.

    Args:
        file: path of the file.
        content: its new content.
        partial: temporary path on the same file system; beside the file by default.
    """
    partial = partial or file.with_suffix(f".{uuid.uuid4().hex}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def file_digest(file: Path, algorithm: str = "sha256") -> str:
    """Digest of a file's content, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


def column(values: Sequence[Any] | NDArray[Any]) -> NDArray[Any]:
    """Coordinate values as an array; text as objects, so that Zarr stores it at full length."""
    array = np.asarray(values)
    return array.astype(object) if array.dtype.kind in "TU" else array


def add_array(
    group: zarr.Group,
    name: str,
    shape: tuple[int, ...],
    dtype: str,
    fill: int | float | str,
    dims: tuple[str, ...],
    attributes: Mapping[str, Any],
    *,
    rows: int = 1,
) -> zarr.Array[Any]:
    """Create an array with `rows` rows per chunk and a checksum on every chunk, so that damage is noticed.

    Chunks that hold only the fill value are written too, so that a missing chunk always means lost data.
    """
    return group.create_array(
        name,
        shape=shape,
        chunks=(rows, *shape[1:]),
        dtype=dtype,
        fill_value=fill,
        dimension_names=dims,
        attributes=dict(attributes),
        compressors=ZstdCodec(level=3, checksum=True),
        config={"write_empty_chunks": True},
    )


def chunk_path(path: Path, array: zarr.Array[Any], number: int) -> Path:
    """File of chunk `number` along the first axis, for an array with a single chunk along all other axes."""
    return path / array.basename / array.metadata.encode_chunk_key((number, *(0,) * (array.ndim - 1)))


def write_chunk(path: Path, array: zarr.Array[Any], number: int, rows: NDArray[Any]) -> None:
    """Write a chunk atomically: it is replaced whole or not at all.

    Zarr takes a millisecond per array, most of it spent passing work between threads, which is noticeable in
    short runs. A plain array of numbers is therefore encoded here, to the same bytes that Zarr writes.

    Args:
        path: the store.
        array: one of its arrays.
        number: index of the chunk along the first axis.
        rows: the whole chunk, including rows beyond the end of the array.
    """
    match getattr(array.metadata, "codecs", ()):
        case (BytesCodec(endian=Endian.little | None), ZstdCodec(level=level, checksum=checksum)):
            plain = np.ascontiguousarray(rows, rows.dtype.newbyteorder("<"))
            content = Zstd(level=level, checksum=checksum).encode(plain)
        case _:
            first = number * array.chunks[0]
            stop = min(first + array.chunks[0], array.shape[0])
            array[first:stop] = rows[: stop - first]
            return
    file = chunk_path(path, array, number)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, content)


def is_compacted(array: zarr.Array[Any]) -> bool:
    """Whether an array was compacted: its only chunk is then named by the `v2` encoding."""
    metadata = array.metadata
    return isinstance(metadata, ArrayV3Metadata) and metadata.chunk_key_encoding.name == "v2"


def reason(error: OSError) -> str:
    """Message of a system error, without its number and path."""
    return error.strerror or first_line(error)


def first_line(error: BaseException) -> str:
    """First line of an error's message, or its type if the message is empty."""
    return (str(error).splitlines() or [type(error).__name__])[0]
