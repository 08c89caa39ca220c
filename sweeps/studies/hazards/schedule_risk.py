"""How risky a schedule is before it is run: P(collapse by its end), and the largest peak rate at a risk."""

# N steps, K bootstrap samples

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meanmode.dit.config.run_config import RunConfig
from meanmode.sweeps.engine.store_kinds import OpenedStudy
from meanmode.sweeps.statistics.censoring import INTERVAL
from meanmode.sweeps.statistics.scores import share_interval
from meanmode.sweeps.studies.hazards.hazard_forecast import ENDS, case_forecast
from meanmode.sweeps.studies.hazards.hazard_runs import differences, schedule_rates, waiting_runs
from meanmode.sweeps.studies.rows import Row, finite
from meanmode.theory.onset.hazard import Hazard
from meanmode.theory.onset.hazard_likelihood import REFERENCE_RATE, START

Array = NDArray[np.float64]

MOST_STEPS = 20_000
"""Steps of the longest schedule that is judged: a hazard is fitted to runs of some hundred steps."""

POINTS = 13
"""Points of the curve of P(collapse) against the peak rate."""

CURVE = (0.01, 0.99)
"""P(collapse) at the ends of that curve."""

WIDEST = 10.0
"""Largest ratio of the rates at the ends of that curve."""

SHOWN = {
    "warmup": ("rate", "warmup"),
    "cosine": ("rate", "warmup"),
    "jump": ("rate",),
    "ramp": ("slope", "rate"),
    "depth_ramp": ("slope", "rate"),
}
"""Schedule -> the fields that describe it."""

SLOW = 100
"""Longest warm-up for which the risk of a schedule was found near the forecast."""

CAUTION = (
    f"a warm-up of more than {SLOW} steps protects a run, which the hazard does not know: in all four such "
    "cases that were measured fewer runs collapsed than forecast, in two of them none"
)
"""What is said of slow warm-ups (study `hazard_schedules`)."""

FIRST = ("first_rate", "first_steps")
"""Fields that describe the first steps, where these have a rate of their own."""


def risk_document(hazard: Hazard, setting: RunConfig, run: RunConfig, *, risk: float) -> dict[str, Any]:
    """How risky the schedule of a run is, as a hazard has it.

    `probability`: P(collapse by the last step), and `largest`: the largest peak rate at which it is at most
    `risk`, both with the error of the fit. `quantity` names the field that sets the peak: `rate`, or `slope`
    for a ramp without a limit. Another peak is the same schedule with all its rates multiplied by a factor.
    `median_step`, `run_low` and `run_high`: step by which half of the runs have collapsed, and the interval
    of a single run; None after the last step. `caution`: why the forecast is too high; None where it is not
    known to be. `curve`: as `risk_curve`.

    Args:
        hazard: a hazard.
        setting: a run of those that it was fitted to.
        run: the run whose schedule is judged, for as many steps as it has.
        risk: P(collapse by the last step) that is accepted.

    Raises:
        ValueError: a run of another setting, too many steps or so few that nobody is at risk, a risk that is
            not between 0 and 1, or a hazard without bootstrap samples.
    """
    _check(setting, run)
    depth, steps, schedule = run.model.depth, run.training.steps, run.training.schedule
    fields = (*SHOWN[schedule], *(FIRST if run.training.first_steps else ()))
    shape, unit = _shape(run)
    factor = hazard.factor(shape, depth, risk)
    if math.isinf(factor):
        raise ValueError(
            f"no rate makes a run of {steps} steps collapse with a probability of {risk:g}, since none is at "
            f"risk up to step {START} or at a rate of 0: set more steps"
        )
    found = case_forecast(hazard, run, seeds=1)
    largest = unit * np.array([factor, *_interval(hazard.factors(shape, depth, risk))])
    when = {"median_step": found.median, "run_low": found.run_low, "run_high": found.run_high}
    chances = (found.share, found.share_low, found.share_high)
    return finite(
        {
            "inputs": {
                **{"depth": depth, "schedule": schedule, "steps": steps, "risk": risk},
                **{name: getattr(run.training, name) for name in fields},
            },
            "interval": INTERVAL,
            **{f"probability{end}": of for end, of in zip(ENDS, chances, strict=True)},
            **{name: step if step <= steps else None for name, step in when.items()},
            "quantity": quantity_of(run),
            **{f"largest{end}": float(of) for end, of in zip(ENDS, largest, strict=True)},
            "caution": CAUTION if schedule in ("warmup", "cosine") and run.training.warmup > SLOW else None,
            "curve": risk_curve(hazard, run),
        }
    )


