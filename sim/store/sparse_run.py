"""Writing a run store at once that has rows for some steps only, such as the telemetry of a foreign log."""

# N rows

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray
from zarr.abc.buffer import Buffer
from zarr.storage import MemoryStore

from meanmode.sim.store.files import (
    DIMENSIONS,
    Variable,
    add_array,
    check_free,
    column,
    write_chunk,
    write_files,
)
from meanmode.sim.store.run_reader import KIND, LOGGED_NAN, ROWS

CHUNK_VALUES = 2**20
"""Most values of one chunk; a row that has more is a chunk of its own."""

Rows = Callable[[int, int], NDArray[np.float64]]
"""Values of rows first, ..., stop - 1 of a variable, NaN where not measured."""


def write_sparse_run(
    path: str | Path,
    *,
    steps: NDArray[np.int64],
    sizes: Mapping[str, Sequence[Any]],
    variables: Mapping[str, tuple[Variable, Rows]],
    logged_nan: Mapping[str, NDArray[np.bool_]],
    attributes: Mapping[str, Any],
) -> None:
    """Write a finished run of which only these steps have a row; cost and size go by rows.

    The store is read like any other run. It is not safe against kills while it is written, so write it beside
    its place and rename it.

    Args:
        path: path of the store; must not exist.
        steps: steps that have a row, strictly increasing from 1 or later [N].
        sizes: dimension -> its coordinate values.
        variables: name -> its description and its values.
        logged_nan: name -> rows at which NaN itself was logged [N], for the variables that have any.
        attributes: provenance and configuration, JSON-serialisable.

    Raises:
        StoreExistsError: something exists at the path.
        OSError: the disk is full, or another error of the file system.
    """
    path = Path(path)
    check_free(path)
    own = {
        "kind": KIND,
        "interval": len(steps),
        ROWS: len(steps),
        "first_step": int(steps[0]),
        "logged_steps": int(steps[-1]),
        "variables": json.dumps(list(variables)),
        "events": "[]",
    }
    _write_coordinates(path, {"step": steps} | dict(sizes), {**attributes, **own})
    group = zarr.open_group(path, mode="r+")
    for name, (given, rows) in variables.items():
        shape = (len(steps), *(len(sizes[dim]) for dim in given.dims))
        described = given.attributes()
        if name in logged_nan:
            described[LOGGED_NAN] = json.dumps(_stretches(steps, logged_nan[name]))
        per_chunk = min(max(CHUNK_VALUES // int(np.prod(shape[1:])), 1), len(steps))
        dtype, dims = "float32" if given.dims else "float64", ("step", *given.dims)
        array = add_array(group, name, shape, dtype, np.nan, dims, described, rows=per_chunk)
        _write_chunks(path, array, rows)


def _write_coordinates(path: Path, values: Mapping[str, Any], attributes: Mapping[str, Any]) -> None:
    """Write the group with its attributes and coordinates."""
    coords = {name: (name, column(of), DIMENSIONS[name].attributes()) for name, of in values.items()}
    files: dict[str, Buffer] = {}
    with zarr.config.set({"array.write_empty_chunks": True}):
        xr.Dataset(coords=coords, attrs=attributes).to_zarr(
            MemoryStore(files),
            mode="w",
            consolidated=False,
            zarr_format=3,
            encoding={"step": {"chunks": (len(values["step"]),)}},
        )
    write_files(files, path)


def _write_chunks(path: Path, array: zarr.Array[Any], rows: Rows) -> None:
    """Write all chunks of a variable; values beyond its type become infinite."""
    count, per_chunk = array.shape[0], array.chunks[0]
    for number, first in enumerate(range(0, count, per_chunk)):
        stop = min(first + per_chunk, count)
        chunk = np.full(array.chunks, np.nan, array.dtype)
        with np.errstate(over="ignore"):
            chunk[: stop - first] = rows(first, stop)
        write_chunk(path, array, number, chunk)


def _stretches(steps: NDArray[np.int64], mask: NDArray[np.bool_]) -> list[list[int]]:
    """First and last step of every stretch of consecutive rows."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [[int(steps[first]), int(steps[stop - 1])] for first, stop in edges.reshape(-1, 2)]
