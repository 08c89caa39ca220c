"""Small event studies whose runs were not made: onsets and factors of G_mean are given."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

from meanmode.paper_figs.shared.style import COLUMN, PAGE
from meanmode.sim.store.sweep_store import DONE
from meanmode.sim.store.sweep_writer import SweepWriter
from meanmode.sweeps.engine.event_study import AROUND, EventStudy
from meanmode.sweeps.engine.store_layout import lay_out
from meanmode.sweeps.engine.study import Case
from meanmode.sweeps.engine.study_variables import KINDS
from meanmode.sweeps.named.event_jumps import (
    EVENT_BATCHES,
    EVENT_CAUSES,
    EVENT_CAUSES_RATES,
    EVENT_DEPTH,
    EVENT_DEPTH_400_SLOWER,
    EVENT_DISTANCES,
    EVENT_REPLICATES,
)

DEPTH, SEEDS = 4, 2
Onset = Callable[[str, int], tuple[float | None, float]]
"""Label of a case and index of a seed -> steps from the jump to the onset, None without one, and the factor
of G_mean there."""


def smaller(study: EventStudy, cases: tuple[Case, ...] = (), **fields: Any) -> EventStudy:
    """The study with a few blocks and seeds."""
    base = study.base.with_fields({"depth": DEPTH})
    return dataclasses.replace(study, base=base, cases=cases or study.cases, seeds=SEEDS, **fields)


def at_rate(label: str, half: float) -> tuple[float | None, float]:
    """A run that collapses above a half rate, sooner and with more growth at a higher rate."""
    ratio = float(label.rsplit(" ", 1)[1]) / half
    return (round(24 / ratio), 20 * ratio) if ratio > 1 else (None, 1.0)


def replicated(label: str, seed: int) -> tuple[float | None, float]:
    """Only the first twin at batch 4 collapses before its jump."""
    return (-20.0, 1.0) if label.startswith("width 64, batch 4,") else (12 + seed, 60 + seed)


def caused(label: str, seed: int) -> tuple[float | None, float]:
    """Onsets are doubled without the mean part, and there are none without a mean write."""
    if label in ("no mean write", "MV-Split"):
        return None, 1.0
    return (2.0 if label.startswith("mean part") else 1.0) * (10 + seed), 50.0


def deeper(label: str, seed: int) -> tuple[float | None, float]:
    return (None, 1.0) if "MV-Split" in label else (10 + seed, 80.0)


def crafted(study: EventStudy, onset_of: Onset) -> xr.Dataset:
    """A finished study; G_mean falls off on both sides of the onset, A - 1 is (T - 1) kappa_abs."""
    layout = study.layout()
    sizes = {"cell": range(len(study.cells)), **layout.sizes}
    data = xr.Dataset(
        {
            name: (("cell", *of.dims), np.full([len(sizes[dim]) for dim in ("cell", *of.dims)], np.nan))
            for name, of in layout.variables.items()
        },
        {name: (name, list(values)) for name, values in layout.sizes.items()},
        {
            "configuration": json.dumps(study.configuration()),
            **{"name": study.name, "claim": study.claim, "laws": "[]"},
        },
    )
    data["status"] = ("cell", np.full(len(study.cells), DONE))
    for cell in range(len(study.cells)):
        for name, values in _values(study, cell, onset_of).items():
            data[name][cell] = values
    return data


def _values(study: EventStudy, cell: int, onset_of: Onset) -> dict[str, Any]:
    case, seed = divmod(cell, study.seeds)
    onset, factor = onset_of(study.cases[case].label, seed)
    model, sizes = study.cells[cell].run.model, study.layout().sizes
    values: dict[str, Any] = {
        "onset_step": np.array(np.nan if onset is None else onset),
        "onset_kind": np.array(KINDS.index("none" if onset is None else "mean_mode")),
        "last_step": np.array(study.follow),
        "initial_loss": np.array(1.6),
    }
    if onset is None or onset > 0:
        values |= _series(np.asarray(sizes["since_jump"]), onset, factor)
        values |= _blocks(len(sizes["block"]), model.image_tokens + model.text_tokens)
    return values


def _series(steps: np.ndarray, onset: float | None, factor: float) -> dict[str, Any]:
    fallen = np.zeros(len(steps), bool) if onset is None else steps >= onset
    near = np.exp(-np.abs(steps - (0.0 if onset is None else onset)) / 3) * (steps > 0)
    mean = np.repeat(0.01 * (1 + (factor - 1) * near)[:, None], 2, axis=1)
    centered = np.repeat(0.02 * np.where(fallen, 0.5, 1.0)[:, None], 2, axis=1)
    return {
        "loss": np.where(fallen, 2.0, 0.7),
        "tcs_deep": np.where(fallen, 0.99, 0.3),
        "rho_deep": np.where(fallen, 30.0, 0.7),
        **{name: np.where(fallen, 1e-6, 1e-3) for name in ("grad_rms_q_deep", "grad_rms_k_deep")},
        **{f"{mode}_all": of for mode, of in (("g_mean", mean), ("g_ctr", centered))},
    }


def _blocks(count: int, tokens: int) -> dict[str, Any]:
    coherence = np.tile(np.linspace(0.1, 0.9, count)[None, :, None], (len(AROUND), 1, 2))
    return {"kappa_abs": coherence, "amplification": 1 + (tokens - 1) * coherence}


@pytest.fixture
def has_the_look() -> Callable[[Figure], bool]:
    """Whether a figure is one or two columns wide, with a caption of at most three lines and no title."""

    def looks(figure: Figure) -> bool:
        lines = figure.get_supxlabel().splitlines()
        return figure.get_figwidth() in (COLUMN, PAGE) and 1 <= len(lines) <= 3 and not figure.get_suptitle()

    return looks


@pytest.fixture(scope="session")
def event_studies() -> dict[str, xr.Dataset]:
    """All event studies that figures draw."""
    few = tuple(case for case in EVENT_BATCHES.cases if case.label.startswith(("batch 4,", "batch 64,")))
    half = {"batch 4": 0.0085, "batch 64": 0.019}
    onsets: tuple[tuple[EventStudy, Onset], ...] = (
        (smaller(EVENT_REPLICATES), replicated),
        (smaller(EVENT_BATCHES, few), lambda label, _: at_rate(label, half[label.split(",")[0]])),
        (smaller(EVENT_DISTANCES), lambda label, _: at_rate(label, 0.022)),
        (smaller(EVENT_CAUSES), caused),
        (smaller(EVENT_CAUSES_RATES), lambda label, _: at_rate(label, 0.022)),
        (dataclasses.replace(EVENT_DEPTH, seeds=SEEDS), deeper),
        (dataclasses.replace(EVENT_DEPTH_400_SLOWER, seeds=1), deeper),
    )
    return {study.name: crafted(study, onset_of) for study, onset_of in onsets}


@pytest.fixture(scope="session")
def event_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two cases, in a folder that serves `mms figures --data`."""
    folder = tmp_path_factory.mktemp("events")
    study = smaller(EVENT_REPLICATES, EVENT_REPLICATES.cases[:2])
    path = folder / f"{study.name}.zarr"
    lay_out(study, path)
    writer = SweepWriter(path)
    for cell in range(len(study.cells)):
        writer.write(cell, _values(study, cell, replicated), DONE)
    return folder
