"""The waiting time to a collapse at a fixed learning rate: a distribution, with runs that never collapse."""

import dataclasses
from collections.abc import Sequence

from meanmode.sweeps.engine.study import Case, Study
from meanmode.sweeps.named.critical_rate import BASE, SEEDS

THRESHOLD = 0.0165
"""Rate at which about half of the runs of 16 blocks were forecast to collapse within 600 steps: ramps that
took 1230 steps collapsed at 0.0154, those that took 376 steps at 0.0191 (critical_rate_slopes, medians of 8
seeds)."""


SHARES = (0.75, 0.87, 1.0, 1.13, 1.25)
"""Shares of a threshold at which runs are made."""


WARMUP, STEPS = 20, 600


FIXED = BASE.with_fields({"schedule": "warmup", "rate": THRESHOLD, "warmup": WARMUP, "steps": STEPS})


def _cases(depths: Sequence[int], shares: Sequence[float], threshold: float, suffix: str) -> tuple[Case, ...]:
    """Depths at shares of a threshold, which is given at 16 blocks and scales with depth^(-1/2)."""
    return tuple(
        Case(
            label=f"{depth} blocks at {share:g}{suffix}",
            options={"depth": depth, "rate": round(threshold * share * (16 / depth) ** 0.5, 6)},
        )
        for depth in depths
        for share in shares
    )


WAITING_TIME = Study(
    name="waiting_time",
    claim="when runs of 8, 16 and 32 blocks collapse at a rate within a quarter of the forecast threshold",
    base=FIXED,
    cases=_cases((8, 16, 32), SHARES, THRESHOLD, ""),
    reference_rate=THRESHOLD,
    seeds=28,
    held_out_seeds=14,
    first_seed=1000,
    ensemble=14,
    signals_every=2,
)


LOWER_THRESHOLD = 0.0117
"""Rate at which 16 blocks reach Delta_c in their first 100 steps, by law O2 as fitted on the ramps of
critical_rate_depth: the gain of a sub-layer is 1.6 times larger in those steps than where the ramps collapse.
Written down before `THRESHOLD`, which turned out too high: 82 % of the runs at 0.75 of that collapse."""


WAITING_TIME_LOW = Study(
    name="waiting_time_low",
    claim="when runs of 8, 16 and 32 blocks collapse at a rate within a quarter of the lower threshold",
    base=FIXED,
    cases=_cases((8, 16, 32), SHARES, LOWER_THRESHOLD, " of 0.0117"),
    reference_rate=LOWER_THRESHOLD,
    seeds=28,
    held_out_seeds=14,
    first_seed=1100,
    ensemble=14,
    signals_every=2,
)


WAITING_TIME_DEEP = Study(
    name="waiting_time_deep",
    claim="rates at which half of the runs of 64 and 128 blocks collapse, forecast from 8 to 32 blocks",
    base=FIXED,
    cases=_cases((64, 128), (0.55, 0.7, 0.85, 1.0), LOWER_THRESHOLD, " of 0.0117"),
    reference_rate=LOWER_THRESHOLD,
    seeds=SEEDS,
    held_out_seeds=SEEDS // 2,
    first_seed=1200,
    laws=("O2",),
)


WAITING_TIME_400 = Study(
    name="waiting_time_400",
    claim="whether 400 blocks collapse at two rates between law O2's half rate and that of shallow networks",
    base=FIXED,
    cases=_cases((400,), (0.55, 0.7), LOWER_THRESHOLD, " of 0.0117"),
    reference_rate=LOWER_THRESHOLD,
    seeds=SEEDS,
    held_out_seeds=SEEDS // 2,
    first_seed=1300,
    laws=("O2",),
)


WAITING_TIME_400_LOW = dataclasses.replace(
    WAITING_TIME_400,
    name="waiting_time_400_low",
    claim="whether 400 blocks collapse at law O2's half rate, added when half did at the lower of two rates",
    cases=_cases((400,), (0.4,), LOWER_THRESHOLD, " of 0.0117"),
    first_seed=1400,
)


WAITING_TIME_1000 = dataclasses.replace(
    WAITING_TIME_400,
    name="waiting_time_1000",
    claim="whether 1000 blocks collapse at two rates between law O2's half rate and that of shallow networks",
    cases=_cases((1000,), (0.34, 0.47), LOWER_THRESHOLD, " of 0.0117"),
    seeds=4,
    held_out_seeds=2,
    first_seed=1600,
)


WAITING_TIME_BETWEEN = Study(
    name="waiting_time_between",
    claim="whether law O2's half rates foretell depths never run at a constant rate: 12, 24, 48 blocks",
    base=FIXED,
    cases=_cases((12, 24, 48), SHARES, LOWER_THRESHOLD, " of 0.0117"),
    reference_rate=LOWER_THRESHOLD,
    seeds=14,
    held_out_seeds=14,
    first_seed=1500,
    ensemble=14,
    laws=("O2",),
)


LAW = "critical_rate_deep.forecast.json"
"""Forecast whose law O2, fitted on ramps alone, is a predictor of the waiting time."""


LINE_EXPONENT = 0.62
"""Exponent of the depth in a predictor: that of the half rates of 8 to 32 blocks in the first two studies."""
