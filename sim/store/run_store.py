"""The run store: what a training run logs, one row a step, one chunk an interval, whole whenever it stops."""

# N steps, I steps of an interval

import json
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import ArrayLike, NDArray
from zarr.abc.buffer import Buffer
from zarr.storage import MemoryStore

from meanmode.sim.store.files import (
    DIMENSIONS,
    METADATA,
    StoreError,
    Variable,
    add_array,
    check_free,
    chunk_path,
    column,
    is_compacted,
    json_attribute,
    partial_path,
    put_in_place,
    reason,
    write_chunk,
    write_whole,
)
from meanmode.sim.store.run_reader import KIND, find_run, open_logged, run_arrays, stored_rows

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
    """Lay out an empty run; it appears under `path` complete or not at all.

    Args:
        path: where; must not exist.
        steps: how many optimiser steps are planned; a writer can add more.
        interval: steps of a chunk, and of what a killed process loses at most.
        sizes: dimension -> its coordinate values (`block`, `writer`, `family`, `matrix`).
        variables: name -> what is logged; NaN where not measured. Scalars of a step are float64, so that
            counts and times keep every digit, all others float32.
        attributes: provenance and configuration, JSON-serialisable.

    Raises:
        ValueError: no step, no interval, or a variable of an unknown dimension or a taken name.
        StoreExistsError: something is already there.
        StoreError: no room, or another error of the file system.
    """
    path = Path(path)
    check_free(path)
    for name, value in (("steps", steps), ("interval", interval)):
        if value < 1:
            raise ValueError(f"{name} of a run must be at least 1, got {value}")
    for name, given in variables.items():
        if name == "step" or name in sizes:
            raise ValueError(f"{name} is a dimension of the run and cannot be a variable too")
        for dim in given.dims:
            if dim not in sizes:
                raise ValueError(f"{name} is over {dim}, which has no size: choose of {', '.join(sizes)}")
    coords = {name: (name, column(values), _about(name)) for name, values in sizes.items()}
    own = {
        "kind": KIND,
        "interval": interval,
        "first_step": 1,
        "logged_steps": 0,
        "variables": json.dumps(list(variables)),
        "events": "[]",
    }
    files: dict[str, Buffer] = {}
    with zarr.config.set({"array.write_empty_chunks": True}):
        xr.Dataset(coords=coords, attrs={**attributes, **own}).to_zarr(
            MemoryStore(files), mode="w", consolidated=False, zarr_format=3
        )
    group = zarr.open_group(MemoryStore(files), mode="r+")
    # all steps in one chunk: a longer run adds chunks behind it
    add_array(group, "step", (steps,), "int64", 0, ("step",), DIMENSIONS["step"].attributes(), rows=steps)[
        :
    ] = _counted(0, steps)
    for name, given in variables.items():
        shape = (steps, *(np.size(sizes[dim]) for dim in given.dims))
        dtype = "float32" if given.dims else "float64"
        dims = ("step", *given.dims)
        add_array(group, name, shape, dtype, np.nan, dims, given.attributes(), rows=interval)
    put_in_place(files, path)


def _about(name: str) -> dict[str, Any]:
    return RUN_DIMENSIONS[name].attributes() if name in RUN_DIMENSIONS else {}


def _counted(number: int, size: int) -> NDArray[np.int64]:
    """The steps of a chunk of the coordinate."""
    return np.arange(number * size + 1, (number + 1) * size + 1, dtype=np.int64)


