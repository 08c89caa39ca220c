"""The order in which the signals of a study's runs move around a collapse, and by how much."""

from typing import Any

import numpy as np
import xarray as xr

from meanmode.sim.onset.training_onset import training_onset
from meanmode.sweeps.engine.study import stored_study, telemetry_of
from meanmode.sweeps.engine.study_variables import KINDS, SIGNAL_SERIES
from meanmode.sweeps.studies.rows import Row, finite

COLLAPSE = KINDS.index("mean_mode")
"""Code of a mean-mode collapse."""


def first_moves(data: xr.Dataset) -> list[Row]:
    """When each signal leaves its baseline for good (steps after the onset), and by what factor.

    One row per case and signal, for studies whose runs logged the parts of their gradients. `measured` is the
    median over the collapsed runs in which the signal moved, `measured_low` and `measured_high` the earliest
    and the latest; `factor` is the median over runs of the signal's median after the onset over that before
    (see `meanmode.sim.onset.training_onset`; `mode_ratio` is G_mean / G_ctr).

    Args:
        data: a study of labelled runs, opened.
    """
    study = stored_study(data.attrs)
    if not set(SIGNAL_SERIES) <= set(data.data_vars):
        return []
    rows: list[Row] = []
    for case, of in enumerate(study.cases):
        members = np.arange(case * study.seeds, (case + 1) * study.seeds)
        collapsed = members[data["onset_kind"].values[members] == COLLAPSE]
        onsets = [training_onset(telemetry_of(data, int(index))) for index in collapsed]
        for signal in dict.fromkeys(signal for onset in onsets for signal in onset.evidence):
            found = [(onset.step, onset.evidence[signal]) for onset in onsets if onset.step is not None]
            rows.append({"case": of.label, "quantity": "first_move", "signal": signal, **_moves(found)})
    return [finite(row) for row in rows]


def _moves(found: list[tuple[int, Any]]) -> Row:
    """Statistics of one signal over the runs of a case: (onset step, evidence) pairs."""
    after = [moved["first_step"] - step for step, moved in found if moved["first_step"] is not None]
    factors = [moved["ratio"] for _, moved in found if moved["ratio"] is not None]
    return {
        **dict.fromkeys(("predicted", "predicted_std", "z", "relative_error", "measured_sem")),
        "measured": float(np.median(after)) if after else None,
        "measured_low": min(after, default=None),
        "measured_high": max(after, default=None),
        "factor": float(np.median(factors)) if factors else None,
        "n": len(found),
        "n_moved": len(after),
    }
