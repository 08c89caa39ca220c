"""Writing a run store: one process logs steps in order; a kill at any moment leaves a valid store."""

import json
import shutil
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from meanmode.sim.store.files import (
    METADATA,
    StoreError,
    chunk_path,
    is_compacted,
    partial_path,
    reason,
    write_chunk,
    write_whole,
)
from meanmode.sim.store.opening import json_attribute
from meanmode.sim.store.run_reader import ROWS, find_run, open_logged, run_arrays, stored_rows
from meanmode.sim.store.run_store import step_numbers


class RunWriter:
    """Logs the steps of a run into its store; one process at a time.

    Logged values are held until `flush`, which writes every changed chunk whole or not at all and then, in a
    single file, the number of logged steps and the events. A process killed at any moment leaves the store as
    of its last flush, except that late values for earlier steps may already be there.

    Args:
        path: the store, or a run's folder.
        after: resume after this step and drop the rows and events of later ones; by default the last logged
            step. An empty store starts after it (a fork of another run).
        steps: number of steps planned now, if more than before.

    Attributes:
        first: first step that is, or will be, logged.
        last: last logged step; `first` - 1 if none is.
        steps: number of steps planned.

    Raises:
        StoreError: not a run, a compacted run, a step that is not logged, or missing or damaged data in the
            interval in which the run resumes.
    """

    def __init__(self, path: str | Path, *, after: int | None = None, steps: int | None = None) -> None:
        self.path = find_run(path)
        group, logged = open_logged(self.path, "r+")
        if ROWS in group.attrs:
            raise StoreError(f"{self.path} was imported and is therefore read-only: log into another run")
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
                f"{self.path} cannot resume after step {after}: steps {earliest + 1} to {latest} are logged; "
                "resume from a checkpoint of one of them"
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
            raise StoreError(f"{self.path} could not be resumed ({reason(error)})") from error

    def _hold_tail(self) -> None:
        """Read the interval in which the run resumes, without values written ahead of the last flush."""
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
        """Delete the chunks of all intervals after the last logged step."""
        following = -(-self.last // self.interval)
        for name in self.arrays:
            folder = self.path / name / "c"
            for entry in folder.iterdir() if folder.exists() else ():
                if entry.name.isdigit() and int(entry.name) >= following:
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def _plan(self, steps: int) -> None:
        """Resize all arrays to the planned length, including those a killed process had already resized."""
        self.steps, size = steps, self._step.chunks[0]
        for number in range(-(-steps // size)):
            if not chunk_path(self.path, self._step, number).exists():
                write_chunk(self.path, self._step, number, step_numbers(number, size))
        for array in (self._step, *self.arrays.values()):
            if array.shape[0] != steps:
                array.resize((steps, *array.shape[1:]))

    def _begin(self, number: int) -> None:
        """Start an interval in which nothing is measured yet."""
        self._held[number] = {name: self._blank(name) for name in self.arrays}
        self._changed[number].update(self.arrays)

    def _blank(self, name: str) -> NDArray[Any]:
        """A chunk of a variable, all NaN."""
        chunk, dtype = self._chunks[name]
        return np.full(chunk, np.nan, dtype)

    def _read(self, name: str, number: int) -> NDArray[Any]:
        """Read a chunk of a variable, padded with NaN beyond the end of the array."""
        array, first, rows = self.arrays[name], number * self.interval, self._blank(name)
        stored = stored_rows(self.path, array, first, min(first + self.interval, array.shape[0]))
        rows[: len(stored)] = stored
        return rows

    def log(self, step: int, values: Mapping[str, ArrayLike]) -> None:
        """Set values of the next step or of an earlier one; flush at the end of an interval.

        Args:
            step: `last` + 1, or a step that is already logged, whose other values are kept.
            values: name -> the whole row of a variable.

        Raises:
            ValueError: a step out of order or beyond the plan, an unknown variable, or a wrong shape.
            StoreError: as `flush`; or an earlier interval cannot be read.
        """
        if not self.first <= step <= self.last + 1:
            raise ValueError(
                f"step {step} cannot be logged: the next step is {self.last + 1}, the first row {self.first}"
            )
        if step > self.steps:
            raise ValueError(
                f"step {step} is beyond the {self.steps} planned: reopen the run with more steps"
            )
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
        """Convert a row to the stored type, in which overflow becomes infinite."""
        if name not in self._chunks:
            raise ValueError(f"{name!r} is not a variable of the run: choose from {', '.join(self._chunks)}")
        (_, *shape), dtype = self._chunks[name]
        row = np.asarray(value, dtype)
        if row.shape != (*shape,):
            raise ValueError(f"{name} must have shape {(*shape,)} at each step, got {row.shape}")
        return row

    def annotate(self, event: Mapping[str, Any]) -> None:
        """Append an event: a document with its `step` and any other fields.

        Args:
            event: JSON-serialisable; numpy and torch numbers are allowed, NaN and infinities are written as
                Python's json does. With `signal` and `value` it is an alarm.

        Raises:
            ValueError: the step is missing, or the event is not serialisable.
        """
        if not isinstance(event.get("step"), int | np.integer):
            raise ValueError(f"an event needs a whole number as its step, got {dict(event)}")
        try:
            self.events.append(json.loads(json.dumps(dict(event), default=lambda value: value.item())))
        except (AttributeError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"an event must be JSON-serialisable, got {dict(event)}") from error

    def flush(self) -> None:
        """Write the changed chunks and then the number of logged steps.

        Raises:
            StoreError: the disk is full, or another error of the file system; unwritten values are kept for
                the next flush, and the store stays as of the last one.
        """
        try:
            for number, names in sorted(self._changed.items()):
                for name in sorted(names):
                    write_chunk(self.path, self.arrays[name], number, self._held[number][name])
            self._commit()
        except OSError as error:
            raise StoreError(
                f"{self.path} could not be written ({reason(error)}) and stays at step "
                f"{self._document['attributes']['logged_steps']}: fix that and resume with --resume"
            ) from error
        self._changed.clear()
        # late values are mostly for recent steps
        oldest = (self.last - 1) // self.interval - 1
        self._held = {number: held for number, held in self._held.items() if number >= oldest}

    def _commit(self) -> None:
        """Write the number of logged steps and the events, in one file."""
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
        """Flush and cut the plan to the logged steps: the run is over and can be compacted.

        Raises:
            StoreError: as `flush`.
        """
        self.flush()
        try:
            self._plan(max(self.last, 1))
        except OSError as error:
            raise StoreError(f"{self.path} could not be finished ({reason(error)})") from error
