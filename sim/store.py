"""The sweep store: one Zarr v3 group, one chunk per cell, for any number of writers, read by xarray."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import xarray as xr
import zarr
from numpy.typing import ArrayLike, NDArray
from zarr.codecs import ZstdCodec

KIND = "mean-mode sweep"
TODO, DONE, FAILED, DIVERGED = 0, 1, 2, 3
STATUS_NAMES = ("to_do", "done", "failed", "diverged")


_UNREADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError)
"""What Zarr and its codecs raise on missing metadata and damaged bytes."""


class StoreError(ValueError):
    """A store that is not what it should be; the message says which, what is wrong and what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Variable:
    """What a store says of a variable: its dimensions behind `cell`, its definition and its unit."""

    dims: tuple[str, ...] = ()
    definition: str
    units: str = "1"

    def attributes(self) -> dict[str, Any]:
        """As attributes of the array."""
        return {"long_name": self.definition, "units": self.units}


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

    Args:
        path: where; must not exist.
        coordinates: axis -> its value in every cell, and what it is.
        sizes: dimension -> its coordinate values (`block`, `writer`).
        variables: name -> what is measured; float32, NaN until written.
        forecasts: name -> values of every cell, and what they are; written before any cell is run.
        attributes: provenance and configuration, JSON-serialisable.

    Raises:
        StoreError: something is already there.
    """
    path = Path(path)
    if path.exists():
        raise StoreError(f"{path} already exists: pass --resume to go on with it, or another --out")
    cells = len(next(iter(coordinates.values()))[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
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
    try:
        with zarr.config.set({"array.write_empty_chunks": True}):
            data.to_zarr(partial, mode="w", consolidated=False, zarr_format=3)
        group = zarr.open_group(partial, mode="r+")
        for name, given in variables.items():
            shape = (cells, *(len(np.asarray(sizes[dim])) for dim in given.dims))
            _add_array(group, name, shape, "float32", np.nan, ("cell", *given.dims), given.attributes())
        _add_array(
            group, "status", (cells,), "int8", TODO, ("cell",), {"long_name": "state of the cell", **flags}
        )
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _column(values: Sequence[Any]) -> NDArray[Any]:
    """Coordinate values as an array; text as objects, so that Zarr keeps its full length."""
    return np.array(values, dtype=object) if isinstance(values[0], str) else np.asarray(values)


def _add_array(
    group: zarr.Group,
    name: str,
    shape: tuple[int, ...],
    dtype: str,
    fill: int | float,
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


class SweepWriter:
    """Writes cells of an existing sweep; safe for several processes, since a chunk belongs to one cell.

    Args:
        path: the store.

    Raises:
        StoreError: no sweep, a missing variable, or chunks that are not one cell each (two writers would
            overwrite each other's cells).
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.group = _open_group(self.path, "r+")
        found = _arrays(self.group, self.path)
        self.arrays = {
            name: array.with_config({"write_empty_chunks": True})
            for name, array in found.items()
            if _is_result(array)
        }
        for name, array in self.arrays.items():
            if array.chunks != (1, *array.shape[1:]) or array.shards is not None:
                raise StoreError(
                    f"{path}: chunks of {name} are not one cell each (a compacted store is read-only)"
                )
        _check_written(
            {name: array for name, array in found.items() if name not in self.arrays}, self.path, 0
        )

    def remaining(self) -> tuple[list[int], list[int]]:
        """Cells to do, and those of them that were marked done but whose data are gone or damaged."""
        todo, lost = [], []
        for cell in range(self.arrays["status"].shape[0]):
            try:
                status = int(np.asarray(self.arrays["status"][cell]))
                if status in (DONE, DIVERGED) and not self._holds_data(cell):
                    lost.append(cell)
            except _UNREADABLE:
                lost.append(cell)
                continue
            if status in (TODO, FAILED):
                todo.append(cell)
        return sorted(todo + lost), lost

    def _holds_data(self, cell: int) -> bool:
        if not all((self.path / name / "c" / str(cell)).exists() for name in self.arrays):
            return False
        rows = {name: np.asarray(array[cell]) for name, array in self.arrays.items()}
        return bool(np.isfinite(rows["tcs"][0]))

    def write(self, cell: int, values: Mapping[str, NDArray[Any]], status: int) -> None:
        """Write a cell's observables, shorter profiles NaN-padded, then its status."""
        for name, array in self.arrays.items():
            if name == "status":
                continue
            row = np.full((1, *array.shape[1:]), np.nan, np.float32)
            if name in values:
                place: tuple[Any, ...] = (0, *(slice(size) for size in values[name].shape))
                row[place] = values[name]
            array[cell : cell + 1] = row
        self.arrays["status"][cell : cell + 1] = np.array([status], np.int8)


def _dims(array: zarr.Array[Any]) -> tuple[str | None, ...]:
    """Dimension names, none for an array of an older format."""
    return tuple(getattr(array.metadata, "dimension_names", None) or ())


def _is_result(array: zarr.Array[Any]) -> bool:
    return array.basename == "status" or array.dtype == np.float32


def _open_group(path: Path, mode: Any) -> zarr.Group:
    if not path.exists():
        raise StoreError(f"{path} does not exist")
    try:
        group = zarr.open_group(path, mode=mode)
    except _UNREADABLE as error:
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


def _arrays(group: zarr.Group, path: Path) -> dict[str, zarr.Array[Any]]:
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
        except _UNREADABLE:
            missing.append(name)
            continue
        if isinstance(array, zarr.Array):
            arrays[name] = array
    if missing:
        raise StoreError(f"{path} is truncated: it holds no readable {', '.join(missing)}")
    return arrays


def _check_written(arrays: Mapping[str, zarr.Array[Any]], path: Path, finished: int) -> None:
    """Refuse arrays that have lost chunks: all of one written at once, one a finished cell of the others.

    Raises:
        StoreError: naming the first.
    """
    for name, array in arrays.items():
        cellwise = _is_result(array) and array.chunks == (1, *array.shape[1:]) and array.shape[0] > 1
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
    arrays = _arrays(_open_group(path, "r"), path)
    try:
        with xr.open_zarr(path, consolidated=False, chunks=None) as lazy:
            data = cast(xr.Dataset, lazy.load())
    except _UNREADABLE as error:
        raise StoreError(f"{path} is damaged ({_first_line(error)}): run the sweep with --resume") from error
    _check_written(arrays, path, int(data["status"].isin([DONE, DIVERGED]).sum()))
    return data


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


def compact(path: str | Path) -> None:
    """Rewrite a complete sweep with one chunk per variable: same bits, few files, read-only from then on.

    Raises:
        StoreError: cells that are still to do.
    """
    path = Path(path)
    data = open_cells(path)
    todo = int(data["status"].isin([TODO, FAILED]).sum())
    if todo:
        raise StoreError(f"{path} still has {todo} cells to do: only a complete sweep is compacted")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    replaced = path.with_name(f".{path.name}.{os.getpid()}.replaced")
    for variable in data.variables.values():
        variable.encoding = {}
    codec = ZstdCodec(level=9, checksum=True)
    encoding = {name: {"chunks": data[name].shape, "compressors": codec} for name in data.data_vars}
    with zarr.config.set({"array.write_empty_chunks": True}):
        data.to_zarr(partial, mode="w", consolidated=False, zarr_format=3, encoding=encoding)
    path.rename(replaced)
    partial.rename(path)
    shutil.rmtree(replaced)
