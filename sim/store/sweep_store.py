"""The sweep store: one Zarr v3 group, one chunk per cell, for any number of writers, read by xarray."""

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
    add_array,
    check_free,
    column,
    find_arrays,
    first_line,
    json_attribute,
    open_kind,
    put_in_place,
)
from meanmode.sim.store.files import StoreError as StoreError
from meanmode.sim.store.files import Variable as Variable

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
"""How a cell came about; no result, not the same in two runs, and missing in stores of older versions."""


def create_sweep(
    path: str | Path,
    *,
    coordinates: Mapping[str, tuple[Sequence[Any], Variable]],
    sizes: Mapping[str, Sequence[Any]],
    variables: Mapping[str, Variable],
    forecasts: Mapping[str, tuple[ArrayLike, Variable]],
    attributes: Mapping[str, Any],
) -> None:
    """Lay out an empty sweep with its forecast; it appears under `path` complete or not at all.

    Of several processes that lay out one path at once exactly one succeeds.

    Args:
        path: where; must not exist.
        coordinates: axis -> its value in every cell, and what it is.
        sizes: dimension -> its coordinate values, of `DIMENSIONS`.
        variables: name -> what is measured; float32, NaN until written.
        forecasts: name -> values of every cell, and what they are; written before any cell is run.
        attributes: provenance and configuration, JSON-serialisable.

    Raises:
        StoreExistsError: something is already there.
        StoreError: no room, or another error of the file system.
    """
    path = Path(path)
    check_free(path)
    cells = len(next(iter(coordinates.values()))[0])
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
    flags = {"flag_values": list(range(len(STATUS_NAMES))), "flag_meanings": " ".join(STATUS_NAMES)}
    files: dict[str, Buffer] = {}
    with zarr.config.set({"array.write_empty_chunks": True}):
        data.to_zarr(MemoryStore(files), mode="w", consolidated=False, zarr_format=3)
    group = zarr.open_group(MemoryStore(files), mode="r+")
    for name, given in variables.items():
        shape = (cells, *(len(np.asarray(sizes[dim])) for dim in given.dims))
        add_array(group, name, shape, "float32", np.nan, ("cell", *given.dims), given.attributes())
    add_array(group, "status", (cells,), "int8", TODO, ("cell",), {"long_name": "state of the cell", **flags})
    for name, given in PROVENANCE.items():
        dtype, fill = ("string", "") if name == "failure" else ("float64", np.nan)
        add_array(group, name, (cells,), dtype, fill, ("cell",), given.attributes())
    put_in_place(files, path)


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
    group = open_kind(path, mode, KIND)
    for name, kind in (("configuration", dict), ("variables", list), ("axes", list)):
        json_attribute(group, path, name, kind)
    return group


def required_arrays(group: zarr.Group, path: Path) -> dict[str, zarr.Array[Any]]:
    """Every array the store must have.

    Raises:
        StoreError: naming those that are missing or unreadable.
    """
    variables, axes = (json.loads(str(group.attrs[name])) for name in ("variables", "axes"))
    dimensions = json.loads(str(group.attrs.get("dimensions", '["block", "writer"]')))
    return find_arrays(group, path, [*variables, *axes, *dimensions])


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
        raise StoreError(f"{path} is damaged ({first_line(error)}): run the sweep with --resume") from error
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
        raise StoreError(f"{path} is damaged ({first_line(error)}): run the sweep with --resume") from error
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