class RunWriter:
    """Logs the steps of a run into its store; one process at a time.

    What is logged is held until `flush`, which writes the chunks that have changed, each whole or not at all,
    and last, in one file, how many steps are logged and the events. A process killed at any moment leaves the
    store as its last flush did, but for values that were late.

    Args:
        path: the store, or a run's folder.
        after: go on behind this step; rows and events of later steps are dropped. None: behind the last
            logged step. An empty store begins behind it (a fork of another run).
        steps: how many steps are planned now, where that is more than before.

    Attributes:
        first: the first step that is logged, or will be.
        last: the last logged step, the one before `first` where none is.
        steps: how many steps are planned.

    Raises:
        StoreError: no run, a compacted one, no such step, or lost or damaged data of the interval in which
            it goes on.
    """

    def __init__(self, path: str | Path, *, after: int | None = None, steps: int | None = None) -> None:
        self.path = find_run(path)
        group, logged = open_logged(self.path, "r+")
        earliest, latest = logged.start - 1, logged.stop - 1
        found = run_arrays(group, self.path)
        self.interval = int(str(group.attrs["interval"]))
        self.arrays = {name: found[name] for name in json_attribute(group, self.path, "variables", list)}
        self._step = found["step"]
        if any(map(is_compacted, (self._step, *self.arrays.values()))):
            raise StoreError(f"{self.path} is compacted and therefore read-only: log into another run")
        self.last = latest if after is None else after
        if latest == 0:
            earliest = latest = max(self.last, 0)
        if not earliest <= self.last <= latest:
            raise StoreError(
                f"{self.path} cannot go on behind step {after}: steps {earliest + 1} to {latest} are logged; "
                "go on from a checkpoint of one of them"
            )
        self.first = earliest + 1
        self.events: list[dict[str, Any]] = [
            event for event in json_attribute(group, self.path, "events", list) if event["step"] <= self.last
        ]
        self._document: dict[str, Any] = json.loads((self.path / METADATA).read_bytes())
        self._chunks = {name: (array.chunks, array.dtype) for name, array in self.arrays.items()}
        self._held: dict[int, dict[str, NDArray[Any]]] = {}
        self._changed: defaultdict[int, set[str]] = defaultdict(set)
        self._hold_tail()
        try:
            self._commit()
            self._drop_chunks()
            self._plan(max(steps or 0, *(array.shape[0] for array in self.arrays.values())))
        except OSError as error:
            raise StoreError(f"{self.path} could not be gone on with ({reason(error)})") from error

    def _hold_tail(self) -> None:
        """Read the interval in which the run goes on, without what was written ahead of its last flush."""
        tail, kept = divmod(self.last, self.interval)
        if self.last < self.first:
            self._begin(tail)
        elif kept:
            self._held[tail] = {name: self._read(name, tail) for name in self.arrays}
            for name, rows in self._held[tail].items():
                if not np.isnan(rows[kept:]).all():
                    rows[kept:] = np.nan
                    self._changed[tail].add(name)

    def _drop_chunks(self) -> None:
        """Delete the chunks of later intervals."""
        following = -(-self.last // self.interval)
        for name in self.arrays:
            folder = self.path / name / "c"
            for entry in folder.iterdir() if folder.exists() else ():
                if entry.name.isdigit() and int(entry.name) >= following:
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def _plan(self, steps: int) -> None:
        """Give all arrays the planned length, also those that a killed process left behind."""
        self.steps, size = steps, self._step.chunks[0]
        for number in range(-(-steps // size)):
            if not chunk_path(self.path, self._step, number).exists():
                write_chunk(self.path, self._step, number, _counted(number, size))
        for array in (self._step, *self.arrays.values()):
            if array.shape[0] != steps:
                array.resize((steps, *array.shape[1:]))

    def _begin(self, number: int) -> None:
        """Begin an interval, in which nothing is measured yet."""
        self._held[number] = {name: self._blank(name) for name in self.arrays}
        self._changed[number].update(self.arrays)

    def _blank(self, name: str) -> NDArray[Any]:
        """A chunk of a variable in which nothing is measured."""
        chunk, dtype = self._chunks[name]
        return np.full(chunk, np.nan, dtype)

    def _read(self, name: str, number: int) -> NDArray[Any]:
        """A chunk of a variable, NaN beyond the end of the array."""
        array, first, rows = self.arrays[name], number * self.interval, self._blank(name)
        stored = stored_rows(self.path, array, first, min(first + self.interval, array.shape[0]))
        rows[: len(stored)] = stored
        return rows

    def log(self, step: int, values: Mapping[str, ArrayLike]) -> None:
        """Set values of the next step, or of an earlier one; the end of an interval is flushed.

        Args:
            step: the one behind `last`, or one that is already logged, whose other values stay.
            values: name -> the whole row of a variable.

        Raises:
            ValueError: a step that skips one or is beyond the plan, an unknown variable, or another shape.
            StoreError: as `flush`; or an earlier interval that cannot be read.
        """
        if not self.first <= step <= self.last + 1:
            raise ValueError(
                f"step {step} cannot be logged: {self.last + 1} is next, and rows begin at {self.first}"
            )
        if step > self.steps:
            raise ValueError(f"step {step} is beyond the {self.steps} planned: open the run with more steps")
        number, row = divmod(step - 1, self.interval)
        with np.errstate(over="ignore"):
            rows = {name: self._row(name, value) for name, value in values.items()}
        if step > self.last and row == 0:
            self._begin(number)
        held = self._held.setdefault(number, {})
        for name in rows.keys() - held.keys():
            held[name] = self._read(name, number)
        for name, value in rows.items():
            held[name][row] = value
        self._changed[number].update(rows)
        if step > self.last:
            self.last = step
            if row == self.interval - 1:
                self.flush()

    def _row(self, name: str, value: ArrayLike) -> NDArray[Any]:
        """A row as it is stored; beyond float32 it is infinite."""
        if name not in self._chunks:
            raise ValueError(f"{name!r} is no variable of the run: choose of {', '.join(self._chunks)}")
        (_, *shape), dtype = self._chunks[name]
        row = np.asarray(value, dtype)
        if row.shape != (*shape,):
            raise ValueError(f"{name} of a step has shape {(*shape,)}, got {row.shape}")
        return row

    def annotate(self, event: Mapping[str, Any]) -> None:
        """Append an event: a document with its `step`, and what there is to say of it.

        Args:
            event: JSON-serialisable, numbers of numpy and torch too, not-a-number and infinities as Python
                writes them; with `signal` and `value` it is an alarm.

        Raises:
            ValueError: no step, or not serialisable.
        """
        if not isinstance(event.get("step"), int | np.integer):
            raise ValueError(f"an event needs the step at which it happened, got {dict(event)}")
        try:
            self.events.append(json.loads(json.dumps(dict(event), default=lambda value: value.item())))
        except (AttributeError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"an event must be JSON, got {dict(event)}") from error

    def flush(self) -> None:
        """Write what has changed, and last how many steps are logged.

        Raises:
            StoreError: no room, or another error of the file system; what could not be written is kept, and
                the store stays at its last flush.
        """
        try:
            for number, names in sorted(self._changed.items()):
                for name in sorted(names):
                    write_chunk(self.path, self.arrays[name], number, self._held[number][name])
            self._commit()
        except OSError as error:
            raise StoreError(
                f"{self.path} could not be written ({reason(error)}) and stays at step "
                f"{self._document['attributes']['logged_steps']}: put that right and go on with --resume"
            ) from error
        self._changed.clear()
        # late values come mostly of the last steps
        oldest = (self.last - 1) // self.interval - 1
        self._held = {number: held for number, held in self._held.items() if number >= oldest}

    def _commit(self) -> None:
        """Write how many steps are logged and the events, in one file."""
        attributes = self._document["attributes"]
        now = {
            **attributes,
            "first_step": self.first,
            "logged_steps": self.last,
            "events": json.dumps(self.events),
        }
        if now != attributes:
            document = {**self._document, "attributes": now}
            content = json.dumps(document, indent=2).encode()
            write_whole(self.path / METADATA, content, partial_path(self.path))
            self._document = document

    def finish(self) -> None:
        """Flush, and plan no more steps than are logged: the run is over and can be compacted.

        Raises:
            StoreError: as `flush`.
        """
        self.flush()
        try:
            self._plan(max(self.last, 1))
        except OSError as error:
            raise StoreError(f"{self.path} could not be finished ({reason(error)})") from error
