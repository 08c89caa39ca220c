"""Rows of studies of training runs: predicted and measured critical rates, and effects on a baseline."""

# R runs

import math
from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.stats import norm

from meanmode.sim.store.sweep_store import DIVERGED, DONE, TODO
from meanmode.sweeps.engine.study import Study, stored_study
from meanmode.sweeps.engine.study_variables import KINDS
from meanmode.sweeps.statistics.censoring import INTERVAL, Estimate, Samples, estimated, estimated_ratio
from meanmode.sweeps.statistics.power_law import PowerLaw
from meanmode.sweeps.studies.rows import Row, finite

BASELINES = ("plain", "nothing")
"""Labels of cases that others are compared with, if they come first in the study or in their rung."""


LOSS_STEPS = 15
"""The loss of a run is the median over this many steps."""


LOSS_SHARE = 0.6
"""The loss is taken before this share of the baseline's median onset step."""


RAMPS = ("ramp", "depth_ramp")
"""Schedules whose learning rate grows until the end."""


def study_onsets(data: xr.Dataset) -> list[Row]:
    """Coordinates, onset step, kind and critical rate of every finished run; None where there is none."""
    study = stored_study(data.attrs)
    rows = []
    for index in np.flatnonzero(data["status"].values == DONE):
        step = float(data["onset_step"].values[index])
        rows.append(
            {
                **_coordinates(study, data, index),
                "run_seed": study.cells[index].seed,
                "onset_step": None if math.isnan(step) else int(step),
                "onset_kind": KINDS[int(data["onset_kind"].values[index])],
                "critical_rate": float(data["critical_rate"].values[index]),
            }
        )
    return [finite(row) for row in rows]


def study_rows(data: xr.Dataset) -> list[Row]:
    """One row per case: predicted and measured critical rate, over the runs that finished.

    The statistic is the median over runs; a run without a collapse counts as above its last rate. Where these
    leave the median open, `measured` is None and `measured_at_least` is a lower bound. `measured_low` and
    `measured_high` (90 %) and `measured_sem` come from a bootstrap over runs. `z` is in units of
    `measured_sem`. `covered`: the forecast interval, which is one of the median of as many runs, contains the
    measured median. Every rival forecast has its `error_`, also relative to `measured`. Runs at a constant
    rate have no critical rate: their quantity is `onset_step`, censored at the last step.

    Args:
        data: a study of labelled runs, opened.
    """
    study = stored_study(data.attrs)
    forecasts = [
        name for name in map(str, data.data_vars) if name.startswith("predicted") and data[name].ndim == 1
    ]
    rows = []
    for case, run in enumerate(study.runs):
        members = _members(study, case)
        finished = _finished(data, members)
        forecast = {name: float(data[name].values[members[0]]) for name in forecasts}
        quantity = "critical_rate" if run.training.schedule in RAMPS else "onset_step"
        kinds, status = data["onset_kind"].values[finished], data["status"].values[members]
        row = {
            **_coordinates(study, data, members[0]),
            "quantity": quantity,
            **_compared(forecast, estimated(_samples(study, data, finished, quantity))),
            "n": len(finished),
            "n_collapsed": int((kinds == KINDS.index("mean_mode")).sum()),
            "n_diverged": int((kinds == KINDS.index("plain_divergence")).sum())
            + int((status == DIVERGED).sum()),
            "n_to_do": int((status == TODO).sum()),
        }
        rows.append(finite(row))
    return rows


def effects(data: xr.Dataset) -> list[Row]:
    """Effect of every case on the critical rate and the loss, relative to the first case of its rung.

    A rung is the cases whose labels share the text before a colon, or the whole study; a rung whose first
    case is not one of `BASELINES` is skipped. Runs with the same seed share weights and data: statistics are
    over the seeds that finished on both sides, and both sides are resampled alike.

    `critical_rate_ratio`: the median divided by the baseline's; where runs without a collapse leave it open,
    `measured` is None and `measured_at_least` a lower bound. `loss`: median over runs of the median loss in
    the `LOSS_STEPS` steps before step `at_step`, which is the same for a whole rung: 0.6 of the baseline's
    median onset step, rounded to 10. `difference` is the median difference of pairs. A run that ended earlier
    counts as worse than any other; where half of the runs did, the number is None.

    Args:
        data: a study of labelled runs, opened.
    """
    study = stored_study(data.attrs)
    rungs: dict[str, list[int]] = {}
    for case, of in enumerate(study.cases):
        rungs.setdefault(of.label.rpartition(": ")[0], []).append(case)
    rows: list[Row] = []
    for baseline, *others in rungs.values():
        if study.cases[baseline].label.rpartition(": ")[2] in BASELINES:
            rows += _effects(study, data, baseline, others)
    return rows


def effects_on(data: xr.Dataset, baseline: str) -> list[Row]:
    """As `effects`, of all other cases on the one with a label.

    Raises:
        ValueError: no case has that label.
    """
    study = stored_study(data.attrs)
    labels = [case.label for case in study.cases]
    if baseline not in labels:
        raise ValueError(f"{study.name} has no case {baseline!r}: choose one of {', '.join(labels)}")
    first = labels.index(baseline)
    return _effects(study, data, first, [case for case in range(len(labels)) if case != first])


def _effects(study: Study, data: xr.Dataset, baseline: int, others: Sequence[int]) -> list[Row]:
    reference = _finished(data, _members(study, baseline))
    onset = estimated(_samples(study, data, reference, "onset_step")).value
    step = 10 * round(LOSS_SHARE * onset / 10) if math.isfinite(onset) else 0
    pairs = [_effect(study, data, case, baseline, step) for case in others]
    return [finite(row) for pair in pairs for row in pair if row]


