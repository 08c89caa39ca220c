"""The critical rate: the learning rate at which a ramp collapses, by slope and depth."""

from meanmode.dit.config.presets import PRESETS
from meanmode.sweeps.engine.study import Case, Study

SLOPE = 5e-5
"""Learning rate gained per step at 16 blocks."""


BASE = PRESETS["digits-16l"]
"""The run that the cases of studies vary."""


SEEDS = 8
"""Seeds per case, unless a study says otherwise."""


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


ENTRY = {"first_steps": 150, "steps": 500}
"""The ramp is entered at step 150; until then the rate is a sixth of the rate of the ramp there."""


CRITICAL_RATE_ENTRY = Study(
    name="critical_rate_entry",
    claim="critical rate of 400 blocks whose first 150 steps have a low rate: does an early barrier vanish",
    base=BASE,
    cases=(
        Case(label="16 blocks, entered late", options={"depth": 16, "first_rate": 1.25e-3, **ENTRY}),
        Case(label="400 blocks, entered late", options={"depth": 400, "first_rate": 2.5e-4, **ENTRY}),
    ),
    seeds=4,
    first_seed=10,
    ensemble=4,
    laws=("O2",),
)
