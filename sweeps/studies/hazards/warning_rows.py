"""Rows on which the early warning is fitted and scored: signals of runs of studies, and their outcomes."""

# N rows

from collections.abc import Sequence

import numpy as np
import pandas as pd

from meanmode.dit.config.run_config import RunConfig
from meanmode.dit.config.warning_premises import broken_premises
from meanmode.sim.onset.early_warning import FEATURES, warning_features
from meanmode.sim.store.sweep_store import DONE
from meanmode.sweeps.engine.store_kinds import OpenedStudy
from meanmode.sweeps.engine.study_variables import KINDS
from meanmode.sweeps.studies.hazards.hazard_runs import differences

FITTED = ("waiting_time", "waiting_time_low", "critical_rate_depth")
"""Studies that the early warning is fitted to: constant rates and ramps of 8, 16 and 32 blocks."""

EVERY = 5
"""Steps between rows."""

SAME, SETTINGS, SCHEDULES, BOTH, BROKEN = (
    "same setting, other seeds",
    "other settings",
    "other depths and schedules",
    "other settings at other depths",
    "premises broken",
)
GROUPS = (SAME, SETTINGS, SCHEDULES, BOTH)
"""Groups of runs for which the forecast should hold, from the nearest to the fitted runs to the farthest."""


def _schedule(run: RunConfig) -> tuple[str, int, int]:
    """What makes a schedule another one; the rate and the slope do not."""
    training = run.training
    return training.schedule, training.warmup * (training.schedule != "depth_ramp"), training.first_steps


def group_of(fitted: Sequence[RunConfig], run: RunConfig) -> str:
    """How far a run is from the fitted ones: `SAME`, `SETTINGS`, `SCHEDULES`, `BOTH` or `BROKEN`.

    Another setting differs from the fitted ones in more than depth and schedule. Its depth is another one if
    it lies outside of the fitted range; in the fitted setting, if no fitted run has it.

    Args:
        fitted: runs that the early warning was fitted to.
        run: a run.
    """
    if broken_premises(run):
        return BROKEN
    depths, depth = {of.model.depth for of in fitted}, run.model.depth
    if differences(fitted[0], run):
        return SETTINGS if min(depths) <= depth <= max(depths) else BOTH
    return SAME if depth in depths and _schedule(run) in set(map(_schedule, fitted)) else SCHEDULES


def warning_rows(source: OpenedStudy, *, every: int = 1) -> pd.DataFrame:
    """Rows of every `EVERY`-th step of the finished runs of a study, up to the onset or divergence [N].

    Columns: those of `FEATURES`; `ln_rate`, `ln_depth`, `ln_step`; `step`; `onset`, infinite without a
    collapse; `left`, steps to the onset; `known`, steps to the planned end of the run; `study`, `case` and
    `run`, which is the name of the study with the number of the cell.

    Args:
        source: a study that measured the functional step.
        every: interval at which the token cosine is looked at, as if telemetry had been sparser.
    """
    data, study = source.data, source.study
    deltas, cosines = (data[name].values.astype(float) for name in ("functional_step", "tcs_image"))
    parts = []
    for index in np.flatnonzero(data["status"].values == DONE):
        run, kind = study.cells[index].run, KINDS[int(data["onset_kind"].values[index])]
        step = np.arange(1, int(data["last_step"].values[index]) + 1)
        onset = float(data["onset_step"].values[index]) if kind != "none" else np.inf
        seen = np.where(step % every == 0, cosines[index, : len(step)], np.nan)
        features = warning_features(step, seen, deltas[index, : len(step)])
        kept = (step % EVERY == 0) & (step < onset) & np.isfinite(features).all(1)
        schedule = run.training.learning_rate(run.model.depth)
        rates = [schedule.rate(int(at)) for at in step[kept]]
        same = (np.log(run.model.depth), onset if kind == "mean_mode" else np.inf, run.training.steps, index)
        columns = (features[kept], np.log(rates), step[kept], np.tile(same, (kept.sum(), 1)))
        parts.append(np.column_stack(columns))
    names = (*FEATURES, "ln_rate", "step", "ln_depth", "onset", "steps", "cell")
    rows = pd.DataFrame(np.concatenate(parts), columns=names)
    cells = rows["cell"].astype(int)
    labels = np.array([case.label for case in study.cases])
    return rows.assign(
        ln_step=np.log(rows["step"]),
        left=rows["onset"] - rows["step"],
        known=rows.pop("steps") - rows["step"],
        run=f"{study.name} " + rows.pop("cell").astype(int).astype(str),
        case=labels[cells // study.seeds],
        study=study.name,
    )


def grouped_rows(
    sources: Sequence[OpenedStudy], fitted: Sequence[OpenedStudy], *, every: int = 1
) -> dict[str, pd.DataFrame]:
    """The rows of studies by the group of their runs, in the order of the groups; empty groups are left out.

    Args:
        sources: studies that the early warning was not fitted to.
        fitted: those that it was fitted to.
        every: as for `warning_rows`.
    """
    runs = [run for source in fitted for run in source.study.runs]
    parts: dict[str, list[pd.DataFrame]] = {name: [] for name in (*GROUPS, BROKEN)}
    for source in sources:
        labels = [case.label for case in source.study.cases]
        group = {label: group_of(runs, run) for label, run in zip(labels, source.study.runs, strict=True)}
        rows = warning_rows(source, every=every)
        for name, of in rows.groupby(rows["case"].map(group)):
            parts[str(name)].append(of)
    return {name: pd.concat(of, ignore_index=True) for name, of in parts.items() if of}
