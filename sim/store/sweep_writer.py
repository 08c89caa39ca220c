"""Writing the cells of a sweep store, from one process or many at once, and finding the unfinished ones."""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meanmode.sim.store.files import UNREADABLE, StoreError, chunk_path, reason, write_chunk
from meanmode.sim.store.sweep_store import (
    DIVERGED,
    DONE,
    FAILED,
    TODO,
    check_written,
    is_result,
    open_group,
    provenance_arrays,
    required_arrays,
)

FAILURE_LENGTH = 2000
"""Most characters of an exception that are stored."""


class SweepWriter:
    """Writes cells of an existing sweep; safe for several processes, since every chunk belongs to one cell.

    Args:
        path: the store.

    Raises:
        StoreError: not a sweep, a variable is missing, or chunks are not one cell each (two writers would
            then overwrite each other's cells).
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.group = open_group(self.path, "r+")
        found = required_arrays(self.group, self.path)
        self.arrays = {
            name: array.with_config({"write_empty_chunks": True})
            for name, array in found.items()
            if is_result(array)
        }
        self.provenance = provenance_arrays(self.group)
        for name, array in {**self.arrays, **self.provenance}.items():
            if array.chunks != (1, *array.shape[1:]) or array.shards is not None:
                raise StoreError(
                    f"{path}: chunks of {name} are not one cell each (a compacted store is read-only)"
                )
        check_written({name: array for name, array in found.items() if name not in self.arrays}, self.path, 0)

    def remaining(self, cells: Iterable[int] | None = None) -> tuple[list[int], list[int]]:
        """Unfinished cells, and those among them that are marked finished but have lost or damaged data.

        Args:
            cells: cells to look at; all by default.
        """
        todo, lost = [], []
        for cell in range(self.arrays["status"].shape[0]) if cells is None else cells:
            try:
                status = int(np.asarray(self.arrays["status"][cell]))
                if status in (DONE, DIVERGED) and not self._holds_data(cell):
                    lost.append(cell)
            except UNREADABLE:
                lost.append(cell)
                continue
            if status in (TODO, FAILED):
                todo.append(cell)
        return sorted(todo + lost), sorted(lost)

    def _holds_data(self, cell: int) -> bool:
        if not all(chunk_path(self.path, array, cell).exists() for array in self.arrays.values()):
            return False
        rows = {name: np.asarray(array[cell]) for name, array in {**self.arrays, **self.provenance}.items()}
        witness = rows[str(self.group.attrs.get("witness", "tcs"))]  # of some plans a single number
        return bool(np.isfinite(witness.flat[0]))

    def write(
        self,
        cell: int,
        values: Mapping[str, NDArray[Any]],
        status: int,
        *,
        wall_seconds: float = np.nan,
        failure: str = "",
    ) -> None:
        """Write a cell's observables (short profiles padded with NaN), its provenance, and last its status.

        Args:
            cell: index of the cell.
            values: observable -> its values; observables not given become NaN.
            status: `DONE`, `FAILED` or `DIVERGED`.
            wall_seconds: wall time of the run that gave the cell.
            failure: exception of a failed cell, cut at `FAILURE_LENGTH` characters.

        Raises:
            StoreError: the disk is full, or another error of the file system; the cell stays unfinished.
        """
        provenance = {
            "wall_seconds": wall_seconds,
            "finished": time.time(),
            "failure": failure[:FAILURE_LENGTH],
        }
        try:
            for name, array in self.arrays.items():
                if name == "status":
                    continue
                row = np.full((1, *array.shape[1:]), np.nan, np.float32)
                if name in values:
                    filled: tuple[Any, ...] = (0, *(slice(size) for size in values[name].shape))
                    row[filled] = values[name]
                write_chunk(self.path, array, cell, row)
            for name, array in self.provenance.items():
                if provenance[name] == "":
                    chunk_path(self.path, array, cell).unlink(missing_ok=True)
                else:
                    write_chunk(self.path, array, cell, np.array([provenance[name]], array.dtype))
            write_chunk(self.path, self.arrays["status"], cell, np.array([status], np.int8))
        except OSError as error:
            raise StoreError(
                f"{self.path}: cell {cell} could not be written ({reason(error)}) and stays unfinished: "
                "fix that and resume with --resume"
            ) from error
