"""Resumes and mixed runs: a step that goes back abandons what was logged from it on; runs are not mixed."""

# R rows of the file, N values of a series

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from meanmode.sim.imported.logged_table import LoggedTable

Rows = NDArray[np.int64]
Array = NDArray[np.float64]


MANY_FALLS, SHARE_OF_FALLS = 3, 0.1
"""Steps that go back more often than this, and in more than this share of the rows, are no resumes."""


TWICE, FEWEST_TWICE = 0.5, 3
"""Share of the steps, and their number, that must have two unlike rows for the log to be one of two runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """Values of one quantity [N] at strictly increasing steps [N]; NaN where it was logged."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]


def require_one_run(table: LoggedTable, steps: Array, path: Path) -> None:
    """Refuse a log whose rows come from several runs or processes at the same steps.

    Args:
        table: the rows.
        steps: step of each row, NaN where it has none [R].
        path: the file.

    Raises:
        ValueError: naming them, and asking for one.
    """
    for name, (texts, column) in table.identities.items():
        if len(texts) < 2:
            continue
        rows, codes = column.arrays()
        here = ~np.isnan(steps[rows])
        at, codes = steps[rows][here], codes[here]
        spans = [(at[codes == code].min(), at[codes == code].max()) for code in np.unique(codes)]
        ordered = sorted(spans)
        if all(first[1] < second[0] for first, second in pairwise(ordered)):
            if len(spans) > 1:
                table.notes.append(
                    f"{name} changes between {', '.join(list(texts)[:8])}: taken as resumes of one run"
                )
            continue
        shown = ", ".join(f"{name}={text}" for text in list(texts)[:8]) + (", ..." if len(texts) > 8 else "")
        raise ValueError(
            f"{path} holds rows of {len(texts)} runs or processes ({shown}): "
            f"pass --only {name}={next(iter(texts))} to read one"
        )


def one_branch(
    given: Mapping[str, tuple[Rows, Array]], steps: Array, path: Path
) -> tuple[dict[str, Series], list[str]]:
    """Sort every series by step, without abandoned branches and with the later of two values at one step.

    Args:
        given: name -> rows [N], in order, and values [N].
        steps: step of each row, NaN where it has none [R].
        path: the file.

    Raises:
        ValueError: two runs are mixed in the rows.
    """
    present = {}
    for name, (rows, values) in given.items():
        here = ~np.isnan(steps[rows])
        if here.any():
            present[name] = (rows[here], values[here])
    unordered: dict[str, int] = {}
    cuts = {name: _cuts(steps[rows], rows, path, unordered) for name, (rows, _) in present.items()}
    most = max((len(rows) for rows, _ in present.values()), default=0)
    # a quantity that is logged now and then, such as an evaluation, may be late without a resume
    leading = [name for name, (rows, _) in present.items() if 2 * len(rows) >= most]
    main = min((cuts[name] for name in leading if cuts[name]), default=[])
    everywhere = _limits([(_begin(row, step, steps), step) for row, step in main], len(steps))
    found: dict[str, Series] = {}
    dropped = replaced = 0
    for name, (rows, values) in present.items():
        limits = everywhere if cuts[name] == main else np.minimum(everywhere, _limits(cuts[name], len(steps)))
        at = steps[rows]
        kept = at < limits[rows]
        dropped = max(dropped, int((~kept).sum()))
        if not kept.any():
            continue
        at, values = at[kept], values[kept]
        if len(rows) == most:
            _require_one_row_per_step(at, values, name, path)
        # reversed, so that np.unique keeps the last value of each step
        unique, index = np.unique(at[::-1], return_index=True)
        replaced += _unlike_again(at, values)
        found[name] = Series(steps=unique.astype(np.int64), values=values[::-1][index])
    notes = _resumes(main or [cut for of in cuts.values() for cut in of])
    if notes:
        notes[-1] += f"; {dropped:,} abandoned rows were left out"
    if unordered:
        notes.append(f"rows are not in the order of their steps ({next(iter(unordered))}) and were sorted")
    if replaced:
        notes.append(f"{replaced:,} values are given again at the same step, of which the later one counts")
    return found, notes


def _begin(row: int, step: float, steps: Array) -> int:
    """First row of a branch: quantities of one step may be logged in rows of their own."""
    while row > 0 and (steps[row - 1] == step or np.isnan(steps[row - 1])):
        row -= 1
    return row


def _limits(cuts: list[tuple[int, float]], count: int) -> Array:
    """For each row, the smallest step to which a later row goes back [R]."""
    limits = np.full(count + 1, np.inf)
    for row, step in cuts:
        limits[row - 1] = min(limits[row - 1], step)
    return np.minimum.accumulate(limits[::-1])[::-1]


def _resumes(cuts: list[tuple[int, float]]) -> list[str]:
    if not cuts:
        return []
    times = "once" if len(set(cuts)) == 1 else f"{len(set(cuts))} times"
    return [
        f"steps go back {times}, first to {min(cuts)[1]:g}, as after a resume: the older branch ends there"
    ]


def _cuts(at: Array, rows: Rows, path: Path, unordered: dict[str, int]) -> list[tuple[int, float]]:
    """Row and step of every resume of one series.

    Raises:
        ValueError: rows of two runs alternate.
    """
    falls = np.flatnonzero(np.diff(at) < 0)
    if not len(falls):
        return []
    alone = len(np.unique(at)) == len(at)
    if len(falls) > max(MANY_FALLS, SHARE_OF_FALLS * len(at)):
        if alone:
            unordered[f"first {at[falls[0]]:g}, then {at[falls[0] + 1]:g}"] = 1
            return []
        raise ValueError(
            f"{path} goes back in its steps {len(falls):,} times, as mixed rows of several runs do: give a "
            "file of one run"
        )
    highest = np.maximum.accumulate(at)
    cuts = []
    for fall in falls:
        # one row that comes late, as that of an evaluation, is followed by a step that none before it had
        if fall + 2 < len(at) and at[fall + 2] > highest[fall]:
            unordered[f"first {at[fall]:g}, then {at[fall + 1]:g}"] = 1
        else:
            cuts.append((int(rows[fall + 1]), float(at[fall + 1])))
    return cuts


def _unlike(at: Array, values: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Steps in order, and where one has another value than the one before it at the same step."""
    order = np.argsort(at, kind="stable")
    steps, ordered = at[order], values[order]
    alike = (ordered[1:] == ordered[:-1]) | (np.isnan(ordered[1:]) & np.isnan(ordered[:-1]))
    return steps, (steps[1:] == steps[:-1]) & ~alike


def _unlike_again(at: Array, values: Array) -> int:
    """Number of values that differ from an earlier one at the same step."""
    return int(_unlike(at, values)[1].sum())


def _require_one_row_per_step(at: Array, values: Array, name: str, path: Path) -> None:
    """Refuse a series most of whose steps have two unlike values.

    Raises:
        ValueError: naming a step.
    """
    steps, unlike = _unlike(at, values)
    twice, distinct = len(np.unique(steps[1:][unlike])), len(np.unique(steps))
    if twice >= max(FEWEST_TWICE, TWICE * distinct):
        raise ValueError(
            f"{path} has several unlike values of {name} at {twice:,} of {distinct:,} steps, such as step "
            f"{steps[1:][unlike][0]:g}, as rows of several runs or processes have: give a file of one run"
        )
