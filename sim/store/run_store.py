"""The run store: what a training run logs, one row per step and one chunk per interval of steps."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray
from zarr.abc.buffer import Buffer
from zarr.storage import MemoryStore

from meanmode.sim.store.files import DIMENSIONS, Variable, add_array, check_free, column, put_in_place
from meanmode.sim.store.run_reader import KIND

RUN_DIMENSIONS = {
    **DIMENSIONS,
    "family": Variable(definition="family of parameters whose gradients are taken together"),
    "matrix": Variable(definition="weight matrix of a block"),
}


def create_run(
    path: str | Path,
    *,
    steps: int,
    interval: int,
    sizes: Mapping[str, Sequence[Any]],
    variables: Mapping[str, Variable],
    attributes: Mapping[str, Any],
) -> None:
    """Create an empty run store; it appears at `path` complete or not at all.

    Args:
        path: path of the store; must not exist.
        steps: number of optimiser steps planned; a writer can extend it.
        interval: steps per chunk, and the most that a killed process loses.
        sizes: dimension -> its coordinate values (`block`, `writer`, `family`, `matrix`).
        variables: name -> what is logged; NaN where not measured. Scalars of a step are float64, so that
            counts and times keep every digit; all others are float32.
        attributes: provenance and configuration, JSON-serialisable.

    Raises:
        ValueError: `steps` or `interval` below 1, a variable with an unknown dimension, or one named like a
            dimension.
        StoreExistsError: something exists at the path.
        StoreError: the disk is full, or another error of the file system.
    """
    path = Path(path)
    check_free(path)
    _check_layout(steps, interval, sizes, variables)
    files: dict[str, Buffer] = {}
    own = {
        "kind": KIND,
        "interval": interval,
        "first_step": 1,
        "logged_steps": 0,
        "variables": json.dumps(list(variables)),
        "events": "[]",
    }
    coords = {name: (name, column(values), _attributes(name)) for name, values in sizes.items()}
    with zarr.config.set({"array.write_empty_chunks": True}):
        xr.Dataset(coords=coords, attrs={**attributes, **own}).to_zarr(
            MemoryStore(files), mode="w", consolidated=False, zarr_format=3
        )
    group = zarr.open_group(MemoryStore(files), mode="r+")
    # all planned steps are one chunk of the coordinate; a longer run appends further chunks
    step = add_array(
        group, "step", (steps,), "int64", 0, ("step",), DIMENSIONS["step"].attributes(), rows=steps
    )
    step[:] = step_numbers(0, steps)
    for name, given in variables.items():
        shape = (steps, *(np.size(sizes[dim]) for dim in given.dims))
        dtype = "float32" if given.dims else "float64"
        dims = ("step", *given.dims)
        add_array(group, name, shape, dtype, np.nan, dims, given.attributes(), rows=interval)
    put_in_place(files, path)


def _check_layout(
    steps: int, interval: int, sizes: Mapping[str, Sequence[Any]], variables: Mapping[str, Variable]
) -> None:
    for name, value in (("steps", steps), ("interval", interval)):
        if value < 1:
            raise ValueError(f"{name} of a run must be at least 1, got {value}")
    for name, given in variables.items():
        if name == "step" or name in sizes:
            raise ValueError(f"{name} is a dimension of the run and cannot be a variable too")
        for dim in given.dims:
            if dim not in sizes:
                raise ValueError(
                    f"{name} has dimension {dim}, which has no size: choose from {', '.join(sizes)}"
                )


def _attributes(dimension: str) -> dict[str, Any]:
    return RUN_DIMENSIONS[dimension].attributes() if dimension in RUN_DIMENSIONS else {}


def step_numbers(number: int, size: int) -> NDArray[np.int64]:
    """Steps in chunk `number` of the coordinate `step`, whose chunks hold `size` steps."""
    return np.arange(number * size + 1, (number + 1) * size + 1, dtype=np.int64)
