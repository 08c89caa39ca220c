"""New runs for the hazard (law O3): ramps of other depths and slopes, schedules, and settings."""

from meanmode.sweeps.engine.study import Case, Study
from meanmode.sweeps.named.critical_rate import BASE, SEEDS, SLOPE

RULES = (
    "median |error| of the median critical rates at most 10 %, at most 20 % up to 400 blocks and 35 % at "
    "1000; at least 85 % of the medians and 85 to 95 % of the runs (75 % from 64 blocks on) in their 90 % "
    "interval; log score above that of law O2 by more than its interval"
)
"""What the hazard is asked to reach on these runs, written down before them."""


HAZARD_DEEP = Study(
    name="hazard_deep",
    claim="critical rate of 96 to 1000 blocks under ramps, forecast by a hazard of 8 to 32 blocks",
    base=BASE,
    cases=tuple(
        Case(label=f"{depth} blocks", options={"depth": depth, "steps": 600 if depth < 100 else 500})
        for depth in (96, 250, 400, 700, 1000)
    ),
    seeds=SEEDS,
    first_seed=5000,
    laws=("O3",),
    expectation=RULES,
)


HAZARD_200 = Study(
    name="hazard_200",
    claim="critical rate of 200 blocks with 16 seeds, where earlier runs outlasted their forecast",
    base=BASE,
    cases=(Case(label="200 blocks", options={"depth": 200, "steps": 500}),),
    seeds=2 * SEEDS,
    first_seed=5020,
    laws=("O3",),
    expectation=RULES,
)


HAZARD_SLOPES = Study(
    name="hazard_slopes",
    claim="critical rate of 16 and 64 blocks at three slopes, forecast by a hazard of constant rates",
    base=BASE,
    cases=tuple(
        Case(
            label=f"{depth} blocks, slope {factor * SLOPE:g}",
            options={"depth": depth, "slope": factor * SLOPE, "steps": steps},
        )
        for depth in (16, 64)
        for factor, steps in ((0.5, 1400), (2, 500), (8, 200))
    ),
    seeds=2 * SEEDS,
    first_seed=5040,
    laws=("O1", "O3"),
    expectation=f"{RULES}; the exponent of the slope within 0.02 of the measured one",
)


RATE = 0.0125
"""Peak rate of the schedules at 16 blocks; at other depths it scales with depth^(-1/2)."""


def _schedule(depth: int, label: str, **options: object) -> Case:
    rate = round(RATE * (16 / depth) ** 0.5, 6)
    return Case(label=f"{depth} blocks, {label}", options={"depth": depth, "rate": rate, **options})


HAZARD_SCHEDULES = Study(
    name="hazard_schedules",
    claim="when runs collapse under warm-ups of 50, 300 and 1000 steps, and under a cosine decay",
    base=BASE.with_fields({"schedule": "warmup", "rate": RATE, "warmup": 50, "steps": 600}),
    cases=tuple(
        case
        for depth in (16, 64)
        for case in (
            _schedule(depth, "warm-up of 50 steps", warmup=50, steps=600),
            _schedule(depth, "warm-up of 300 steps", warmup=300, steps=900),
            _schedule(depth, "warm-up of 1000 steps", warmup=1000, steps=1600),
            _schedule(depth, "cosine decay", schedule="cosine", warmup=100, steps=800),
        )
    ),
    seeds=2 * SEEDS,
    first_seed=5060,
    laws=("O3",),
    expectation="the share that collapses by the last step lies within the 90 % interval of 16 runs in at "
    "least 7 of 8 cases; 85 to 95 % of the runs in their 90 % interval",
)


HAZARD_SETTINGS = Study(
    name="hazard_settings",
    claim="critical rate of batch 6, 8, 12 and width 24, 48, each forecast from its steps 100 to 149",
    base=BASE,
    cases=tuple(
        Case(label=label, options={**options, "steps": 800})
        for label, options in (
            ("batch 6", {"batch": 6}),
            ("batch 8", {"batch": 8}),
            ("batch 12", {"batch": 12}),
            ("width 24", {"width": 24, "heads": 1, "text_width": 24}),
            ("width 48", {"width": 48, "heads": 3, "text_width": 48}),
        )
    ),
    seeds=SEEDS,
    first_seed=5080,
    laws=("O2",),
    expectation="the critical rate forecast at step 150, by the constant of ramps of 8 to 32 blocks, lies "
    "within 20 % of the measured median in all five settings",
)
