"""Do late collapses come on long schedules, as the hazard says, and what do decay, restarts and averages do?

The hazard (law O3) was fitted to runs of at most 600 steps at constant rates; what it says of these schedules
is the forecast of each study, written before its runs.
"""

from meanmode.sweeps.engine.study import Case, Study
from meanmode.sweeps.named.critical_rate import BASE, SEEDS
from meanmode.sweeps.named.event_jumps import NARROW
from meanmode.sweeps.named.waiting_time import WARMUP

HALF_RATE = 0.0116
"""Measured half rate of 16 blocks within 600 steps (`waiting_time_low`)."""

HORIZON = 600
"""Steps within which the half rate was measured."""

LONG = 10 * HORIZON

CONSTANT = BASE.with_fields({"schedule": "warmup", "rate": HALF_RATE, "warmup": WARMUP, "steps": HORIZON})


def _share(share: float) -> float:
    return round(share * HALF_RATE, 6)


LONG_HORIZONS = Study(
    name="long_horizons",
    claim="share of runs that collapses in 6000 steps, at 0.5 to 0.8 of the half rate and with decay",
    base=CONSTANT.with_fields({"steps": LONG}),
    cases=(
        *(
            Case(label=f"constant, {share:g} half rates", options={"rate": _share(share)})
            for share in (0.5, 0.65, 0.8)
        ),
        *(
            Case(
                label=f"cosine decay from {share:g} half rates",
                options={"schedule": "cosine", "rate": _share(share)},
            )
            for share in (0.8, 1.0)
        ),
    ),
    seeds=2 * SEEDS,
    first_seed=5200,
    ensemble=2 * SEEDS,
    laws=("O3",),
    functional_every=0,
    expectation="the share that collapses within 6000 steps lies in the 90 % interval of 16 runs around "
    "the forecast of the hazard in at least 4 of 5 cases, and at 0.8 half rates at least two "
    "runs collapse after step 1000; where it fails, fewer collapse than forecast",
)


def _restart(share: float) -> tuple[Case, Case]:
    rate = _share(share)
    cold = {"rate": rate, "steps": WARMUP + HORIZON}
    decayed = {"schedule": "jump", "first_rate": round(rate / 10, 7), "first_steps": 1500}
    return (
        Case(label=f"from fresh weights, {share:g} half rates", options=cold),
        Case(
            label=f"restart after 1500 steps at a tenth, {share:g} half rates",
            options={**decayed, "rate": rate, "steps": 1500 + HORIZON},
        ),
    )


RESTARTS = Study(
    name="restarts",
    claim="which share of runs collapses within 600 steps of a restart of the rate, beside fresh weights",
    base=CONSTANT,
    cases=(*_restart(1.0), *_restart(1.25)),
    seeds=2 * SEEDS,
    first_seed=5220,
    ensemble=2 * SEEDS,
    laws=("O3",),
    functional_every=0,
    expectation="fewer runs collapse after a restart than from fresh weights at both rates, and fewer "
    "than the hazard says: a slow warm-up protected as well",
)


SECOND_MOMENTS = Study(
    name="second_moments",
    claim="half rate within 600 steps with beta2 of 0.999 and 0.95",
    base=CONSTANT,
    cases=tuple(
        Case(
            label=f"beta2 {beta2:g}, rate {rate:g}",
            options={"betas": (0.9, beta2), "rate": rate},
        )
        for beta2 in (0.999, 0.95)
        for rate in (_share(0.8), HALF_RATE, _share(1.25), _share(1.5625))
    ),
    seeds=2 * SEEDS,
    first_seed=5240,
    ensemble=2 * SEEDS,
    functional_every=0,
    expectation="with beta2 of 0.95 the half rate is 1.05 to 1.5 times that with 0.999: in ramps a "
    "smaller beta2 collapsed later",
)


WEIGHT_AVERAGES = Study(
    name="weight_averages",
    claim="loss and TCS of moving averages of the weights across a collapse from a healthy state",
    base=BASE.with_fields({**NARROW, "steps": 280, "stop_on": "collapse", "ema": 0.99}),
    cases=tuple(Case(label=f"decay {decay:g}", options={"ema": decay}) for decay in (0.9, 0.99, 0.998)),
    seeds=6,
    first_seed=5260,
    ensemble=6,
    functional_every=1,
    expectation="every run collapses; at the onset the average with decay 0.9 is homogeneous or becomes "
    "so within 20 steps in at least 5 of 6 runs, the one with 0.99 stays below a deep TCS of "
    "0.9 to the end in at least 5 of 6, with a loss below 1.3 times that before the jump, and "
    "so does the one with 0.998",
)
