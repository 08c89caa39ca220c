"""The registry of figures, and drawing them from a folder of stores."""

from collections.abc import Callable, Sequence
from pathlib import Path

import xarray as xr
from matplotlib.figure import Figure

from paper_figs import (
    amplification_event,
    collapse_front,
    depth_profiles,
    event,
    merge_modes,
    mixers,
    token_law,
)
from sim.store import DONE, StoreError, open_run, open_sweep

FIGURES: dict[str, tuple[str, Callable[[xr.Dataset], Figure]]] = {
    "collapse_front": ("collapse_front.zarr", collapse_front.draw),
    "depth_profiles": ("collapse_front.zarr", depth_profiles.draw),
    "mixers": ("mixers.zarr", mixers.draw),
    "token_law": ("token_law.zarr", token_law.draw),
}
"""Name -> the sweep it reads and the function that draws it."""

RUN_FIGURES: dict[str, tuple[str, Callable[..., Figure]]] = {
    "event": ("event.zarr", event.draw),
    "amplification_event": ("amplification_event.zarr", amplification_event.draw),
    "merge_modes": ("merge_modes", merge_modes.draw),
}
"""Name -> the run it reads, or the folder of runs, and the function that draws it, of one run or of all."""


def draw_figures(names: Sequence[str], data: Path, out: Path) -> list[Path]:
    """Draw figures into PNG files and return their paths; without names, those whose store is there.

    Args:
        names: which; where empty, all whose store is in the folder.
        data: folder of the stores.
        out: folder of the PNG files, created where needed.

    Raises:
        ValueError: a figure nobody draws.
        StoreError: a missing, damaged or unfinished store.
    """
    known = {**FIGURES, **RUN_FIGURES}
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ValueError(f"unknown figure {unknown[0]!r}: choose from {', '.join(known)}")
    paths = []
    present = [name for name, (store, _) in known.items() if (data / store).exists()]
    if not names and not present:
        raise ValueError(f"{data} does not exist or holds no store of a figure")
    for name in names or present:
        store, draw = known[name]
        figure = draw(*(_runs if name in RUN_FIGURES else _sweep)(data / store))
        out.mkdir(parents=True, exist_ok=True)
        figure.savefig(out / f"{name}.png", dpi=150)
        paths.append(out / f"{name}.png")
    return paths


def _sweep(path: Path) -> list[xr.Dataset]:
    """The finished sweep at a path."""
    sweep = open_sweep(path)
    unfinished = int((sweep["status"] != DONE).sum())
    if unfinished:
        raise StoreError(f"{path} has {unfinished} cells to do, failed or diverged: finish the sweep")
    return [sweep]


def _runs(path: Path) -> list[xr.Dataset]:
    """The run at a path, or all in the folder there."""
    return [open_run(store) for store in sorted(path.glob("*.zarr")) or [path]]
