"""Reading a run store: the logged steps of a training run; missing or damaged data are always noticed."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray

from meanmode.sim.store.files import UNREADABLE, StoreError, chunk_path, first_line
from meanmode.sim.store.opening import find_arrays, json_attribute, open_kind

KIND = "mean-mode run"


TELEMETRY = "telemetry.zarr"
"""Name of the run store within a run's folder."""


ROWS = "rows"
"""Attribute of a store that has rows for some steps only, as of an imported log: their number."""


LOGGED_NAN = "logged_nan"
"""Attribute of a variable that was logged as NaN: first and last step of every stretch of rows, as JSON."""


def find_run(path: str | Path) -> Path:
    """Path of the run store, given the store itself or a run's folder."""
    path = Path(path)
    return path / TELEMETRY if (path / TELEMETRY).exists() else path


def is_run(path: str | Path) -> bool:
    """Whether a path is a run store, or a folder that holds one under its usual name."""
    try:
        open_kind(find_run(path), "r", KIND)
    except StoreError:
        return find_run(path) != Path(path)
    return True


def planned_steps(path: Path) -> int:
    """Number of steps for which a run store has rows.

    Raises:
        StoreError: the run cannot be read.
    """
    arrays = run_arrays(open_logged(path, "r")[0], path).values()
    return max(array.shape[0] for array in arrays if dims_of(array)[0] == "step")


def open_logged(path: Path, mode: Any) -> tuple[zarr.Group, range]:
    """Open the group of a run store, check its attributes, and return it with the logged steps.

    Raises:
        StoreError: the run cannot be read, or an attribute is damaged.
    """
    group = open_kind(path, mode, KIND)
    for name in ("variables", "events"):
        json_attribute(group, path, name, list)
    for name, least in (("interval", 1), ("first_step", 1), ("logged_steps", 0)):
        value = group.attrs.get(name)
        if not isinstance(value, int) or value < least:
            raise StoreError(f"{path} is damaged: its attribute {name} is {value!r}")
    first, last = (int(str(group.attrs[name])) for name in ("first_step", "logged_steps"))
    return group, range(first, last + 1)


def row_indices(group: zarr.Group, path: Path, steps: range) -> range:
    """Indices of the rows that hold the logged steps: s - 1 for step s, unless only some steps have a row.

    Raises:
        StoreError: the number of rows is damaged.
    """
    if ROWS not in group.attrs:
        return range(steps.start - 1, steps.stop - 1)
    rows = group.attrs[ROWS]
    if not isinstance(rows, int) or not 1 <= rows <= len(steps):
        raise StoreError(f"{path} is damaged: its attribute {ROWS} is {rows!r}")
    return range(rows)


def run_arrays(
    group: zarr.Group, path: Path, names: Collection[str] | None = None
) -> dict[str, zarr.Array[Any]]:
    """Arrays of a run: its variables, `step`, and the coordinates of all their dimensions.

    Args:
        group: of the run store.
        path: its path.
        names: variables in question; all by default.
    """
    variables = json_attribute(group, path, "variables", list)
    found = find_arrays(group, path, [name for name in variables if names is None or name in names])
    dims = dict.fromkeys(dim for array in found.values() for dim in dims_of(array))
    return found | find_arrays(group, path, {"step": None, **dims})


def dims_of(array: zarr.Array[Any]) -> tuple[str, ...]:
    """Names of an array's dimensions; one empty name if it has none."""
    names = getattr(array.metadata, "dimension_names", None) or ()
    return tuple(str(name) for name in names) or ("",)


def stored_rows(path: Path, array: zarr.Array[Any], first: int, stop: int) -> NDArray[Any]:
    """Read rows first, ..., stop - 1 of an array; all their chunks must exist.

    Raises:
        StoreError: a chunk is missing or damaged.
    """
    name, size = array.basename, array.chunks[0]
    advice = "resume from an earlier checkpoint, or start another run"
    for number in range(first // size, -(-stop // size)):
        if not chunk_path(path, array, number).exists():
            lost = f"rows {number * size + 1} to {(number + 1) * size} of {name}"
            raise StoreError(f"{path} is truncated: {lost} are missing; {advice}")
    try:
        rows = np.asarray(array[first:stop])
    except UNREADABLE as error:
        raise StoreError(
            f"{path} is damaged: {name} cannot be read ({first_line(error)}); {advice}"
        ) from error
    return rows.astype(object) if rows.dtype.kind in "TU" else rows


def open_run(path: str | Path, names: Collection[str] | None = None) -> xr.Dataset:
    """Load the logged steps of a run over `step`; its attribute `events` holds JSON.

    The steps of a training run are consecutive; those of an imported run are the ones that its log has.

    Args:
        path: the store, or a run's folder that holds a `telemetry.zarr`.
        names: variables to load, of those that the run has; all by default.

    Raises:
        StoreError: not a run, or a logged chunk is missing or damaged; the message names its variable.
    """
    path = find_run(path)
    group, steps = open_logged(path, "r")
    logged = row_indices(group, path, steps)
    loaded = {}
    for name, array in run_arrays(group, path, names).items():
        rows = logged if dims_of(array)[0] == "step" else range(array.shape[0])
        first, stop = rows.start, rows.stop
        if array.shape[0] < stop:
            raise StoreError(f"{path} is damaged: {name} has {array.shape[0]} of {stop} logged steps")
        loaded[name] = (dims_of(array), stored_rows(path, array, first, stop), dict(array.attrs))
    coords = {name: given for name, given in loaded.items() if given[0] == (name,)}
    variables = {name: given for name, given in loaded.items() if name not in coords}
    return xr.Dataset(variables, coords, dict(group.attrs))


def run_variables(path: str | Path) -> list[str]:
    """Names of the variables of a run, in the order in which they are stored; nothing is loaded.

    Args:
        path: the store, or a run's folder.

    Raises:
        StoreError: the run cannot be read.
    """
    path = find_run(path)
    return [str(name) for name in json_attribute(open_logged(path, "r")[0], path, "variables", list)]


def run_sizes(path: str | Path, names: Collection[str]) -> dict[str, dict[str, int]]:
    """Variables of a run, and their dimensions with their sizes in the store; nothing is loaded.

    Args:
        path: the store, or a run's folder.
        names: the variables.

    Raises:
        StoreError: the run cannot be read.
    """
    path = find_run(path)
    arrays = run_arrays(open_logged(path, "r")[0], path, names)
    sizes = {name: dict(zip(dims_of(array), array.shape, strict=False)) for name, array in arrays.items()}
    return {name: sizes[name] for name in names if name in sizes}


def logged_mask(run: xr.Dataset, name: str) -> NDArray[np.bool_]:
    """Rows at which a variable was logged [N]: those with a number, and those where NaN itself was logged.

    Args:
        run: a run from `open_run`.
        name: one of its variables.
    """
    values = run[name]
    others = [dim for dim in values.dims if dim != "step"]
    found = values.notnull().any(others).values
    stretches = np.array(json.loads(values.attrs.get(LOGGED_NAN, "[]")), np.int64).reshape(-1, 2)
    steps = run["step"].values
    begins = np.searchsorted(steps, stretches[:, 0], side="left")
    ends = np.searchsorted(steps, stretches[:, 1], side="right")
    change = np.bincount(begins, minlength=len(steps) + 1) - np.bincount(ends, minlength=len(steps) + 1)
    logged: NDArray[np.bool_] = found | (np.cumsum(change)[:-1] > 0)
    return logged
