"""The registry of figures, and drawing them from a folder of stores."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import xarray as xr
from matplotlib.figure import Figure

from meanmode.paper_figs.figures import (
    amplification_event,
    collapse_front,
    committor,
    critical_rate,
    depth_profiles,
    event,
    half_rate,
    interventions,
    margin,
    merge_modes,
    mixers,
    timestep_probe,
    token_law,
    waiting_time,
)
from meanmode.sim.store.files import StoreError
from meanmode.sim.store.run_reader import open_run
from meanmode.sim.store.sweep_store import DONE, open_cells, open_sweep

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


STUDY_FIGURES: dict[str, tuple[tuple[str, ...], Callable[[Mapping[str, xr.Dataset]], Figure]]] = {
    "critical_rate": (critical_rate.STUDIES, critical_rate.draw),
    "half_rate": (half_rate.STUDIES, half_rate.draw),
    "margin": (margin.STUDIES, margin.draw),
    "interventions": (interventions.STUDIES, interventions.draw),
    "committor": (committor.STUDIES, committor.draw),
}
"""Name -> the studies it reads, each where its store is there, and the function that draws them."""


DOCUMENT_FIGURES: dict[str, tuple[str, Callable[[Mapping[str, Any]], Figure]]] = {
    "waiting_time": ("waiting_time.scores.json", waiting_time.draw),
    "timestep_probe": ("timestep_probe.json", timestep_probe.draw),
}
"""Name -> the JSON document it reads, such as a command writes, and the function that draws it."""


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
    known = [*FIGURES, *RUN_FIGURES, *STUDY_FIGURES, *DOCUMENT_FIGURES]
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ValueError(f"unknown figure {unknown[0]!r}: choose from {', '.join(known)}")
    paths = []
    present = [name for name in known if any((data / store).exists() for store in _stores(name))]
    if not names and not present:
        raise ValueError(f"{data} does not exist or holds no store of a figure")
    for name in names or present:
        figure = _drawn(name, data)
        out.mkdir(parents=True, exist_ok=True)
        figure.savefig(out / f"{name}.png", dpi=150)
        paths.append(out / f"{name}.png")
    return paths


def _stores(name: str) -> tuple[str, ...]:
    """What a figure reads, in the folder of stores."""
    if name in STUDY_FIGURES:
        return tuple(f"{study}.zarr" for study in STUDY_FIGURES[name][0])
    return ({**FIGURES, **RUN_FIGURES, **DOCUMENT_FIGURES}[name][0],)


def _drawn(name: str, data: Path) -> Figure:
    """A figure from the stores of a folder."""
    if name in STUDY_FIGURES:
        studies, draw = STUDY_FIGURES[name]
        return draw(_studies(data, studies))
    if name in DOCUMENT_FIGURES:
        document, draw_document = DOCUMENT_FIGURES[name]
        return draw_document(_document(data / document))
    store, draw_one = {**FIGURES, **RUN_FIGURES}[name]
    return draw_one(*(_runs if name in RUN_FIGURES else _sweep)(data / store))


def _document(path: Path) -> dict[str, Any]:
    """A JSON document of the folder."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} holds no document of a figure ({error}): write it again") from error


def _studies(folder: Path, names: Sequence[str]) -> dict[str, xr.Dataset]:
    """Those of some studies that are there, finished, each with the text of its forecast where it has one."""
    found = {}
    for name in names:
        path, forecast = folder / f"{name}.zarr", folder / f"{name}.forecast.json"
        if path.exists():
            found[name] = _finished(open_cells(path), path)
            if forecast.exists():
                found[name].attrs["forecast"] = forecast.read_text()
    if not found:
        raise StoreError(f"{folder} holds none of the studies {', '.join(names)}: run one of them")
    return found


def _sweep(path: Path) -> list[xr.Dataset]:
    """The finished sweep at a path."""
    return [_finished(open_sweep(path), path)]


def _finished(sweep: xr.Dataset, path: Path) -> xr.Dataset:
    unfinished = int((sweep["status"] != DONE).sum())
    if unfinished:
        raise StoreError(f"{path} has {unfinished} cells to do, failed or diverged: finish the sweep")
    return sweep


def _runs(path: Path) -> list[xr.Dataset]:
    """The run at a path, or all in the folder there."""
    return [open_run(store) for store in sorted(path.glob("*.zarr")) or [path]]
