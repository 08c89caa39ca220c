"""Curves of event studies, run by run: since the jump, around the onset, and block by block at the event."""

# R runs, N steps, L blocks, W writers

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from meanmode.sweeps.engine.event_study import AROUND, EventStudy
from meanmode.sweeps.engine.study import stored_study
from meanmode.sweeps.studies.around_onset import ACTIVE
from meanmode.sweeps.studies.events.event_rules import before, is_regular, regressions_at
from meanmode.sweeps.studies.events.event_summaries import collapsed

LEVELS = ("loss", "tcs_deep", "rho_deep")
"""Curves that are shown as they were measured."""

FACTORS = ("g_mean_all", "g_ctr_all", "grad_rms_q_deep", "grad_rms_k_deep")
"""Curves that are shown over their own value before the jump."""

SHOWN_SHARE = 0.5
"""Share of the runs that must have a step for their median to be shown there."""


def noisy_twins(rows: pd.DataFrame) -> set[str]:
    """Cases whose sizes another case has with a larger batch.

    Args:
        rows: as `meanmode.sweeps.studies.events.event_rules.event_rows`.
    """
    largest = rows.groupby(["depth", "width", "tokens"])["batch"].transform("max")
    return set(rows["case"][rows["batch"] < largest])


def outcomes(rows: pd.DataFrame) -> dict[str, tuple[int, int, int]]:
    """Case -> how many runs collapsed after the jump, how many failed before it, and how many there are."""
    return {
        str(case): (int(collapsed(of).sum()), int((of["onset"] <= 0).sum()), len(of))
        for case, of in rows.groupby("case", sort=False)
    }


def image_tokens(data: xr.Dataset, case: str) -> int:
    """Image tokens of the runs of a case."""
    study = stored_study(data.attrs, of=EventStudy)
    model = study.runs[[of.label for of in study.cases].index(case)].model
    return model.copies * model.image_tokens


def split_merges(data: xr.Dataset) -> dict[str, bool]:
    """Case -> whether its runs have MV-Split merges."""
    study = stored_study(data.attrs, of=EventStudy)
    return {
        case.label: run.model.merge == "mv_split" for case, run in zip(study.cases, study.runs, strict=True)
    }


def since_jump(data: xr.Dataset, cells: Sequence[int]) -> xr.Dataset:
    """The `LEVELS` and `FACTORS` of runs, by steps after the jump [R, N, W]."""
    runs = data.isel(cell=list(cells))
    values = {name: runs[name].astype(float) for name in LEVELS}
    values |= {name: (runs[name] / before(runs, name)).astype(float) for name in FACTORS}
    found = xr.Dataset(values)
    return found.drop_vars([name for name in found.coords if name not in ("since_jump", "writer")])


def since_onset(data: xr.Dataset, cells: Sequence[int], within: int) -> xr.Dataset:
    """The `LEVELS` and `FACTORS` of runs that collapsed, by steps after the onset [R, N, W].

    Args:
        data: a store of an event study, opened.
        cells: indices of runs that collapsed after the jump.
        within: steps on either side of the onset; NaN where a run has none.
    """
    curves, offsets = since_jump(data, cells), np.arange(-within, within + 1)
    aligned = [
        curves.isel(cell=place)
        .reindex(since_jump=int(data["onset_step"][cell]) + offsets)
        .assign_coords(since_jump=offsets)
        for place, cell in enumerate(cells)
    ]
    return xr.concat(aligned, "cell").rename(since_jump="since_onset")


def quartiles(curves: xr.DataArray) -> xr.DataArray:
    """Quartiles over runs [3, N, ...], NaN where fewer than `SHOWN_SHARE` of the runs have the step."""
    known = curves.notnull().mean("cell") >= SHOWN_SHARE
    found = curves.where(known, 0.0).quantile([0.25, 0.5, 0.75], "cell")
    return found.where(known)


@dataclass(frozen=True, kw_only=True)
class EventBlocks:
    """Amplification and coherence of a writer's blocks at the event, of all runs of a case that collapsed.

    Attributes:
        coherence: (T - 1) kappa_abs, one number per run and block.
        excess: A - 1 of the same blocks.
        active: which of them count for the regression.
        regular: number of runs of which this writer has the published regression at the event or one step
            after it.
    """

    coherence: np.ndarray
    excess: np.ndarray
    active: np.ndarray
    regular: int


def event_blocks(data: xr.Dataset, rows: pd.DataFrame, case: str, writer: str) -> EventBlocks:
    """Blocks of the runs of a case at their events.

    Args:
        data: a store of an event study, opened.
        rows: its `meanmode.sweeps.studies.events.event_rules.event_rows`, with the cells as index.
        case: label of the case.
        writer: one of `WRITERS`.
    """
    chosen = rows[(rows["case"] == case) & collapsed(rows)]
    x, y, regular = [], [], 0
    for cell, row in chosen.iterrows():
        run, tokens = data.isel(cell=int(str(cell))), int(row["tokens"])
        lines = [regressions_at(run, int(row["event"]) + later, tokens)[writer] for later in (0, 1)]
        regular += any(is_regular([line]) for line in lines)
        offset = int(row["event"] - row["onset"])
        if offset in AROUND:
            here = run.sel(since_onset=offset, writer=writer).isel(block=slice(1, None))
            x.append((tokens - 1) * here["kappa_abs"].values.astype(float))
            y.append(here["amplification"].values.astype(float) - 1)
    coherence, excess = (np.concatenate(values) if values else np.empty(0) for values in (x, y))
    known = ~np.isnan(excess)
    return EventBlocks(
        coherence=coherence[known], excess=excess[known], active=excess[known] > ACTIVE, regular=regular
    )
