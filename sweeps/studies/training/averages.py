"""Whether a moving average of the weights outlives a collapse: its loss and TCS across the onset."""

from typing import Any

import numpy as np
import xarray as xr

from meanmode.sweeps.engine.study import stored_study
from meanmode.sweeps.engine.study_variables import KINDS
from meanmode.theory.meanfield.front import FRONT_COSINE

HEALTHY = 10
"""Steps before the jump whose median loss is the healthy one."""


def average_rows(data: xr.Dataset) -> list[dict[str, Any]]:
    """One row per case with the decay of the average, over its runs that collapse.

    `collapsed` of `runs`; `homogeneous`, how many averages reach a TCS of 0.9 by the end of their run, which
    is `followed` steps after the onset, and `delay`, the median steps from the onset to that. The other
    medians are losses over the healthy one before the jump: `weights_onset` and `average_onset` at the onset,
    `weights_end` and `average_end` at the end.

    Args:
        data: a study with `average_loss` and `average_tcs`, opened, whose runs jump from a healthy rate.
    """
    study = stored_study(data.attrs)
    rows = []
    for number, (case, run) in enumerate(zip(study.cases, study.runs, strict=True)):
        found: dict[str, list[float]] = {name: [] for name in (*RATIOS, "delay", "followed")}
        collapsed = 0
        for cell in range(study.seeds * number, study.seeds * (number + 1)):
            if KINDS[int(data["onset_kind"].values[cell])] != "mean_mode":
                continue
            collapsed += 1
            onset, last = (int(data[name].values[cell]) for name in ("onset_step", "last_step"))
            found["followed"].append(float(last - onset))
            jump = run.training.first_steps
            losses = {name: data[of].values[cell] for name, of in SERIES.items()}
            healthy = float(np.median(losses["weights"][jump - HEALTHY : jump]))
            # the last step has no update, and so no average
            for at, step in (("onset", min(onset, last - 1)), ("end", last - 1)):
                for name in SERIES:
                    found[f"{name}_{at}"].append(float(losses[name][step - 1]) / healthy)
            alike = np.flatnonzero(data["average_tcs"].values[cell, :last] > FRONT_COSINE) + 1
            after = alike[alike > jump]
            if len(after):
                found["delay"].append(float(after[0] - onset))
        medians = {name: float(np.median(of)) if of else np.nan for name, of in found.items()}
        row: dict[str, Any] = {"case": case.label, "decay": run.training.ema, "runs": study.seeds}
        rows.append(row | {"collapsed": collapsed, "homogeneous": len(found["delay"]), **medians})
    return rows


SERIES = {"weights": "loss", "average": "average_loss"}
"""What has a loss -> its series."""

RATIOS = tuple(f"{name}_{at}" for name in SERIES for at in ("onset", "end"))
"""Losses over the healthy one."""
