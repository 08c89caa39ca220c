"""What the Zarr stores share: errors, what a variable is, and files that are there whole or not at all."""

import hashlib
import json
import shutil
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numcodecs.zstd import Zstd
from numpy.typing import NDArray
from zarr.abc.buffer import Buffer
from zarr.codecs import BytesCodec, Endian, ZstdCodec
from zarr.core.metadata import ArrayV3Metadata

UNREADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError)
"""What Zarr and its codecs raise on missing metadata and damaged bytes."""


METADATA = "zarr.json"
"""The file of the metadata of a group or an array."""


class StoreError(ValueError):
    """A store that is not what it should be; the message says which, what is wrong and what to do."""


class StoreExistsError(StoreError):
    """Something is already at the path of a store to be laid out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Variable:
    """What a store says of a variable: dimensions behind `cell` or `step`, definition and unit."""

    dims: tuple[str, ...] = ()
    definition: str
    units: str = "1"

    def attributes(self) -> dict[str, Any]:
        """As attributes of the array."""
        return {"long_name": self.definition, "units": self.units}


DIMENSIONS = {
    "block": Variable(definition="block; 0 is the input, l the state after block l", units="block"),
    "writer": Variable(definition="residual writer whose branch is measured: attention or SwiGLU"),
    "step": Variable(definition="optimiser step, counted from 1", units="step"),
}
"""What the coordinates are that stores have in common."""


def check_free(path: Path) -> None:
    """Refuse a path at which a store cannot be laid out.

    Raises:
        StoreExistsError: something is already there.
    """
    if path.exists():
        raise StoreExistsError(f"{path} already exists: pass --resume to go on with it, or another --out")


def put_in_place(files: Mapping[str, Buffer], path: Path) -> None:
    """Write what a Zarr store in memory holds; it appears under `path` complete or not at all.

    Of several processes that lay out one path at once exactly one succeeds.

    Raises:
        StoreExistsError: something is already there.
        StoreError: no room, or another error of the file system.
    """
    partial = partial_path(path)
    try:
        write_files(files, partial)
        _rename(partial, path)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise StoreError(
                f"{path} could not be laid out ({reason(error)}): nothing was written"
            ) from error
        raise


def partial_path(path: Path) -> Path:
    """Where something is until it is whole, beside a store, which would take it for one of its arrays."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")


def _rename(partial: Path, path: Path) -> None:
    """Rename a complete store; a folder is never renamed onto one that holds something."""
    try:
        partial.rename(path)
    except OSError:
        check_free(path)
        raise


def write_files(files: Mapping[str, Buffer], folder: Path) -> None:
    """Write what a Zarr store in memory holds, one file after the other.

    Zarr itself writes files of one array at once and still does so after one of them has failed.
    """
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.to_bytes())


def write_whole(file: Path, content: bytes, partial: Path | None = None) -> None:
    """Put a file in its place, whole or not at all.

    Args:
        file: where.
        content: what.
        partial: where it is until it is whole; beside the file by default.
    """
    partial = partial or file.with_suffix(f".{uuid.uuid4().hex}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def file_digest(file: Path, algorithm: str = "sha256") -> str:
    """Digest of what a file holds, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


def column(values: Sequence[Any] | NDArray[Any]) -> NDArray[Any]:
    """Coordinate values as an array; text as objects, so that Zarr keeps its full length."""
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
    """An array whose chunks are so many rows each, with a checksum, so that a damaged chunk is noticed.

    Chunks that hold only the fill value are written too, so that a missing one is a loss and not a result.
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
    """The file of a chunk, counted along the first axis, of an array that has one chunk along the others."""
    return path / array.basename / array.metadata.encode_chunk_key((number, *(0,) * (array.ndim - 1)))


def write_chunk(path: Path, array: zarr.Array[Any], number: int, rows: NDArray[Any]) -> None:
    """Put a chunk in its place, whole or not at all.

    Zarr takes a millisecond an array, most of it handed from thread to thread, which is felt in short runs. A
    plain array of numbers is therefore encoded here, to the bytes that Zarr writes.

    Args:
        path: the store.
        array: one of its arrays.
        number: which chunk, counted along the first axis.
        rows: the whole chunk, also where it reaches beyond the end of the array.
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
    """Whether an array is one of a compacted store, whose only chunk is named as none of the others is."""
    metadata = array.metadata
    return isinstance(metadata, ArrayV3Metadata) and metadata.chunk_key_encoding.name == "v2"


def open_kind(path: Path, mode: Any, kind: str) -> zarr.Group:
    """A group whose attribute `kind` is this one.

    Raises:
        StoreError: no readable store of this kind.
    """
    if not path.exists():
        raise StoreError(f"{path} does not exist")
    try:
        group = zarr.open_group(path, mode=mode)
    except UNREADABLE as error:
        raise StoreError(f"{path} is no readable Zarr group: {first_line(error)}") from error
    if group.attrs.get("kind") != kind:
        noun = kind.split()[-1]
        raise StoreError(
            f"{path} is no {noun} of this project (attribute kind is {group.attrs.get('kind')!r})"
        )
    return group


def json_attribute(group: zarr.Group, path: Path, name: str, kind: type) -> Any:
    """The value of an attribute that holds JSON.

    Raises:
        StoreError: it is missing, no JSON, or of another type.
    """
    try:
        value = json.loads(str(group.attrs[name]))
    except (KeyError, ValueError) as error:
        raise StoreError(f"{path} is damaged: its attribute {name} is missing or no JSON") from error
    if not isinstance(value, kind):
        raise StoreError(f"{path} is damaged: its attribute {name} is no {kind.__name__}")
    return value


def find_arrays(group: zarr.Group, path: Path, names: Iterable[str]) -> dict[str, zarr.Array[Any]]:
    """The arrays of these names.

    Raises:
        StoreError: naming those that are missing or unreadable.
    """
    arrays: dict[str, zarr.Array[Any]] = {}
    missing = []
    for name in names:
        try:
            array = group[name]
        except UNREADABLE:
            missing.append(name)
            continue
        if isinstance(array, zarr.Array):
            arrays[name] = array
    if missing:
        raise StoreError(f"{path} is truncated: it holds no readable {', '.join(missing)}")
    return arrays


def reason(error: OSError) -> str:
    """What the system says of an error, without number and path."""
    return error.strerror or first_line(error)


def first_line(error: BaseException) -> str:
    """What an error says in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]
