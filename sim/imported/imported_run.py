"""Writing a run store from telemetry that was logged elsewhere."""

# R rows of the source

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meanmode.sim.imported.import_plan import OBSERVABLES, Column, Plan
from meanmode.sim.observe.observable_names import WRITERS
from meanmode.sim.store.destination import check_writable
from meanmode.sim.store.files import StoreError, StoreExistsError, Variable, file_digest, partial_path, reason
from meanmode.sim.store.provenance import provenance
from meanmode.sim.store.run_reader import TELEMETRY
from meanmode.sim.store.sparse_run import write_sparse_run


def check_new(out: Path) -> None:
    """Refuse a path at which a run cannot be written.

    Raises:
        StoreExistsError: something is already there.
        StoreError: nothing can be created there.
    """
    if os.path.lexists(out):
        raise StoreExistsError(f"{out} already exists: pass another --out")
    check_writable(out)


def import_run(plan: Plan, out: str | Path, *, initial_loss: float | None = None) -> Path:
    """Write a run with the telemetry of a source; it appears at `out` complete or not at all.

    Only steps that the source has get a row, so cost and size go by rows.

    Args:
        plan: names, blocks and steps of the run.
        out: folder of the run; must not exist.
        initial_loss: loss before any training, for a source that starts later.

    Returns:
        Path of the run store.

    Raises:
        StoreExistsError: something exists at `out`.
        StoreError: the disk is full, or another error of the file system.
    """
    out = Path(out)
    check_new(out)
    partial = partial_path(out)
    try:
        partial.mkdir(parents=True)
        _write(plan, partial / TELEMETRY, initial_loss)
        partial.rename(out)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise StoreError(f"{out} could not be written ({reason(error)}): nothing was written") from error
        raise
    return out / TELEMETRY


def _write(plan: Plan, path: Path, initial_loss: float | None) -> None:
    steps = plan.steps
    sizes = {"block": range((plan.depth or 0) + 1), "writer": WRITERS}
    configuration = {**({} if plan.depth is None else {"depth": plan.depth}), "source": plan.log.config}
    measured = {column.name: _Measured(plan, column, steps) for column in plan.columns}
    write_sparse_run(
        path,
        steps=steps,
        sizes={dim: sizes[dim] for dim in sizes if any(dim in column.dims for column in plan.columns)},
        variables={column.name: (_variable(column), measured[column.name].rows) for column in plan.columns},
        logged_nan={name: mask for name, of in measured.items() if (mask := of.logged_nan()).any()},
        attributes={
            "configuration": json.dumps(configuration),
            "laws": "[]",
            "source": json.dumps({file.name: file_digest(file) for file in plan.log.files}),
            "import": json.dumps({**plan.document(), "notes": plan.notes}),
            **({} if initial_loss is None else {"initial_loss": initial_loss}),
            **provenance(),
        },
    )


class _Measured:
    """Values of a column over the rows of the store, made when they are asked for."""

    def __init__(self, plan: Plan, column: Column, steps: NDArray[np.int64]) -> None:
        self._count = len(steps)
        self._shape = tuple(((plan.depth or 0) + 1, len(WRITERS))[: len(column.dims)])
        self._series = [
            (position, np.searchsorted(steps, series.steps + plan.step_offset), series.values)
            for position, series in column.series.items()
        ]

    def rows(self, first: int, stop: int) -> NDArray[np.float64]:
        """Values of rows first, ..., stop - 1, NaN where there are none."""
        found = np.full((stop - first, *self._shape), np.nan)
        for position, at, values in self._series:
            here = slice(*np.searchsorted(at, [first, stop]))
            index: tuple[Any, ...] = (at[here] - first, *position)
            found[index] = values[here]
        return found

    def logged_nan(self) -> NDArray[np.bool_]:
        """Rows at which NaN was logged, and no number anywhere else in the row."""
        nans, numbers = np.zeros(self._count, bool), np.zeros(self._count, bool)
        for _, at, values in self._series:
            nans[at[np.isnan(values)]] = True
            numbers[at[~np.isnan(values)]] = True
        return nans & ~numbers


def _variable(column: Column) -> Variable:
    """Description of a quantity, of which only the source's name is known."""
    missing = "writer" in OBSERVABLES.get(column.name, ()) and "writer" not in column.dims
    return Variable(
        dims=column.dims,
        definition=f"{column.source} of the source{', which names no writer' if missing else ''}",
    )
