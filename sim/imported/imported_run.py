"""Writing a run store from telemetry that was logged elsewhere."""

# R rows of the source

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from meanmode.sim.imported.import_plan import OBSERVABLES, Column, Plan
from meanmode.sim.observe.observable_names import WRITERS
from meanmode.sim.store.files import StoreError, StoreExistsError, Variable, file_digest, partial_path, reason
from meanmode.sim.store.provenance import provenance
from meanmode.sim.store.run_reader import TELEMETRY
from meanmode.sim.store.run_store import create_run
from meanmode.sim.store.run_writer import RunWriter

ROWS_OF_CHUNK = 100


def import_run(plan: Plan, out: str | Path, *, initial_loss: float | None = None) -> Path:
    """Write a run with the telemetry of a source; it appears at `out` complete or not at all.

    Steps that the source does not have are NaN.

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
    if out.exists():
        raise StoreExistsError(f"{out} already exists: pass another --out")
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
    first, last = int(steps[0]), int(steps[-1])
    spacing = int(np.median(np.diff(steps))) if len(steps) > 1 else 1
    sizes = {"block": range((plan.depth or 0) + 1), "writer": WRITERS}
    configuration = {**({} if plan.depth is None else {"depth": plan.depth}), "source": plan.log.config}
    create_run(
        path,
        steps=last,
        interval=min(ROWS_OF_CHUNK * spacing, last - first + 1),
        sizes={dim: sizes[dim] for dim in sizes if any(dim in column.dims for column in plan.columns)},
        variables={column.name: _variable(column) for column in plan.columns},
        attributes={
            "configuration": json.dumps(configuration),
            "laws": "[]",
            "source": json.dumps({file.name: file_digest(file) for file in plan.log.files}),
            "import": json.dumps({**plan.document(), "notes": plan.notes}),
            **({} if initial_loss is None else {"initial_loss": initial_loss}),
            **provenance(),
        },
    )
    shapes = {column.name: tuple(len(sizes[dim]) for dim in column.dims) for column in plan.columns}
    rows = {name: np.full((len(steps), *shape), np.nan) for name, shape in shapes.items()}
    for column in plan.columns:
        for position, series in column.series.items():
            at = np.searchsorted(steps, series.steps + plan.step_offset)
            index: tuple[Any, ...] = (at, *position)
            rows[column.name][index] = series.values
    writer, row = RunWriter(path, after=first - 1), 0
    for step in range(first, last + 1):
        here = step == steps[row]
        writer.log(step, {name: values[row] for name, values in rows.items()} if here else {})
        row += here
    writer.finish()


def _variable(column: Column) -> Variable:
    """Description of a quantity, of which only the source's name is known."""
    missing = "writer" in OBSERVABLES.get(column.name, ()) and "writer" not in column.dims
    return Variable(
        dims=column.dims,
        definition=f"{column.source} of the source{', which names no writer' if missing else ''}",
    )
