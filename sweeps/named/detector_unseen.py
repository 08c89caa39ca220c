"""Runs on which the detector is scored once, after its rules were frozen."""

from meanmode.sweeps.engine.study import Case, Study
from meanmode.sweeps.named.critical_rate import BASE, SLOPE
from meanmode.sweeps.named.waiting_time import FIXED, LOWER_THRESHOLD

HALF_RATES = {16: LOWER_THRESHOLD, 32: 0.00745}
"""Blocks -> rate at which about half of the runs of `waiting_time_low` collapsed."""


SHARES = {16: (0.5, 0.8, 1.0), 32: (0.5, 1.0)}
"""Blocks -> shares of the half rate at which runs are made: healthy, nearly all healthy, and half of them."""


def _constant() -> tuple[Case, ...]:
    """Runs at a constant rate."""
    return tuple(
        Case(label=f"{depth} blocks at {share:g} of the half rate", options={"depth": depth, "rate": rate})
        for depth, shares in SHARES.items()
        for share in shares
        for rate in (round(HALF_RATES[depth] * share, 6),)
    )


def _ramps() -> tuple[Case, ...]:
    """Ramps of the rate: at the usual slope they collapse by step 450, at half of it few do at all."""
    slopes = ((16, SLOPE / 2), (16, SLOPE), (32, SLOPE))
    return tuple(
        Case(
            label=f"{depth} blocks, ramp of slope {slope:g}",
            options={"depth": depth, "schedule": BASE.training.schedule, "slope": slope},
        )
        for depth, slope in slopes
    )


DETECTOR_UNSEEN = Study(
    name="detector_unseen",
    claim="false alarms and collapses found by the detector in runs that none of its rules were set on",
    base=FIXED,
    cases=_constant() + _ramps(),
    seeds=56,
    first_seed=3000,
    ensemble=28,
    signals_every=2,
    expectation="at most 1 false alarm per 10,000 logged rows and at least 95 % of collapses found in time, "
    "with all signals, every tenth row, and unknown names; from loss and gradient norm few are found",
)
