"""The registry of figures, and drawing them from a folder of stores; no figure opens a store itself."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import xarray as xr
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

from meanmode.paper_figs.figures import (
    collapse_front,
    committor,
    critical_rate,
    depth_profiles,
    dynamic_front,
    half_rate,
    interventions,
    long_runs,
    loss_and_rho,
    margin,
    merge_losses,
    merge_modes,
    mixers,
    phase_diagram,
    standard_writers,
    timestep_probe,
    token_law,
    token_regimes,
    waiting_time,
)
from meanmode.paper_figs.figures.events import (
    event,
    event_causes,
    event_depth,
    event_factor,
    event_regression,
    event_report,
    event_run,
)
from meanmode.paper_figs.figures.hazards import calibration, hazard_depth, schedule_risk, survival
from meanmode.paper_figs.figures.stacks import (
    frame_means,
    long_contexts,
    structured_fronts,
    structured_gradients,
    trainability,
)
from meanmode.paper_figs.figures.training import mixers_training
from meanmode.paper_figs.gallery import PICTURES
from meanmode.paper_figs.shared.style import LOOK
from meanmode.sim.store.files import StoreError
from meanmode.sim.store.regular_files import read_json
from meanmode.sim.store.run_reader import is_run, open_run
from meanmode.sim.store.sweep_store import DONE, open_cells

FIGURES: dict[str, tuple[str, Callable[[xr.Dataset], Figure]]] = {
    "collapse_front": ("collapse_front.zarr", collapse_front.draw),
    "depth_profiles": ("collapse_front.zarr", depth_profiles.draw),
    "mixers": ("mixers.zarr", mixers.draw),
    "token_law": ("token_law.zarr", token_law.draw),
    "structured_fronts": ("structured_fronts.zarr", structured_fronts.draw),
    "structured_gradients": ("structured_gradients.zarr", structured_gradients.draw),
    "token_regimes": ("token_law.zarr", token_regimes.draw),
    "frame_means": ("frame_means.zarr", frame_means.draw),
}
"""Name -> the sweep that is drawn, along `cell`, and the function that draws it."""


RUN_FIGURES: dict[str, tuple[tuple[str, ...], Callable[..., Figure]]] = {
    "event_run": (("event.zarr",), event_run.draw),
    "event_400": (("event_400.zarr",), event_run.draw),
    "event_report": (("digits_400l.zarr",), event_report.draw),
    "loss_and_rho": (("digits_400l.zarr", "digits_400l_mvsplit.zarr"), loss_and_rho.draw),
    "long_runs": (
        tuple(f"digits_{depth}l{kind}.zarr" for depth in (400, 1000) for kind in ("", "_mvsplit_long")),
        long_runs.draw,
    ),
    "merge_modes": (("merge_modes",), merge_modes.draw),
    "standard_writers": (("standard_writers.zarr",), standard_writers.draw),
}
"""Name -> the runs, or the folders of runs, that are drawn together, and the function that draws them."""


STUDY_FIGURES: dict[str, tuple[tuple[str, ...], Callable[[Mapping[str, xr.Dataset]], Figure]]] = {
    "critical_rate": (critical_rate.STUDIES, critical_rate.draw),
    "half_rate": (half_rate.STUDIES, half_rate.draw),
    "margin": (margin.STUDIES, margin.draw),
    "interventions": (interventions.STUDIES, interventions.draw),
    "merge_losses": (merge_losses.STUDIES, merge_losses.draw),
    "phase_diagram": (phase_diagram.STUDIES, phase_diagram.draw),
    "committor": (committor.STUDIES, committor.draw),
    "long_contexts": (long_contexts.STUDIES, long_contexts.draw),
    **{
        module.__name__.rpartition(".")[2]: (module.STUDIES, module.draw)
        for module in (
            event,
            event_regression,
            event_factor,
            event_causes,
            event_depth,
            survival,
            hazard_depth,
            calibration,
            schedule_risk,
            trainability,
            mixers_training,
        )
    },
}
"""Name -> the studies that are drawn, those of them whose store exists, and the function that draws them."""


BESIDE: dict[str, tuple[str, ...]] = {
    "event_causes": event_causes.BESIDE,
    "phase_diagram": phase_diagram.BESIDE,
    "hazard_depth": hazard_depth.BESIDE,
    "calibration": calibration.BESIDE,
    "schedule_risk": schedule_risk.BESIDE,
    "long_contexts": long_contexts.BESIDE,
    "mixers_training": mixers_training.BESIDE,
}
"""Name -> studies that are drawn as well where they exist, but only beside those of `STUDY_FIGURES`."""


SINGLE_RUN = "event_run"
"""The figure that is drawn of any run, if a run is given in place of a folder of stores."""


DOCUMENT_FIGURES: dict[str, tuple[str, Callable[[Mapping[str, Any]], Figure]]] = {
    "waiting_time": ("waiting_time.scores.json", waiting_time.draw),
    "timestep_probe": ("timestep_probe.json", timestep_probe.draw),
    "dynamic_front": ("dynamic_front.json", dynamic_front.draw),
}
"""Name -> the JSON document, written by a command, that is drawn, and the function that draws it."""


COMMANDS = {
    "waiting_time.scores.json": "mms waiting STORES --out",
    "timestep_probe.json": "mms evaluate RUN --probe timestep --json >",
}
"""Document -> the command that writes it, up to the name of the file."""


DPI = 200
"""Pixels per inch of a PNG file."""


def draw_figures(names: Sequence[str], data: Path, out: Path, *, pdf: bool = False) -> list[Path]:
    """Draw figures as PNG files and return their paths.

    Args:
        names: which figures; if empty, all whose stores are in the folder.
        data: folder of the stores; or a run, which `SINGLE_RUN` draws.
        out: folder of the files, created if missing.
        pdf: whether to write a vector PDF beside every PNG as well.

    Raises:
        ValueError: an unknown figure, a folder that holds no store of any figure, or another figure of a run.
        StoreError: a missing, damaged or unfinished store.
    """
    known = [*FIGURES, *RUN_FIGURES, *STUDY_FIGURES, *DOCUMENT_FIGURES]
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ValueError(f"unknown figure {unknown[0]!r}: choose from {', '.join(known)}")
    single = is_run(data)
    present = [SINGLE_RUN] if single else [name for name in known if _is_present(name, data)]
    if single and set(names) - {SINGLE_RUN}:
        raise ValueError(f"{data} is one run, of which only {SINGLE_RUN} is drawn: give a folder of stores")
    if not present:
        state = "is a file" if data.is_file() else "does not exist"
        state = "holds no store of a figure" if data.is_dir() else state
        raise ValueError(
            f"{data} {state}: a checkout of the repository has the data of all figures in paper_figs/data, "
            "so give the path of that folder, or of a folder of your own stores, with --data"
        )
    paths = []
    for name in names or present:
        with rc_context(LOOK):
            figure = event_run.draw(open_run(data)) if single else _drawn(name, data)
            out.mkdir(parents=True, exist_ok=True)
            paths += _saved(figure, out / f"{name}.png", pdf)
    return paths


def _saved(figure: Figure, path: Path, pdf: bool) -> list[Path]:
    """The files of a figure; a PNG has 256 colours, which makes it a third of the size."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI)
    Image.open(drawn).convert("RGB").quantize(256).save(path, optimize=True, dpi=(DPI, DPI))
    if not pdf:
        return [path]
    figure.savefig(path.with_suffix(".pdf"))
    return [path, path.with_suffix(".pdf")]


