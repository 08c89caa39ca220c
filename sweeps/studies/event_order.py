"""In which order the signals of a study's runs move around a collapse, and by how much."""

from pathlib import Path
from typing import Any

import numpy as np

from meanmode.sim.onset.training_onset import training_onset
from meanmode.sweeps.engine.study import open_study, stored_study, telemetry_of
from meanmode.sweeps.engine.study_variables import KINDS, SIGNAL_SERIES
from meanmode.sweeps.studies.rows import Row, finite

COLLAPSE = KINDS.index("mean_mode")


def first_moves(path: Path) -> list[Row]:
    """When every signal moves away for good, in steps behind the onset, and by which factor; a row a signal.

    Of every case whose runs logged the parts of their gradients at every step. `measured` is the median over
    the runs that collapsed and in which the signal moved, `measured_low` and `measured_high` the first and
    the last of them; `factor` the median over runs of its medians behind and before the onset (see
    `meanmode.sim.onset.training_onset`; `mode_ratio` is G_mean / G_ctr).

    Raises:
        StoreError: no readable study.
    """
    data = open_study(path)
    study = stored_study(data.attrs)
    if not set(SIGNAL_SERIES) <= set(data.data_vars):
        return []
    rows: list[Row] = []
    for case, of in enumerate(study.cases):
        members = np.arange(case * study.seeds, (case + 1) * study.seeds)
        collapsed = members[data["onset_kind"].values[members] == COLLAPSE]
        onsets = [training_onset(telemetry_of(data, int(place))) for place in collapsed]
        for signal in dict.fromkeys(signal for onset in onsets for signal in onset.evidence):
            found = [(onset.step, onset.evidence[signal]) for onset in onsets if onset.step is not None]
            rows.append({"case": of.label, "quantity": "first_move", "signal": signal, **_moves(found)})
    return [finite(row) for row in rows]


def _moves(found: list[tuple[int, Any]]) -> Row:
    """Statistics of one signal over the runs of a case."""
    behind = [moved["first_step"] - step for step, moved in found if moved["first_step"] is not None]
    factors = [moved["ratio"] for _, moved in found if moved["ratio"] is not None]
    return {
        **dict.fromkeys(("predicted", "predicted_std", "z", "relative_error", "measured_sem")),
        "measured": float(np.median(behind)) if behind else None,
        "measured_low": min(behind, default=None),
        "measured_high": max(behind, default=None),
        "factor": float(np.median(factors)) if factors else None,
        "n": len(found),
        "n_moved": len(behind),
    }
