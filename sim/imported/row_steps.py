"""The step of every row of a log: which column counts it, and what is done about rows that do not say."""

# R rows

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from meanmode.sim.imported.known_names import EPOCHS, SAMPLES, STEPS, claim, normalised, step_column
from meanmode.sim.imported.logged_table import LoggedColumn, LoggedTable

Array = NDArray[np.float64]


WHOLE = 2**53
"""Below this, a float64 represents every whole number exactly."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What the user says about a log.

    Attributes:
        only: column and value of the rows to read, if several runs or processes logged into one file.
        step_name: name of the column that counts steps.
        steps_per_row: steps from one row to the next, for a log that does not count them.
        samples_per_step: samples or tokens of a step, for a log that counts those.
    """

    only: tuple[str, str] | None = None
    step_name: str | None = None
    steps_per_row: int | None = None
    samples_per_step: int | None = None


def row_steps(table: LoggedTable, reading: Reading, path: Path) -> Array:
    """Step of every row [R], NaN for rows to leave out; removes the columns that count steps.

    Raises:
        ValueError: nothing counts the steps; the sentence says which option helps.
    """
    if reading.steps_per_row is not None:
        return _counted(table, reading.steps_per_row)
    name = _chosen(table, reading, path)
    if name is None:
        table.notes.append(
            "the log has no column of steps: its rows are counted, so that step 12 is row 12; "
            "--steps-per-row says how many steps are between two rows"
        )
        return _counted(table, 1)
    steps = np.full(table.count, np.nan)
    rows, values = table.columns.pop(name).arrays()
    steps[rows] = values
    if reading.samples_per_step is not None:
        steps = np.floor(steps / reading.samples_per_step)
        table.notes.append(f"{name} is divided by {reading.samples_per_step} to give steps")
    elif normalised(name) in EPOCHS:
        table.notes.append(f"the log counts epochs ({name}), not steps: every step of the run is an epoch")
    else:
        steps = _across_epochs(table, steps, name)
    others = [other for other in table.columns if normalised(other) in STEPS]
    for other in others:
        del table.columns[other]
    if others:
        table.notes.append(f"steps are those of {name}: {', '.join(others)} also count and were left out")
    return _whole(table, _filled(table, steps), name)


def _chosen(table: LoggedTable, reading: Reading, path: Path) -> str | None:
    """Name of the column that counts steps; None if rows are to be counted."""
    columns = {name: column for name, column in table.columns.items() if _counts(column)}
    if reading.step_name is not None:
        if reading.step_name not in columns:
            raise ValueError(f"{path} has no {reading.step_name!r} that counts steps: it has {_names(table)}")
        return reading.step_name
    samples = step_column(columns, SAMPLES)
    if reading.samples_per_step is not None and samples is not None:
        return samples
    found = step_column(columns, STEPS)
    if found is not None:
        return found
    if reading.samples_per_step is not None:
        raise ValueError(f"{path} has no column that counts samples or steps: it has {_names(table)}")
    broken = step_column(table.columns, STEPS)
    if broken is not None:
        raise ValueError(
            f"{path} has no whole number from 0 on in its column {broken}, so nothing counts its steps"
        )
    if samples is not None:
        raise ValueError(
            f"{path} counts {samples}, not steps: pass --samples-per-step N with the number of a step"
        )
    epochs = step_column(columns, EPOCHS)
    if epochs is not None and _mostly_increases(columns[epochs]):
        return epochs
    if any(claim(name) for name in table.columns):
        return None
    raise ValueError(
        f"{path} has no column of steps: it has {_names(table)}; name the one that counts them with "
        "--name THEIRS=step, or pass --steps-per-row N to count the rows"
    )


def _names(table: LoggedTable) -> str:
    names = list(table.columns)
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _counts(column: LoggedColumn) -> bool:
    """Whether a column has a whole number that can be a step."""
    _, values = column.arrays()
    with np.errstate(invalid="ignore"):
        return bool(((values >= 0) & (values < WHOLE) & (values == np.floor(values))).any())


def _mostly_increases(column: LoggedColumn) -> bool:
    """Whether nearly every row has a whole epoch of its own; several rows per epoch count none."""
    _, values = column.arrays()
    whole = bool((values == np.floor(values)).all())
    return whole and len(np.unique(values)) >= 0.9 * len(values)


def _counted(table: LoggedTable, spacing: int) -> Array:
    """Count the rows that have the loss, or else the most common column; others take the step before them."""
    names = [name for name in table.columns if claim(name) == "loss"] or list(table.columns)
    # an exact name goes before an alias that is logged once, at the end
    leading = max(names, key=lambda name: len(table.columns[name].rows))
    counted = np.zeros(table.count, bool)
    counted[table.columns[leading].arrays()[0]] = True
    return np.maximum(np.cumsum(counted), 1).astype(np.float64) * spacing


def _across_epochs(table: LoggedTable, steps: Array, name: str) -> Array:
    """Steps that start anew in each epoch, as the epoch's own column shows, go on from the epoch before."""
    epoch = step_column(table.columns, EPOCHS)
    if epoch is None:
        return steps
    rows, values = table.columns[epoch].arrays()
    epochs = np.full(len(steps), np.nan)
    epochs[rows] = values
    both = np.flatnonzero(~np.isnan(steps) & ~np.isnan(epochs))
    falls = np.flatnonzero(np.diff(steps[both]) < 0)
    if (
        not len(falls)
        or not (np.diff(epochs[both])[falls] > 0).all()
        or len(falls) < 0.9 * np.ptp(epochs[both])
    ):
        return steps
    ends = np.zeros(len(both))
    ends[falls + 1] = steps[both][falls] + 1 - min(steps[both].min(), 1)
    found = steps.copy()
    found[both] += np.cumsum(ends)
    table.notes.append(f"{name} starts anew in each epoch: the steps of earlier epochs are added")
    return found


def _filled(table: LoggedTable, steps: Array) -> Array:
    """Give rows without a step that of the row before, if they only add to it, as an evaluation does."""
    missing = np.isnan(steps)
    if not missing.any():
        return steps
    logged = np.zeros(table.count, bool)
    for column in table.columns.values():
        logged[column.arrays()[0]] = True
    missing &= logged
    if not missing.any():
        return steps
    before = np.maximum.accumulate(np.where(np.isnan(steps), -1, np.arange(len(steps))))
    clash = before < 0
    for column in table.columns.values():
        has = np.zeros(table.count, bool)
        has[column.arrays()[0]] = True
        clash |= has & has[np.maximum(before, 0)]
    taken = missing & ~clash
    found = steps.copy()
    found[taken] = steps[before[taken]]
    for count, what in (
        (int(taken.sum()), "take that of the row before"),
        (int((missing & clash).sum()), "were left out"),
    ):
        if count:
            table.notes.append(f"rows without a step {what}: {count:,}")
    return found


def _whole(table: LoggedTable, steps: Array, name: str) -> Array:
    """Leave out rows whose step is no whole number from 0 on."""
    with np.errstate(invalid="ignore"):
        bad = ~np.isnan(steps) & ~((steps >= 0) & (steps < WHOLE) & (steps == np.floor(steps)))
    if bad.any():
        first = steps[bad][0]
        table.notes.append(
            f"rows whose {name} is no step (such as {first:g}) were left out: {int(bad.sum()):,}"
        )
    return np.where(bad, np.nan, steps)
