"""The stability margin during a run: Delta / Delta_c from two forward passes, and how early it warns."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from meanmode.sim.store.sweep_store import DONE
from meanmode.sweeps.engine.store_kinds import open_study
from meanmode.sweeps.engine.study_variables import KINDS
from meanmode.sweeps.studies.rows import Row, finite

DELTA_C = 0.436
"""Threshold of Delta in law O2, fitted on the 72 runs of critical_rate_depth (8 to 32 blocks)."""


STEPS = 25
"""Delta is the median over this many steps, since single measurements scatter by a factor of two."""


BEFORE_ONSET = (40, 5)
"""First and last of the steps before an onset over which Delta is taken; nearer, the collapse has begun."""


def steps_before_onset(data: xr.Dataset) -> list[Row]:
    """Delta before the collapses of every case of a study, one row per case in the study's order.

    `values`: the median Delta over the steps `BEFORE_ONSET` of every run that collapsed; `median` is theirs,
    None where no run did.

    Args:
        data: cells of a finished study.
    """
    first, last = BEFORE_ONSET
    steps, labels = data["step"].values, data["case"].values
    rows = []
    for case in dict.fromkeys(labels.tolist()):
        values = []
        for index in np.flatnonzero((labels == case) & data["critical_rate"].notnull().values):
            onset = data["onset_step"].values[index]
            delta = data["functional_step"].values[index].astype(float)
            delta = delta[(steps >= onset - first) & (steps <= onset - last) & (delta > 0)]
            values += [float(np.median(delta))] if delta.size else []
        rows.append({"case": case, "values": values, "median": float(np.median(values)) if values else None})
    return rows


def margins(functional_steps: NDArray[Any], threshold: float = DELTA_C) -> NDArray[np.float64]:
    """Delta / Delta_c of every step, from the measurements of the last `STEPS`; NaN before the first.

    Args:
        functional_steps: Delta of every step from 1, NaN where it was not measured.
        threshold: Delta_c.
    """
    found = np.full(len(functional_steps), np.nan)
    for step in range(1, len(functional_steps) + 1):
        recent = functional_steps[max(step - STEPS, 0) : step]
        recent = recent[~np.isnan(recent)]
        if len(recent):
            found[step - 1] = np.median(recent) / threshold
    return found


def crossing(functional_steps: NDArray[Any], threshold: float = DELTA_C) -> int | None:
    """First step from `STEPS` on at which the margin is used up; None if it never is."""
    used = np.flatnonzero(margins(functional_steps, threshold)[STEPS - 1 :] >= 1)
    return int(used[0]) + STEPS if len(used) else None


def margin_rows(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """How early a used-up margin warns of a collapse. One row per case.

    `warned`: share of the collapsed runs whose margin was used up before the onset. Over those runs,
    `median_lead`: steps from the crossing to the onset, and `median_share`: crossing step / onset step.
    `healthy` runs neither collapsed nor diverged; `healthy_crossed` counts those that used it up anyway.

    Raises:
        StoreError: no readable study of labelled runs.
    """
    rows = []
    for path in paths:
        data = open_study(path)
        done = data["status"].values == DONE
        for case in dict.fromkeys(data["case"].values[done]):
            members = np.flatnonzero(done & (data["case"].values == case))
            rows.append({"study": data.attrs["name"], "case": str(case), **_announced(data, members)})
    return [finite(row) for row in rows]


def _announced(data: xr.Dataset, members: NDArray[np.int64]) -> dict[str, Any]:
    leads, shares, healthy, crossed, collapsed = [], [], 0, 0, 0
    for index in members:
        last = int(data["last_step"].values[index])
        first = crossing(data["functional_step"].values[index, :last].astype(float))
        kind = KINDS[int(data["onset_kind"].values[index])]
        if kind == "none":
            healthy += 1
            crossed += first is not None
        if kind != "mean_mode":
            continue
        collapsed += 1
        onset = int(data["onset_step"].values[index])
        if first is not None and first < onset:
            leads.append(onset - first)
            shares.append(first / onset)
    return {
        "collapsed": collapsed,
        "warned": len(leads) / collapsed if collapsed else None,
        "median_lead": float(np.median(leads)) if leads else None,
        "median_share": float(np.median(shares)) if shares else None,
        "healthy": healthy,
        "healthy_crossed": crossed,
    }