def _effect(study: Study, data: xr.Dataset, case: int, baseline: int, step: int) -> tuple[Row, Row]:
    """The rows of the critical rate and of the loss; the latter is empty without a step to take it at."""
    pairs = np.stack([_members(study, case), _members(study, baseline)])
    own, other = pairs[:, (data["status"].values[pairs] == DONE).all(0)]
    head: Row = {
        **_coordinates(study, data, int(pairs[0, 0])),
        "baseline": study.cases[baseline].label,
        **dict.fromkeys(("predicted", "predicted_std", "z", "relative_error")),
        "n": len(own),
    }
    rates = [_samples(study, data, members, "critical_rate") for members in (own, other)]
    ratio = {**head, "quantity": "critical_rate_ratio", **_measured(estimated_ratio(*rates))}
    if not step:
        return ratio, {}
    loss, reference = (_losses(data, members, step) for members in (own, other))
    paired = np.isfinite(reference)
    difference = estimated(_known(loss[paired] - reference[paired]))
    return ratio, {
        **head,
        "quantity": "loss",
        "at_step": step,
        **_measured(estimated(_known(loss))),
        "baseline_loss": estimated(_known(reference)).value,
        "difference": difference.value,
        "difference_low": difference.low,
        "difference_high": difference.high,
    }


def _losses(data: xr.Dataset, members: NDArray[np.int64], step: int) -> NDArray[np.float64]:
    """Loss of every run before a step [R]; infinite for a run that ended earlier."""
    losses = data["loss"].values[members, max(step - 1 - LOSS_STEPS, 0) : step - 1].astype(float)
    return np.where(np.isfinite(losses).all(1), np.median(losses, axis=1), np.inf)


def _known(values: NDArray[np.float64]) -> Samples:
    return Samples(low=values, high=values)


def _members(study: Study, case: int) -> NDArray[np.int64]:
    return np.arange(case * study.seeds, (case + 1) * study.seeds)


def _finished(data: xr.Dataset, members: NDArray[np.int64]) -> NDArray[np.int64]:
    return members[data["status"].values[members] == DONE]


def _samples(study: Study, data: xr.Dataset, members: NDArray[np.int64], quantity: str) -> Samples:
    """Critical rates of runs, or onset steps of their collapses; censored for the others."""
    values = data[quantity].values[members].astype(float)
    collapsed = data["onset_kind"].values[members] == KINDS.index("mean_mode")
    ends = data["last_step"].values[members].astype(float)
    if quantity == "critical_rate":
        # some stores have no last rate of a run that diverged: its last step has no update
        known = data["last_rate"].values[members]
        ends = np.where(
            np.isnan(known), [_rate(study, *at) for at in zip(members, ends - 1, strict=True)], known
        )
    return Samples.of(np.where(collapsed, values, np.nan), ends)


def _rate(study: Study, cell: int, step: float) -> float:
    """Learning rate of a run at a step."""
    run = study.cells[cell].run
    return run.training.learning_rate(run.model.depth).rate(int(step))


def _coordinates(study: Study, data: xr.Dataset, index: int) -> Row:
    """The label of a run's case and the fields in which cases differ."""
    return {name: data[name].values[index : index + 1].tolist()[0] for name in ("case", *study.varied)}


def _measured(found: Estimate) -> Row:
    return {
        "measured": found.value,
        "measured_at_least": None if math.isfinite(found.value) else found.at_least,
        "measured_low": found.low,
        "measured_high": found.high,
        "measured_sem": found.error,
    }


def _compared(forecast: dict[str, float], found: Estimate) -> Row:
    middle, low, high = (forecast.get(f"predicted{end}", math.nan) for end in ("", "_low", "_high"))
    inside = low <= found.value <= high
    unknown = not math.isfinite(high - low) or not (math.isfinite(found.value) or found.at_least > high)
    row = {
        "predicted": middle,
        "predicted_std": (high - low) / 2 / float(norm.ppf((1 + INTERVAL) / 2)),
        "predicted_low": low,
        "predicted_high": high,
        **_measured(found),
        "z": (found.value - middle) / found.error if found.error > 0 else math.nan,
        "relative_error": (middle - found.value) / found.value,
        "covered": None if unknown else inside,
    }
    for name in _rivals(sorted(forecast)):
        row[name] = forecast[name]
        row[f"error_{name.removeprefix('predicted_')}"] = (forecast[name] - found.value) / found.value
    return row


def _rivals(names: Sequence[str]) -> list[str]:
    """Forecasts beside the first one, without the ends of intervals."""
    return [name for name in names if name.startswith("predicted_") and not name.endswith(("_low", "_high"))]


def exponent_over_runs(data: xr.Dataset, axis: str) -> PowerLaw | None:
    """The power law of the critical rates of collapsed runs in an axis; None for runs at a single value.

    Args:
        data: cells of a study.
        axis: `depth` or `slope`.
    """
    known = data["critical_rate"].notnull().values
    x, rates = (data[name].values[known].astype(float) for name in (axis, "critical_rate"))
    return PowerLaw.fit(x, rates) if len(x) > 2 and len(set(x.tolist())) > 1 else None


def forecast_errors(rows: Sequence[Row], within: float) -> dict[str, Row]:
    """Forecast -> median |relative error| over the cases with a measured median, and how many are `within`.

    Args:
        rows: of `study_rows`.
        within: |relative error| that counts as close.
    """
    found = {}
    for name in ("predicted", *_rivals(list(rows[0]))):
        error = "relative_error" if name == "predicted" else f"error_{name.removeprefix('predicted_')}"
        sizes = [abs(row[error]) for row in rows if row.get(error) is not None]
        if sizes:
            close = sum(size <= within for size in sizes)
            found[name] = {"median": float(np.median(sizes)), "within": close, "n": len(sizes)}
    return found
