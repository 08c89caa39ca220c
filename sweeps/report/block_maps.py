"""Maps of a run over steps and blocks, one per observable and writer, with the collapse front."""

from pathlib import Path

import numpy as np
import xarray as xr

from meanmode.sim.onset.watched_signal import known_name
from meanmode.sim.store.run_reader import open_run
from meanmode.sweeps.report.contents import Array, HeatMap, MapSet, Mark, shown
from meanmode.sweeps.report.depth_front import DepthFront
from meanmode.sweeps.report.reduction import SAID, Grid, cosine_bounds, reduced_map

FIRST = ("tcs_image", "tcs", "rho", "g_mean", "g_ctr", "amplification", "grad_rms_q", "grad_rms_k")
"""Observables that are listed first, if they were measured."""

FRONT = "collapse front: the first block with TCS of .9 or more"
"""What the line in the maps is."""

MOST_MAPS = 64
"""Maps of a run that are drawn."""

MOST_PIXELS = (600, 256)
"""Most columns and rows of a map."""


def map_names(sizes: dict[str, dict[str, int]]) -> list[str]:
    """The variables that are drawn as maps, in the order in which they are listed."""
    names = [name for name, of in sizes.items() if tuple(of)[:2] == ("step", "block") and len(of) <= 3]
    return sorted(names, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))


def block_maps(
    path: Path, sizes: dict[str, dict[str, int]], depth: DepthFront, steps: tuple[int, int], pixels: int
) -> MapSet | None:
    """The maps of a run; None if nothing was measured by block.

    Variables are loaded one after the other, since a deep run does not fit in memory. Meanwhile the run may
    grow: rows of later steps are left out.

    Args:
        path: the store, or the folder of the run.
        sizes: its variables and the sizes of their dimensions.
        depth: its front.
        steps: its first and last step.
        pixels: number of pixels of all maps together.
    """
    names = map_names(sizes)
    if not names:
        return None
    maps: list[HeatMap] = []
    grid, left_out = None, 0
    share = pixels // min(sum((*sizes[name].values(), 1)[2] for name in names), MOST_MAPS)
    for name in names:
        if len(maps) >= MOST_MAPS:
            left_out += 1
            continue
        run = open_run(path, [name]).sel(step=slice(*steps))
        if grid is None:
            grid = Grid.over(steps, (0, int(run["block"].values[-1])), share, MOST_PIXELS)
        maps += _maps_of(run, name, grid)[: MOST_MAPS - len(maps)]
    if not maps or grid is None:
        return None
    x, y = _front(depth, grid)
    return MapSet(
        maps=tuple(maps),
        left=grid.first_x - 0.5,
        width=grid.last_x - grid.first_x + 1.0,
        bottom=-0.5,
        height=grid.last_y + 1.0,
        x_name="step",
        y_name="block",
        over_steps=True,
        marks=(Mark(name=FRONT, x=x, y=y, joined=True),) if np.isfinite(y).any() else (),
        said=SAID + (f" {left_out} more observables are not drawn." if left_out else ""),
    )


def _maps_of(run: xr.Dataset, name: str, grid: Grid) -> list[HeatMap]:
    """The maps of one variable, one per writer."""
    values = run[name]
    definition = shown(values.attrs.get("long_name", ""), 200)
    steps, blocks = run["step"].values, run["block"].values
    bounds = cosine_bounds(values.values) if known_name(name)[2] else None
    parts = [(shown(name), values)]
    if values.ndim == 3:
        third = values.dims[2]
        parts = [
            (shown(f"{name}, {label}"), values.isel({third: at}))
            for at, label in enumerate(run[third].values)
        ]
    found = (
        reduced_map(label, definition, part.values, steps, blocks, grid, hold=True, bounds=bounds)
        for label, part in parts
    )
    return [of for of in found if of is not None]


def _front(depth: DepthFront, grid: Grid) -> tuple[Array, Array]:
    """Steps and fronts, one per column of pixels: the front nearest to the input, NaN where there is none."""
    if not len(depth.steps):
        return np.empty(0), np.empty(0)
    _, begin = np.unique(grid.column(depth.steps), return_index=True)
    x, y = [], []
    for first, stop in zip(begin, [*begin[1:], len(depth.steps)], strict=True):
        part = depth.fronts[first:stop]
        at = first + (0 if np.isnan(part).all() else int(np.nanargmin(part)))
        x.append(float(depth.steps[at]))
        y.append(float(depth.fronts[at]))
    return np.array(x), np.array(y)