def _is_present(name: str, data: Path) -> bool:
    """Whether a folder holds a store that a figure is drawn from."""
    found = [(data / store).exists() for store in _stores(name)]
    return all(found) if name in RUN_FIGURES else any(found)


def _stores(name: str) -> tuple[str, ...]:
    """The files and folders a figure is drawn from, in the folder of stores."""
    if name in STUDY_FIGURES:
        return tuple(f"{study}.zarr" for study in STUDY_FIGURES[name][0])
    if name in RUN_FIGURES:
        return RUN_FIGURES[name][0]
    return ({**FIGURES, **DOCUMENT_FIGURES}[name][0],)


def _drawn(name: str, data: Path) -> Figure:
    """A figure, from the stores of a folder."""
    stores = [data / store for store in _stores(name)]
    if not _is_present(name, data):
        raise StoreError(_missing(name, [path for path in stores if not path.exists()]))
    if name in STUDY_FIGURES:
        studies, draw = STUDY_FIGURES[name]
        return draw(_studies(data, (*studies, *BESIDE.get(name, ()))))
    if name in DOCUMENT_FIGURES:
        return DOCUMENT_FIGURES[name][1](_document(*stores))
    if name in RUN_FIGURES:
        return RUN_FIGURES[name][1](*(run for path in stores for run in _runs(path)))
    return FIGURES[name][1](_finished(open_cells(*stores), *stores))


def _missing(name: str, stores: Sequence[Path]) -> str:
    """What is missing for a figure, and the command that makes it where there is one."""
    first = stores[0]
    between = " and " if name in RUN_FIGURES else " or "
    needed = f"the figure {name} needs {between.join(map(str, stores))}, which does not exist"
    if name in RUN_FIGURES or (first.name not in COMMANDS and name in DOCUMENT_FIGURES):
        made = f"make it with `mms train` as docs/{PICTURES[name].page} says"
        return f"{needed}: {made}, or give the paper_figs/data of a checkout with --data"
    command = COMMANDS.get(first.name, f"mms sweep run {first.stem} --out")
    return f"{needed}: make it with `{command} {first}`, or give another folder with --data"


def _document(path: Path) -> dict[str, Any]:
    """A JSON document of the folder."""
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} is not a JSON document ({error}): write it again") from error


def _studies(folder: Path, names: Sequence[str]) -> dict[str, xr.Dataset]:
    """The finished studies in a folder, each with the text of its forecast as an attribute if it has one."""
    found = {}
    for name in names:
        path, forecast = folder / f"{name}.zarr", folder / f"{name}.forecast.json"
        if path.exists():
            found[name] = _finished(open_cells(path), path)
            if forecast.exists():
                found[name].attrs["forecast"] = json.dumps(read_json(forecast))
    return found


def _finished(sweep: xr.Dataset, path: Path) -> xr.Dataset:
    unfinished = int((sweep["status"] != DONE).sum())
    if unfinished:
        raise StoreError(f"{path} has {unfinished} cells to do, failed or diverged: finish the sweep")
    return sweep


def _runs(path: Path) -> list[xr.Dataset]:
    """The run at a path, or all runs in the folder there."""
    return [open_run(store) for store in sorted(path.glob("*.zarr")) or [path]]
