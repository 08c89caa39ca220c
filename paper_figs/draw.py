"""The registry of figures, and drawing them from a folder of stores."""

from collections.abc import Callable, Sequence
from pathlib import Path

import xarray as xr
from matplotlib.figure import Figure

from paper_figs import collapse_front, depth_profiles, mixers, token_law
from sim.store import DONE, StoreError, open_sweep

FIGURES: dict[str, tuple[str, Callable[[xr.Dataset], Figure]]] = {
    "collapse_front": ("collapse_front.zarr", collapse_front.draw),
    "depth_profiles": ("collapse_front.zarr", depth_profiles.draw),
    "mixers": ("mixers.zarr", mixers.draw),
    "token_law": ("token_law.zarr", token_law.draw),
}
"""Name -> the store it reads and the function that draws it."""


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
    unknown = sorted(set(names) - set(FIGURES))
    if unknown:
        raise ValueError(f"unknown figure {unknown[0]!r}: choose from {', '.join(FIGURES)}")
    paths = []
    present = [name for name, (store, _) in FIGURES.items() if (data / store).exists()]
    if not names and not present:
        raise ValueError(f"{data} does not exist or holds no store of a figure")
    for name in names or present:
        store, draw = FIGURES[name]
        sweep = open_sweep(data / store)
        unfinished = int((sweep["status"] != DONE).sum())
        if unfinished:
            raise StoreError(
                f"{data / store} has {unfinished} cells to do, failed or diverged: finish the sweep"
            )
        figure = draw(sweep)
        out.mkdir(parents=True, exist_ok=True)
        figure.savefig(out / f"{name}.png", dpi=150)
        paths.append(out / f"{name}.png")
    return paths
