"""How the cases of a judged study compare: held-out loss, FID and KID over seeds, and runs that failed."""

from typing import Any

import numpy as np
import xarray as xr

from meanmode.dit.config.architecture import DiTConfig
from meanmode.sim.store.sweep_store import DONE
from meanmode.sweeps.engine.cost import block_products, block_weights
from meanmode.sweeps.engine.judged.judged_study import JudgedStudy
from meanmode.sweeps.engine.study import stored_study
from meanmode.sweeps.engine.study_variables import KINDS
from meanmode.sweeps.studies.rows import Row, finite

JUDGED = ("held_out_loss", "fid", "kid")
"""What a network is judged by, each better when smaller."""


def judged_rows(data: xr.Dataset) -> list[dict[str, Any]]:
    """One row per case: `case`, `weights` and `flops` of its blocks, `failed`, `runs`, and each of `JUDGED`.

    Those are medians over the finished runs with `_low` and `_high`, the smallest and the largest; the
    held-out loss is that after the last step. A run that collapsed, diverged or ended early counts as worse
    than any other. `weights` are in all blocks, `flops` those of the products of a forward pass on one
    sample. Cases of which no run is finished are left out.

    Args:
        data: a judged study, opened.
    """
    study = stored_study(data.attrs, of=JudgedStudy)
    done = data["status"].values == DONE
    kinds = np.where(done, data["onset_kind"].values, KINDS.index("none")).astype(int)
    failed = np.array([KINDS[kind] != "none" for kind in kinds])
    values = {name: data[name].values for name in ("fid", "kid")}
    rows = []
    for number, (case, run) in enumerate(zip(study.cases, study.runs, strict=True)):
        own = [cell for cell in range(study.seeds * number, study.seeds * (number + 1)) if done[cell]]
        if not own:
            continue
        row: dict[str, Any] = {"case": case.label, **_size(run.model), "runs": len(own)}
        row["failed"] = int(failed[own].sum())
        last = data["measurement"].values.tolist().index(run.training.steps)
        values["held_out_loss"] = data["held_out_loss"].values[:, last]
        for name in JUDGED:
            known = np.isfinite(values[name][own]) & ~failed[own]
            found = np.where(known, values[name][own], np.inf).astype(float)
            ends = {"": np.median(found), "_low": found.min(), "_high": found.max()}
            row |= {f"{name}{end}": float(value) for end, value in ends.items()}
        rows.append(row)
    return rows


def compared_judgements(data: xr.Dataset) -> list[Row]:
    """The judgements as rows of a comparison; nothing in them was forecast."""
    return [finite({**row, "quantity": "judgement", "relative_error": None}) for row in judged_rows(data)]


def _size(model: DiTConfig) -> dict[str, int]:
    setting = model.setting(batch=1)
    return {
        "weights": model.depth * block_weights(setting),
        "flops": model.depth * block_products(setting),
    }
