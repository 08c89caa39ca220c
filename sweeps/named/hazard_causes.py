"""Experiments on the hazard (law O3): history, the mean write, and states of a deep network."""

from meanmode.sweeps.engine.committor_study import Committor
from meanmode.sweeps.engine.study import Case, Study
from meanmode.sweeps.named.critical_rate import BASE, SEEDS
from meanmode.sweeps.named.waiting_time import WARMUP

RATE = 0.0141
"""Rate at 16 blocks at which most cold runs collapse within 600 steps; it scales with depth^(-1/2)."""


PREPARED, SHARE = 100, 0.7
"""Steps that prepared runs make at a share of the rate, before they jump to it."""


STEPS = 600
"""Steps after the rate is reached."""


def _histories(depth: int) -> tuple[Case, ...]:
    rate = round(RATE * (16 / depth) ** 0.5, 6)
    cold = {"schedule": "warmup", "rate": rate, "warmup": WARMUP, "steps": WARMUP + STEPS}
    first = {"first_rate": round(SHARE * rate, 6), "first_steps": PREPARED}
    prepared = {"schedule": "jump", "rate": rate, **first, "steps": PREPARED + STEPS}
    return tuple(
        Case(label=f"{depth} blocks, {label}", options={"depth": depth, **options})
        for label, options in (("cold", cold), ("prepared", prepared))
    )


HAZARD_HISTORY = Study(
    name="hazard_history",
    claim="whether 100 steps at 0.7 of a rate protect from a collapse at that rate",
    base=BASE.with_fields({"schedule": "warmup", "rate": RATE, "warmup": WARMUP, "steps": WARMUP + STEPS}),
    cases=(*_histories(16), *_histories(64)),
    seeds=3 * SEEDS,
    first_seed=5100,
    ensemble=12,
    laws=("O3",),
    expectation="fewer prepared runs collapse within 100 steps at the rate than the hazard says; the share "
    "at the end is that of the forecast",
)


MEANS = (1.0, 0.9, 0.8, 0.65, 0.5)
"""Shares of the mean of every branch that are kept."""


MEAN_RATE = 0.0166
"""Rate at 16 blocks at which nearly all runs with the whole mean collapse within 600 steps."""


HAZARD_MEAN_WRITE = Study(
    name="hazard_mean_write",
    claim="how the hazard depends on the mean that the branches write, from all of it down to half",
    base=BASE.with_fields({"schedule": "warmup", "rate": MEAN_RATE, "warmup": WARMUP, "steps": STEPS}),
    cases=tuple(
        Case(
            label=f"{share:.0%} of the mean",
            options={"interventions": ((1, f"scale={share:g}:mean:branch"),) if share < 1 else ()},
        )
        for share in MEANS
    ),
    seeds=2 * SEEDS,
    first_seed=5130,
    laws=("O3",),
    expectation="the hazard falls with the mean that is kept, to less than a tenth at one half",
)


COMMITTOR_400 = Committor(
    name="committor_400",
    claim="which share of the forks of a state of 400 blocks collapses, ranked by TCS and functional step",
    base=BASE.with_fields(
        {"schedule": "warmup", "rate": 0.001287, "warmup": WARMUP, "steps": 400, "depth": 400}
    ),
    parents=(5900, 5901),
    offsets=(80, 40, 20, 10, 5),
    forks=8,
    horizon=40,
    laws=("O3",),
)
