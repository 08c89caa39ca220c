"""The critical rate: at which learning rate a ramp collapses, against its slope, the depth and the rest."""

from dit.config import PRESETS
from sweeps.study import Case, Study

SLOPE = 5e-5
"""Learning rate gained a step at 16 blocks."""

BASE = PRESETS["digits-16l"]

SEEDS = 8

CRITICAL_RATE_SLOPES = Study(
    name="critical_rate_slopes",
    claim="critical rate of 16 blocks against the slope of the ramp: which rival has its exponent",
    base=BASE.with_fields({"schedule": "ramp"}),
    cases=tuple(
        Case(label=f"slope {slope:g}", options={"slope": slope, "steps": steps})
        for slope, steps in ((SLOPE / 4, 2400), (SLOPE, 800), (4 * SLOPE, 300))
    ),
    seeds=SEEDS,
    laws=("O1",),
)

CRITICAL_RATE_DEPTH = Study(
    name="critical_rate_depth",
    claim="critical rate of 8 to 32 blocks under ramps of slope L^(-1/2): what a law is fitted on",
    base=BASE,
    cases=tuple(
        Case(label=f"{depth} blocks", options={"depth": depth, "steps": 800}) for depth in (8, 16, 32)
    ),
    seeds=3 * SEEDS,
    first_seed=10,
    laws=("O1", "O2"),
)

CRITICAL_RATE_DEEP = Study(
    name="critical_rate_deep",
    claim="critical rate of 64 to 1000 blocks under ramps of slope L^(-1/2), forecast from 8 to 32 blocks",
    base=BASE,
    cases=tuple(
        Case(label=f"{depth} blocks", options={"depth": depth, "steps": 500})
        for depth in (64, 128, 400, 1000)
    ),
    seeds=SEEDS,
    first_seed=10,
    laws=("O1", "O2"),
)
