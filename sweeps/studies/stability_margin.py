"""The stability margin as a run goes on: Delta / Delta_c from two forward passes, and what it announces."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meanmode.sim.store.sweep_store import DONE
from meanmode.sweeps.engine.study import open_study
from meanmode.sweeps.engine.study_variables import KINDS
from meanmode.sweeps.studies.rows import finite

DELTA_C = 0.436
"""Threshold of Delta, law O2's as fitted on the 72 runs of critical_rate_depth (8 to 32 blocks)."""


STEPS = 25
"""Delta is the median of what was measured in so many steps, since single ones scatter by a factor of two."""


def margins(functional_steps: NDArray[Any], threshold: float = DELTA_C) -> NDArray[np.float64]:
    """Delta / Delta_c of every step, from the measurements of the last `STEPS`; NaN before any.

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
    """First step at which the margin is used up, behind `STEPS` steps; None where it never is."""
    used = np.flatnonzero(margins(functional_steps, threshold)[STEPS - 1 :] >= 1)
    return int(used[0]) + STEPS if len(used) else None


def margin_rows(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """What a margin that is used up announces, case by case.

    `warned`: share of the collapsed runs in which it was used up before the onset; `median_lead`: steps
    between the two, and `median_share`: rate at the crossing over that at the onset, over those runs;
    `healthy` runs neither collapsed nor diverged, and `healthy_crossed` of them used it up all the same.

    Raises:
        StoreError: no readable study.
    """
    rows = []
    for path in paths:
        data = open_study(path)
        done = data["status"].values == DONE
        for case in dict.fromkeys(data["case"].values[done]):
            places = np.flatnonzero(done & (data["case"].values == case))
            rows.append({"study": data.attrs["name"], "case": str(case), **_announced(data, places)})
    return [finite(row) for row in rows]


def _announced(data: Any, places: NDArray[np.int64]) -> dict[str, Any]:
    leads, shares, healthy, crossed, collapsed = [], [], 0, 0, 0
    for place in places:
        last = int(data["last_step"].values[place])
        first = crossing(data["functional_step"].values[place, :last].astype(float))
        kind = KINDS[int(data["onset_kind"].values[place])]
        if kind == "none":
            healthy += 1
            crossed += first is not None
        if kind != "mean_mode":
            continue
        collapsed += 1
        onset = int(data["onset_step"].values[place])
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