def risk_curve(hazard: Hazard, run: RunConfig, points: int = POINTS) -> list[Row]:
    """P(collapse by the last step) of a run against the peak of its schedule. One row per peak.

    `rate`, or `slope` for a ramp without a limit, runs from P = 0.01 to 0.99, over a factor of 10 at most;
    `probability` has the interval of the error of the fit.

    Args:
        hazard: a hazard.
        run: a run; the peak of its own schedule does not matter.
        points: number of peaks.
    """
    shape, unit = _shape(run)
    low, high = (hazard.factor(shape, run.model.depth, chance) for chance in CURVE)
    rows = []
    for factor in np.geomspace(low, min(high, WIDEST * low), points):
        chance = 1 - float(hazard.survival(factor * shape, run.model.depth)[-1])
        chances = (chance, *_interval(hazard.shares(factor * shape, run.model.depth)))
        named = {f"probability{end}": of for end, of in zip(ENDS, chances, strict=True)}
        rows.append({quantity_of(run): float(factor * unit), **named})
    return rows


def risk_rows(source: OpenedStudy) -> list[Row]:
    """Share of the runs of every case that collapsed by its last step, with a Wilson interval.

    Args:
        source: a study of training runs. Cases without a finished run are left out.
    """
    groups, rows = waiting_runs(source.study, source.data), []
    for case, run in zip(source.study.cases, source.study.runs, strict=True):
        collapsed = groups[case.label].collapsed
        if not len(collapsed):
            continue
        low, high = share_interval(int(collapsed.sum()), len(collapsed))
        fields = ("schedule", "rate", "warmup", "first_steps", "steps")
        rows.append(
            {
                **{"case": case.label, "depth": run.model.depth, "runs": len(collapsed)},
                **{name: getattr(run.training, name) for name in fields},
                **{"share": float(collapsed.mean()), "low": low, "high": high},
            }
        )
    return rows


def quantity_of(run: RunConfig) -> str:
    """The field that sets the peak of the schedule of a run: `rate`, or `slope` of a ramp without a limit."""
    return "slope" if run.training.rate is None else "rate"


def risk_lines(document: Mapping[str, Any]) -> list[str]:
    """The answers of a `risk_document` as lines of text, without its curve."""
    inputs, quantity = document["inputs"], document["quantity"]
    steps, share = inputs["steps"], f"{document['interval'] * 100:g} %"
    fields = [name for names in (*SHOWN.values(), FIRST) for name in names]
    given = {name: inputs[name] for name in fields if inputs.get(name) is not None}
    said = ", ".join(f"{name} {value:g}" for name, value in given.items())

    def between(name: str, form: str) -> str:
        low, high = (document[f"{name}{end}"] for end in ENDS[1:])
        return f"{share}: {low:{form}} to {high:{form}}"

    def step(name: str) -> str:
        return "after the end" if document[name] is None else f"{document[name]:.0f}"

    return [
        f"{inputs['depth']} blocks, schedule {inputs['schedule']} of {steps} steps, {said}",
        f"P(collapse by step {steps}): {document['probability']:.3g} ({between('probability', '.3g')})",
        f"step by which half of the runs have collapsed: {step('median_step')}; "
        f"{share} of the runs: {step('run_low')} to {step('run_high')}",
        f"largest {quantity} with P(collapse by step {steps}) <= {inputs['risk']:g}: "
        f"{document['largest']:.3g} ({between('largest', '.3g')})",
        *([f"caution: {document['caution']}"] if document["caution"] else []),
    ]


def _check(setting: RunConfig, run: RunConfig) -> None:
    """Refuse a run of which a hazard says nothing."""
    if names := differences(setting, run):
        fitted = ", ".join(f"{name}={setting.field(name)}" for name in names)
        raise ValueError(
            f"the hazard is silent on this run: it was fitted to runs with {fitted}; set these, or fit a "
            "hazard to runs of this setting"
        )
    if run.training.steps > MOST_STEPS:
        raise ValueError(
            f"a schedule is judged up to {MOST_STEPS} steps, got {run.training.steps}: set fewer steps"
        )


def _shape(run: RunConfig) -> tuple[Array, float]:
    """Rates of a run, scaled to a peak at the reference rate [N], and what its `quantity_of` then is."""
    rates = schedule_rates(run)
    scale = float(rates.max()) / REFERENCE_RATE
    if not scale:
        return rates, math.nan
    return rates / scale, getattr(run.training, quantity_of(run)) / scale


def _interval(values: Sequence[float] | Array) -> tuple[float, float]:
    """Ends of the interval of values of bootstrap samples."""
    low, high = np.quantile(values, [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2], method="inverted_cdf")
    return float(low), float(high)
