"""The sweep store: one Zarr v3 group, one chunk per cell, for any number of writers, read by xarray."""

import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import xarray as xr
import zarr
from numpy.typing import ArrayLike, NDArray
from zarr.abc.buffer import Buffer
from zarr.codecs import ZstdCodec
from zarr.storage import MemoryStore

KIND = "mean-mode sweep"
TODO, DONE, FAILED, DIVERGED = 0, 1, 2, 3
STATUS_NAMES = ("to_do", "done", "failed", "diverged")

UNREADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError)
"""What Zarr and its codecs raise on missing metadata and damaged bytes."""


class StoreError(ValueError):
    """A store that is not what it should be; the message says which, what is wrong and what to do."""


class StoreExistsError(StoreError):
    """Something is already at the path of a store to be laid out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Variable:
    """What a store says of a variable: its dimensions behind `cell`, its definition and its unit."""

    dims: tuple[str, ...] = ()
    definition: str
    units: str = "1"

    def attributes(self) -> dict[str, Any]:
        """As attributes of the array."""
        return {"long_name": self.definition, "units": self.units}


PROVENANCE = {
    "wall_seconds": Variable(
        definition="wall time of the run that gave the cell, the same for all depths it gave", units="s"
    ),
    "finished": Variable(definition="Unix time (UTC) at which the cell was written", units="s"),
    "failure": Variable(definition="type and message of the exception of a failed cell, else empty"),
}
"""How a cell came about; no result, not the same in two runs, and missing in stores of older versions."""


def create_sweep(
    path: str | Path,
    *,
    coordinates: Mapping[str, tuple[Sequence[Any], Variable]],
    sizes: Mapping[str, ArrayLike],
    variables: Mapping[str, Variable],
    forecasts: Mapping[str, tuple[ArrayLike, Variable]],
    attributes: Mapping[str, Any],
) -> None:
    """Lay out an empty sweep with its forecast; it appears under `path` complete or not at all.

    Of several processes that lay out one path at once exactly one succeeds.

    Args:
        path: where; must not exist.
        coordinates: axis -> its value in every cell, and what it is.
        sizes: dimension -> its coordinate values (`block`, `writer`).
        variables: name -> what is measured; float32, NaN until written.
        forecasts: name -> values of every cell, and what they are; written before any cell is run.
        attributes: provenance and configuration, JSON-serialisable.

    Raises:
        StoreExistsError: something is already there.
        StoreError: no room, or another error of the file system.
    """
    path = Path(path)
    if path.exists():
        raise _exists(path)
    cells = len(next(iter(coordinates.values()))[0])
    data = xr.Dataset(
        {
            name: (("cell", *given.dims), np.asarray(values, float), given.attributes())
            for name, (values, given) in forecasts.items()
        },
        coords={
            **{
                name: ("cell", _column(values), given.attributes())
                for name, (values, given) in coordinates.items()
            },
            **{name: (name, _column(np.asarray(values).tolist())) for name, values in sizes.items()},
        },
        attrs={"kind": KIND, "axes": json.dumps(list(coordinates)), **attributes},
    )
    block = Variable(definition="block; 0 is the input, l the state after block l", units="block")
    writer = Variable(definition="residual writer whose branch is measured: attention or SwiGLU")
    data["block"].attrs, data["writer"].attrs = block.attributes(), writer.attributes()
    flags = {"flag_values": list(range(len(STATUS_NAMES))), "flag_meanings": " ".join(STATUS_NAMES)}
    files: dict[str, Buffer] = {}
    with zarr.config.set({"array.write_empty_chunks": True}):
        data.to_zarr(MemoryStore(files), mode="w", consolidated=False, zarr_format=3)
    group = zarr.open_group(MemoryStore(files), mode="r+")
    for name, given in variables.items():
        shape = (cells, *(len(np.asarray(sizes[dim])) for dim in given.dims))
        _add_array(group, name, shape, "float32", np.nan, ("cell", *given.dims), given.attributes())
    _add_array(
        group, "status", (cells,), "int8", TODO, ("cell",), {"long_name": "state of the cell", **flags}
    )
    for name, given in PROVENANCE.items():
        dtype, fill = ("string", "") if name == "failure" else ("float64", np.nan)
        _add_array(group, name, (cells,), dtype, fill, ("cell",), given.attributes())
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        write_files(files, partial)
        _put_in_place(partial, path)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise StoreError(
                f"{path} could not be laid out ({reason(error)}): nothing was written"
            ) from error
        raise


def write_files(files: Mapping[str, Buffer], folder: Path) -> None:
    """Write what a Zarr store in memory holds, one file after the other.

    Zarr itself writes files of one array at once and still does so after one of them has failed.
    """
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.to_bytes())


def _exists(path: Path) -> StoreExistsError:
    return StoreExistsError(f"{path} already exists: pass --resume to go on with it, or another --out")


def _put_in_place(partial: Path, path: Path) -> None:
    """Rename a complete store; a folder is never renamed onto one that holds something."""
    try:
        partial.rename(path)
    except OSError as error:
        if path.exists():
            raise _exists(path) from error
        raise


def _column(values: Sequence[Any]) -> NDArray[Any]:
    """Coordinate values as an array; text as objects, so that Zarr keeps its full length."""
    return np.array(values, dtype=object) if isinstance(values[0], str) else np.asarray(values)


def _add_array(
    group: zarr.Group,
    name: str,
    shape: tuple[int, ...],
    dtype: str,
    fill: int | float | str,
    dims: tuple[str, ...],
    attributes: Mapping[str, Any],
) -> None:
    """An array of one chunk a cell, with a checksum, so that a damaged chunk is noticed.

    Chunks that hold only the fill value are written too, so that a missing one is a loss and not a result.
    """
    group.create_array(
        name,
        shape=shape,
        chunks=(1, *shape[1:]),
        dtype=dtype,
        fill_value=fill,
        dimension_names=dims,
        attributes=dict(attributes),
        compressors=ZstdCodec(level=3, checksum=True),
        config={"write_empty_chunks": True},
    )


def reason(error: OSError) -> str:
    """What the system says of an error, without number and path."""
    return error.strerror or _first_line(error)


def provenance_arrays(group: zarr.Group) -> dict[str, zarr.Array[Any]]:
    """Those of `PROVENANCE` that the store has."""
    return {name: array for name in PROVENANCE if isinstance(array := group.get(name), zarr.Array)}


def is_result(array: zarr.Array[Any]) -> bool:
    """Whether cells write it: an observable or the status."""
    return array.basename == "status" or array.dtype == np.float32


def open_group(path: Path, mode: Any) -> zarr.Group:
    """The group of a sweep, its attributes validated.

    Raises:
        StoreError: no readable sweep.
    """
    if not path.exists():
        raise StoreError(f"{path} does not exist")
    try:
        group = zarr.open_group(path, mode=mode)
    except UNREADABLE as error:
        raise StoreError(f"{path} is no readable Zarr group: {_first_line(error)}") from error
    if group.attrs.get("kind") != KIND:
        raise StoreError(
            f"{path} is no sweep of this project (attribute kind is {group.attrs.get('kind')!r})"
        )
    for name, kind in (("configuration", dict), ("variables", list), ("axes", list)):
        try:
            value = json.loads(str(group.attrs[name]))
        except (KeyError, ValueError) as error:
            raise StoreError(f"{path} is damaged: its attribute {name} is missing or no JSON") from error
        if not isinstance(value, kind):
            raise StoreError(f"{path} is damaged: its attribute {name} is no {kind.__name__}")
    return group


def required_arrays(group: zarr.Group, path: Path) -> dict[str, zarr.Array[Any]]:
    """Every array the store must have.

    Raises:
        StoreError: naming those that are missing or unreadable.
    """
    names = [
        *json.loads(str(group.attrs["variables"])),
        *json.loads(str(group.attrs["axes"])),
        "block",
        "writer",
    ]
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


def check_written(arrays: Mapping[str, zarr.Array[Any]], path: Path, finished: int) -> None:
    """Refuse arrays that have lost chunks: all of one written at once, one a finished cell of the others.

    Raises:
        StoreError: naming the first.
    """
    for name, array in arrays.items():
        cellwise = is_result(array) and array.chunks == (1, *array.shape[1:])
        expected = finished if cellwise else array.nchunks
        lost = expected - array.nchunks_initialized
        if lost > 0 and cellwise:
            raise StoreError(
                f"{path} is truncated: {name} of {lost} finished cells is gone; run with --resume"
            )
        if lost > 0:
            raise StoreError(f"{path} is truncated: {name} is gone; write another store")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def open_cells(path: str | Path) -> xr.Dataset:
    """A sweep as it is stored, along `cell`, loaded into memory.

    Raises:
        StoreError: no sweep, a damaged or missing chunk, or a missing variable.
    """
    path = Path(path)
    arrays = required_arrays(open_group(path, "r"), path)
    try:
        with xr.open_zarr(path, consolidated=False, chunks=None) as lazy:
            data = cast(xr.Dataset, lazy.load())
    except UNREADABLE as error:
        raise StoreError(f"{path} is damaged ({_first_line(error)}): run the sweep with --resume") from error
    check_written(arrays, path, int(data["status"].isin([DONE, DIVERGED]).sum()))
    return data


def open_progress(path: str | Path) -> xr.Dataset:
    """How far a sweep is, also while it runs: axes, `status` and `PROVENANCE` along `cell`, no observables.

    Raises:
        StoreError: no sweep, or data of finished cells that are gone.
    """
    path = Path(path)
    group = open_group(path, "r")
    arrays = required_arrays(group, path)
    axes = json.loads(str(group.attrs["axes"]))
    hidden = [name for name in arrays if name not in ("status", *axes)]
    try:
        with xr.open_zarr(path, consolidated=False, chunks=None, drop_variables=hidden) as lazy:
            data = cast(xr.Dataset, lazy.load())
    except UNREADABLE as error:
        raise StoreError(f"{path} is damaged ({_first_line(error)}): run the sweep with --resume") from error
    check_written(arrays, path, int(data["status"].isin([DONE, DIVERGED]).sum()))
    return data.set_coords(axes)


def open_sweep(path: str | Path) -> xr.Dataset:
    """A grid unstacked over its axes, then `block` and `writer`; a list of settings stays along `cell`.

    Raises:
        StoreError: as `open_cells`.
    """
    data = open_cells(path)
    if not data.attrs.get("grid", True):
        return data
    axes = json.loads(data.attrs["axes"])
    in_order = {axis: pd.unique(data[axis].values) for axis in axes}
    return data.set_index(cell=axes).unstack("cell").sel(in_order)
