"""Progress of a sweep: what is done, what failed and why, the rate and the time left."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from meanmode.sim.store.sweep_store import DIVERGED, DONE, FAILED, STATUS_NAMES, TODO, open_progress
from meanmode.sweeps.engine.cost import unit_cost
from meanmode.sweeps.engine.store_kinds import stored_plan

RECENT_RUNS, RECENT_WALL_TIMES = 50, 3
"""A rate covers the newest runs, and at least this many times the longest of their wall times."""


SHOWN_FAILURES = 20
"""Failures that are listed for a person."""


GAP_SECONDS = 1.0
"""Longest gap between two runs of a process that counts as writing the first; in a longer one nothing ran."""


def status_of(path: Path) -> dict[str, Any]:
    """Counts, rate, time left and failures of the cells of a store; readable while the sweep runs.

    Returns:
        `to_do`, `done`, `failed`, `diverged`: numbers of cells. `cells_per_minute` and `gigaflops` (estimated
        10^9 operations per second, `meanmode.sweeps.engine.cost`): the recent rate of all processes together.
        `seconds_left`: time for the cells to do at that rate. `last_finished`: Unix time. These four are None
        where unknown. `failures`: for every failed cell its index `cell`, its coordinates and its `error`.

    Raises:
        StoreError: no readable sweep, or data of finished cells are missing.
    """
    data = open_progress(path)
    status = data["status"].values
    counts = {name: int((status == code).sum()) for code, name in enumerate(STATUS_NAMES)}
    return {**counts, **_progress(data, status), "failures": _failures(data, status)}


def status_lines(found: dict[str, Any]) -> list[str]:
    """The result of `status_of` as text; only the first failures are listed."""
    lines = ["  ".join(f"{name} {found[name]}" for name in STATUS_NAMES)]
    if found["cells_per_minute"] is not None:
        rate, left = found["cells_per_minute"], found["seconds_left"]
        parts = [f"{rate:,.1f} cells per minute" if rate < 10 else f"{rate:,.0f} cells per minute"]
        parts += [f"{_duration(left)} left"] if left else []
        parts += [f"last cell {_duration(max(time.time() - found['last_finished'], 0))} ago"]
        lines.append("; ".join(parts))
    for failure in found["failures"][:SHOWN_FAILURES]:
        place = ", ".join(f"{axis} {failure[axis]}" for axis in failure if axis not in ("cell", "error"))
        lines.append(
            f"cell {failure['cell']} ({place}) failed: {failure['error'] or 'no message was stored'}"
        )
    if len(found["failures"]) > SHOWN_FAILURES:
        lines.append(f"{len(found['failures']) - SHOWN_FAILURES} more failures: --json lists all")
    return lines


def _duration(seconds: float) -> str:
    for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{seconds:.0f} s"


def _failures(data: xr.Dataset, status: NDArray[Any]) -> list[dict[str, Any]]:
    axes = {axis: data[axis].values.tolist() for axis in json.loads(data.attrs["axes"])}
    return [
        {
            "cell": int(cell),
            **{axis: values[cell] for axis, values in axes.items()},
            "error": str(data["failure"].values[cell]) if "failure" in data else "",
        }
        for cell in np.flatnonzero(status == FAILED)
    ]


def _progress(data: xr.Dataset, status: NDArray[Any]) -> dict[str, float | None]:
    """Rates and time left, from the wall and finish times of the newest cell of every unit."""
    sweep = stored_plan(data.attrs)
    unknown = np.full(len(status), np.nan)
    finished, walls = (
        data[name].values if name in data else unknown for name in ("finished", "wall_seconds")
    )
    to_do, runs = 0.0, []
    for unit in sweep.units():
        members, cost = list(unit), unit_cost(sweep, unit)
        if (status[members] == TODO).any():
            to_do += cost
        last = max(members, key=lambda cell: finished[cell])
        if np.isin(status[members], (DONE, DIVERGED)).all() and np.isfinite(finished[last] + walls[last]):
            runs.append((finished[last], walls[last], cost, len(unit)))
    ends, wall_seconds, costs, cells = np.array(runs).T if runs else np.empty((4, 0))
    operations = recent_rate(ends, wall_seconds, costs)
    cell_rate = recent_rate(ends, wall_seconds, cells)
    left = 0.0 if not to_do else None if not operations else to_do / operations
    return {
        "cells_per_minute": None if cell_rate is None else 60 * cell_rate,
        "gigaflops": None if operations is None else operations / 1e9,
        "seconds_left": left,
        "last_finished": float(ends.max()) if len(ends) else None,
    }


def recent_rate(
    ends: NDArray[np.float64], wall_seconds: NDArray[np.float64], amounts: NDArray[np.float64]
) -> float | None:
    """Amount finished per second, over the newest runs of all processes; None if nothing has finished.

    Only time in which something ran counts: the union of the runs' intervals since the window opened. A sweep
    that was stopped and resumed, or is shared by several processes, therefore has its true rate. The window
    is longer than the longest wall time in it, so it holds several runs of every process.

    Args:
        ends: Unix time at which each run finished.
        wall_seconds: wall time of each run.
        amounts: work in each run: cells, or operations.
    """
    if not len(ends):
        return None
    order = np.argsort(ends)
    ends, wall_seconds, amounts = ends[order], wall_seconds[order], amounts[order]
    starts = ends - wall_seconds
    opened = starts.min()
    if len(ends) > RECENT_RUNS:
        longest = wall_seconds[-RECENT_RUNS:].max()
        opened = max(opened, min(ends[-RECENT_RUNS - 1], ends[-1] - RECENT_WALL_TIMES * longest))
    inside = ends > opened
    busy, until = 0.0, opened
    for start, end in sorted(zip(starts[inside], ends[inside], strict=True)):
        begin = until if start <= until + GAP_SECONDS else start
        busy, until = busy + max(end - begin, 0.0), max(until, end)
    return float(amounts[inside].sum() / busy) if busy > 0 else None
