"""The sweep store: one Zarr v3 group, one chunk per cell, for any number of writers, read by xarray."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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


def _attributes(long_name: str, units: str = "1") -> dict[str, Any]:
    return {"long_name": long_name, "units": units}


def create_sweep(
    path: str | Path,
    *,
    coordinates: Mapping[str, Sequence[Any]],
    sizes: Mapping[str, ArrayLike],
    variables: Mapping[str, tuple[tuple[str, ...], str]],
    forecasts: Mapping[str, tuple[ArrayLike, str]],
    attributes: Mapping[str, Any],
) -> None:
    """Lay out an empty sweep with its forecast; it appears under `path` complete or not at all.

    Args:
        path: where; must not exist.
        coordinates: axis -> its value in every cell.
        sizes: dimension -> its coordinate values (`block`, `writer`).
        variables: name -> (dimensions behind `cell`, definition); float32, NaN until written.
        forecasts: name -> (value in every cell, definition); written here, before any cell is run.
        attributes: provenance and configuration, JSON-serialisable.

    Raises:
        StoreError: something is already there.
    """
    path = Path(path)
    if path.exists():
        raise StoreError(f"{path} already exists: pass --resume to go on with it, or another --out")
    cells = len(next(iter(coordinates.values())))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    data = xr.Dataset(
        {
            name: ("cell", np.asarray(values, float), _attributes(text, "block"))
            for name, (values, text) in forecasts.items()
        },
        coords={
            **{name: ("cell", _column(values)) for name, values in coordinates.items()},
            **{name: (name, _column(np.asarray(values).tolist())) for name, values in sizes.items()},
        },
        attrs={"kind": KIND, "axes": json.dumps(list(coordinates)), **attributes},
    )
    data["block"].attrs = _attributes("block; 0 is the input, l the state after block l", "block")
    data["writer"].attrs = _attributes("residual writer whose branch is measured: attention or SwiGLU")
    try:
        data.to_zarr(partial, mode="w", consolidated=False, zarr_format=3)
        group = zarr.open_group(partial, mode="r+")
        for name, (dims, text) in variables.items():
            shape = tuple(len(np.asarray(sizes[dim])) for dim in dims)
            _add_array(
                group,
                name,
                (cells, *shape),
                (1, *shape),
                "float32",
                np.nan,
                ("cell", *dims),
                _attributes(text),
            )
        flags = {"flag_values": list(range(len(STATUS_NAMES))), "flag_meanings": " ".join(STATUS_NAMES)}
        _add_array(
            group,
            "status",
            (cells,),
            (1,),
            "int8",
            TODO,
            ("cell",),
            {"long_name": "state of the cell", **flags},
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
    chunks: tuple[int, ...],
    dtype: str,
    fill: int | float,
    dims: tuple[str, ...],
    attributes: Mapping[str, Any],
) -> None:
    """An array whose chunks carry a checksum, so that a damaged one is noticed."""
    group.create_array(
        name,
        shape=shape,
        chunks=chunks,
        dtype=dtype,
        fill_value=fill,
        dimension_names=dims,
        attributes=dict(attributes),
        compressors=ZstdCodec(level=3, checksum=True),
    )


class SweepWriter:
    """Writes cells of an existing sweep; safe for several processes, since a chunk belongs to one cell.

    Args:
        path: the store.

    Raises:
        StoreError: no sweep, or chunks that are not one cell each (two writers would overwrite each other's
            cells).
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.group = _open_group(self.path, "r+")
        self.arrays = {
            name: array
            for name, array in self.group.arrays()
            if _dims(array)[:1] == ("cell",) and _is_result(array)
        }
        for name, array in self.arrays.items():
            if array.chunks != (1, *array.shape[1:]) or array.shards is not None:
                raise StoreError(
                    f"{path}: chunks of {name} are not one cell each (a compacted store is read-only)"
                )

    def remaining(self) -> tuple[list[int], list[int]]:
        """Cells to do, and those of them that were marked done but whose data are gone or damaged."""
        todo, lost = [], []
        for cell in range(self.arrays["status"].shape[0]):
            try:
                status = int(np.asarray(self.arrays["status"][cell]))
                if status == DONE and not self._holds_data(cell):
                    lost.append(cell)
            except _UNREADABLE:
                lost.append(cell)
                continue
            if status in (TODO, FAILED):
                todo.append(cell)
        return sorted(todo + lost), lost

    def _holds_data(self, cell: int) -> bool:
        rows = {name: np.asarray(array[cell]) for name, array in self.arrays.items()}
        return bool(np.isfinite(rows["tcs"][0]))

    def write(self, cell: int, values: Mapping[str, NDArray[Any]], status: int) -> None:
        """Write a cell's observables, shorter profiles NaN-padded, then its status."""
        for name, value in values.items():
            array = self.arrays[name]
            row = np.full((1, *array.shape[1:]), np.nan, np.float32)
            place: tuple[Any, ...] = (0, *(slice(size) for size in value.shape))
            row[place] = value
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
    return group


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def open_cells(path: str | Path) -> xr.Dataset:
    """A sweep as it is stored, along `cell`, loaded into memory.

    Raises:
        StoreError: no sweep, a damaged chunk, a missing variable, or a finished cell without data.
    """
    path = Path(path)
    group = _open_group(path, "r")
    missing = [name for name in json.loads(str(group.attrs["variables"])) if name not in group]
    if missing:
        raise StoreError(f"{path} is truncated: it holds no {', '.join(missing)}")
    try:
        with xr.open_zarr(path, consolidated=False, chunks=None) as lazy:
            data = lazy.load()
    except _UNREADABLE as error:
        raise StoreError(f"{path} is damaged ({_first_line(error)}): run the sweep with --resume") from error
    hollow = int(((data["status"] == DONE) & ~np.isfinite(data["tcs"].isel(block=0))).sum())
    if hollow:  # a chunk that was deleted reads as the fill value
        raise StoreError(
            f"{path} is truncated: {hollow} finished cells hold no data; run the sweep with --resume"
        )
    return data


def open_sweep(path: str | Path) -> xr.Dataset:
    """A sweep unstacked over its axes: one dimension per axis, then `block` and `writer`; a list stays along `cell`.

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
    todo = int((data["status"] == TODO).sum())
    if todo:
        raise StoreError(f"{path} still has {todo} cells to do: only a complete sweep is compacted")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    replaced = path.with_name(f".{path.name}.{os.getpid()}.replaced")
    for variable in data.variables.values():
        variable.encoding = {}
    codec = ZstdCodec(level=9, checksum=True)
    encoding = {name: {"chunks": data[name].shape, "compressors": codec} for name in data.data_vars}
    data.to_zarr(partial, mode="w", consolidated=False, zarr_format=3, encoding=encoding)
    path.rename(replaced)
    partial.rename(path)
    shutil.rmtree(replaced)
