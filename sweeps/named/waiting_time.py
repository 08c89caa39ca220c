"""The waiting time to a collapse at a fixed learning rate: a distribution, with runs that never collapse."""

import dataclasses
from collections.abc import Sequence

from meanmode.sweeps.engine.study import Case, Study
from meanmode.sweeps.named.critical_rate import BASE, SEEDS

THRESHOLD = 0.0165
"""Forecast rate at which about half of the runs of 16 blocks collapse within 600 steps: ramps that took 1230
steps collapsed at 0.0154, such as took 376 at 0.0191 (critical_rate_slopes, medians of 8 seeds)."""


SHARES = (0.75, 0.87, 1.0, 1.13, 1.25)
"""Of the forecast threshold."""


WARMUP, STEPS = 20, 600


FIXED = BASE.with_fields({"schedule": "warmup", "rate": THRESHOLD, "warmup": WARMUP, "steps": STEPS})


def _cases(depths: Sequence[int], shares: Sequence[float], threshold: float, suffix: str) -> tuple[Case, ...]:
    """Depths at shares of a threshold at 16 blocks, which goes with depth^(-1/2)."""
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
    seeds=28,
    first_seed=1000,
    ensemble=14,
    signals_every=2,
)


LOWER_THRESHOLD = 0.0117
"""Rate at which 16 blocks reach Delta_c in their first 100 steps, by law O2 as fitted on the ramps of
critical_rate_depth: the gain of a sub-layer is 1.6 times larger there than where those collapse. Written
down before `THRESHOLD`, which turned out too high: 82 % of the runs at 0.75 of that collapse."""


WAITING_TIME_LOW = Study(
    name="waiting_time_low",
    claim="when runs of 8, 16 and 32 blocks collapse at a rate within a quarter of the lower threshold",
    base=FIXED,
    cases=_cases((8, 16, 32), SHARES, LOWER_THRESHOLD, " of 0.0117"),
    seeds=28,
    first_seed=1100,
    ensemble=14,
    signals_every=2,
)


WAITING_TIME_DEEP = Study(
    name="waiting_time_deep",
    claim="rates at which half of the runs of 64 and 128 blocks collapse, forecast from 8 to 32 blocks",
    base=FIXED,
    cases=_cases((64, 128), (0.55, 0.7, 0.85, 1.0), LOWER_THRESHOLD, " of 0.0117"),
    seeds=SEEDS,
    first_seed=1200,
    laws=("O2",),
)


WAITING_TIME_400 = Study(
    name="waiting_time_400",
    claim="whether 400 blocks collapse at two rates between law O2's half rate and that of shallow networks",
    base=FIXED,
    cases=_cases((400,), (0.55, 0.7), LOWER_THRESHOLD, " of 0.0117"),
    seeds=SEEDS,
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
    first_seed=1600,
)


WAITING_TIME_BETWEEN = Study(
    name="waiting_time_between",
    claim="whether law O2's half rates foretell depths never run at a constant rate: 12, 24, 48 blocks",
    base=FIXED,
    cases=_cases((12, 24, 48), SHARES, LOWER_THRESHOLD, " of 0.0117"),
    seeds=14,
    first_seed=1500,
    ensemble=14,
    laws=("O2",),
)


PREDICTED = (WAITING_TIME_BETWEEN.name,)
"""Studies all of whose runs are predicted, by models fitted on the others."""


THRESHOLDS = {
    WAITING_TIME.name: THRESHOLD,
    WAITING_TIME_LOW.name: LOWER_THRESHOLD,
    WAITING_TIME_DEEP.name: LOWER_THRESHOLD,
    WAITING_TIME_400.name: LOWER_THRESHOLD,
    WAITING_TIME_400_LOW.name: LOWER_THRESHOLD,
    WAITING_TIME_1000.name: LOWER_THRESHOLD,
    WAITING_TIME_BETWEEN.name: LOWER_THRESHOLD,
}
"""Study -> the rate at 16 blocks that its forecast is in shares of; it goes with depth^(-1/2)."""


def share_of(study: str, rate: float, depth: int) -> float:
    """A rate as a share of its study's threshold."""
    return round(rate / (THRESHOLDS[study] * (16 / depth) ** 0.5), 2)
