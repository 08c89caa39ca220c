"""The registry of figures, and drawing them from a folder of stores."""

from collections.abc import Callable, Sequence
from pathlib import Path

import xarray as xr
from matplotlib.figure import Figure

from paper_figs import collapse_front, depth_profiles
from sim.store import open_sweep

FIGURES: dict[str, tuple[str, Callable[[xr.Dataset], Figure]]] = {
    "collapse_front": ("collapse_front.zarr", collapse_front.draw),
    "depth_profiles": ("collapse_front.zarr", depth_profiles.draw),
}
"""Name -> the store it reads and the function that draws it."""


def draw_figures(names: Sequence[str], data: Path, out: Path) -> list[Path]:
    """Draw figures into PNG files and return their paths.

    Args:
        names: which; all where empty.
        data: folder of the stores.
        out: folder of the PNG files, created where needed.

    Raises:
        ValueError: a figure nobody draws.
        StoreError: a missing or damaged store.
    """
    unknown = sorted(set(names) - set(FIGURES))
    if unknown:
        raise ValueError(f"unknown figure {unknown[0]!r}: choose from {', '.join(FIGURES)}")
    paths = []
    for name in names or FIGURES:
        store, draw = FIGURES[name]
        figure = draw(open_sweep(data / store))
        out.mkdir(parents=True, exist_ok=True)
        figure.savefig(out / f"{name}.png", dpi=150)
        paths.append(out / f"{name}.png")
    return paths
