"""The sweep store: one Zarr v3 group with one chunk per cell, for any number of writers, read by xarray."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import xarray as xr
import zarr
from numpy.typing import ArrayLike
from zarr.abc.buffer import Buffer
from zarr.storage import MemoryStore

from meanmode.sim.store.files import (
    DIMENSIONS,
    UNREADABLE,
    StoreError,
    Variable,
    add_array,
    check_free,
    column,
    first_line,
    put_in_place,
)
from meanmode.sim.store.opening import find_arrays, json_attribute, open_kind

KIND = "mean-mode sweep"


TODO, DONE, FAILED, DIVERGED = 0, 1, 2, 3


STATUS_NAMES = ("to_do", "done", "failed", "diverged")


PROVENANCE = {
    "wall_seconds": Variable(
        definition="wall time of the run that gave the cell, the same for all depths it gave", units="s"
    ),
    "finished": Variable(definition="Unix time (UTC) at which the cell was written", units="s"),
    "failure": Variable(definition="type and message of the exception of a failed cell, else empty"),
}
"""How a cell came about: not a result, different in every run, and absent from stores of older versions."""


def create_sweep(
    path: str | Path,
    *,
    coordinates: Mapping[str, tuple[Sequence[Any], Variable]],
    sizes: Mapping[str, Sequence[Any]],
    variables: Mapping[str, Variable],
    forecasts: Mapping[str, tuple[ArrayLike, Variable]],
    attributes: Mapping[str, Any],
) -> None:
    """Create an empty sweep store with its forecast; it appears at `path` complete or not at all.

    If several processes create the same path at once, exactly one succeeds.

    Args:
        path: path of the store; must not exist.
        coordinates: axis -> its value in every cell, and its description.
        sizes: dimension -> its coordinate values; dimensions are those of `DIMENSIONS`.
        variables: name -> what is measured; float32, NaN until written.
        forecasts: name -> its value in every cell, and its description; written before any cell is run.
        attributes: provenance and configuration, JSON-serialisable.

    Raises:
        StoreExistsError: something exists at the path.
        StoreError: the disk is full, or another error of the file system.
    """
    path = Path(path)
    check_free(path)
    cells = len(next(iter(coordinates.values()))[0])
    flags = {"flag_values": list(range(len(STATUS_NAMES))), "flag_meanings": " ".join(STATUS_NAMES)}
    files: dict[str, Buffer] = {}
    with zarr.config.set({"array.write_empty_chunks": True}):
        _known_data(coordinates, sizes, forecasts, attributes).to_zarr(
            MemoryStore(files), mode="w", consolidated=False, zarr_format=3
        )
    group = zarr.open_group(MemoryStore(files), mode="r+")
    for name, given in variables.items():
        shape = (cells, *(len(np.asarray(sizes[dim])) for dim in given.dims))
        add_array(group, name, shape, "float32", np.nan, ("cell", *given.dims), given.attributes())
    add_array(group, "status", (cells,), "int8", TODO, ("cell",), {"long_name": "state of the cell", **flags})
    for name, given in PROVENANCE.items():
        dtype, fill = ("string", "") if name == "failure" else ("float64", np.nan)
        add_array(group, name, (cells,), dtype, fill, ("cell",), given.attributes())
    put_in_place(files, path)


def _known_data(
    coordinates: Mapping[str, tuple[Sequence[Any], Variable]],
    sizes: Mapping[str, Sequence[Any]],
    forecasts: Mapping[str, tuple[ArrayLike, Variable]],
    attributes: Mapping[str, Any],
) -> xr.Dataset:
    """Everything a sweep store holds before any cell is run: axes, dimensions, forecast and attributes."""
    data = xr.Dataset(
        {
            name: (("cell", *given.dims), np.asarray(values, float), given.attributes())
            for name, (values, given) in forecasts.items()
        },
        coords={
            **{
                name: ("cell", column(values), given.attributes())
                for name, (values, given) in coordinates.items()
            },
            **{name: (name, column(values)) for name, values in sizes.items()},
        },
        attrs={
            "kind": KIND,
            "axes": json.dumps(list(coordinates)),
            "dimensions": json.dumps(list(sizes)),
            **attributes,
        },
    )
    for name in sizes:
        data[name].attrs = DIMENSIONS[name].attributes()
    return data


def provenance_arrays(group: zarr.Group) -> dict[str, zarr.Array[Any]]:
    """The arrays of `PROVENANCE` that the store has."""
    return {name: array for name in PROVENANCE if isinstance(array := group.get(name), zarr.Array)}


def is_result(array: zarr.Array[Any]) -> bool:
    """Whether an array is written by cells: an observable or the status."""
    return array.basename == "status" or array.dtype == np.float32


def open_group(path: Path, mode: Any) -> zarr.Group:
    """Open the group of a sweep store and check its attributes.

    Raises:
        StoreError: the sweep cannot be read, or an attribute is damaged.
    """
    group = open_kind(path, mode, KIND)
    for name, kind in (("configuration", dict), ("variables", list), ("axes", list)):
        json_attribute(group, path, name, kind)
    return group


def required_arrays(group: zarr.Group, path: Path) -> dict[str, zarr.Array[Any]]:
    """Find every array that the store must have.

    Raises:
        StoreError: some are missing or unreadable; the message names them.
    """
    variables, axes = (json_attribute(group, path, name, list) for name in ("variables", "axes"))
    dimensions = (
        json_attribute(group, path, "dimensions", list)
        if "dimensions" in group.attrs
        else ["block", "writer"]
    )
    return find_arrays(group, path, dict.fromkeys(["status", *variables, *axes, *dimensions]))


def check_written(arrays: Mapping[str, zarr.Array[Any]], path: Path, finished: int) -> None:
    """Refuse arrays with missing chunks.

    An array that cells write must have one chunk per finished cell, any other array all of its chunks.

    Raises:
        StoreError: chunks are missing; the message names the first such array.
    """
    for name, array in arrays.items():
        cellwise = is_result(array) and array.chunks == (1, *array.shape[1:])
        expected = finished if cellwise else array.nchunks
        lost = expected - array.nchunks_initialized
        if lost > 0 and cellwise:
            raise StoreError(
                f"{path} is truncated: {name} of {lost} finished cells is missing; run with --resume"
            )
        if lost > 0:
            raise StoreError(f"{path} is truncated: {name} is missing; create another store")


def open_cells(path: str | Path) -> xr.Dataset:
    """Load a sweep as it is stored, along `cell`.

    Raises:
        StoreError: not a sweep, or a chunk or variable is damaged or missing.
    """
    path = Path(path)
    arrays = required_arrays(open_group(path, "r"), path)
    try:
        with xr.open_zarr(path, consolidated=False, chunks=None) as lazy:
            data = cast(xr.Dataset, lazy.load())
    except UNREADABLE as error:
        raise StoreError(f"{path} is damaged ({first_line(error)}): run the sweep with --resume") from error
    _check_status(data, path)
    check_written(arrays, path, int(data["status"].isin([DONE, DIVERGED]).sum()))
    return data


def open_progress(path: str | Path) -> xr.Dataset:
    """Load the progress of a sweep, even while it runs: axes, `status` and `PROVENANCE`, no observables.

    Raises:
        StoreError: not a sweep, or data of finished cells are missing.
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
        raise StoreError(f"{path} is damaged ({first_line(error)}): run the sweep with --resume") from error
    _check_status(data, path)
    check_written(arrays, path, int(data["status"].isin([DONE, DIVERGED]).sum()))
    return data.set_coords(axes)


def _check_status(data: xr.Dataset, path: Path) -> None:
    """Refuse a store with a status that no version writes: its cells would count as nothing."""
    codes = data["status"].values if "status" in data else np.array([np.nan])
    unknown = codes[~np.isin(codes, range(len(STATUS_NAMES)))]
    if len(unknown):
        raise StoreError(f"{path} is damaged: status {unknown[0]} of a cell means nothing")


def open_sweep(path: str | Path) -> xr.Dataset:
    """Load a sweep: a grid over its axes, then `block` and `writer`; a list of settings along `cell`.

    Raises:
        StoreError: as `open_cells`.
    """
    return unstacked(open_cells(path))


def unstacked(data: xr.Dataset) -> xr.Dataset:
    """The cells of `open_cells` unstacked over the axes of a grid; a list of settings stays along `cell`."""
    if not data.attrs.get("grid", True):
        return data
    axes = json.loads(data.attrs["axes"])
    in_order = {axis: pd.unique(data[axis].values) for axis in axes}
    return data.set_index(cell=axes).unstack("cell").sel(in_order)
