"""The waiting time to a collapse at a fixed learning rate: a distribution, with runs that never collapse."""

from sweeps.critical_rate import BASE
from sweeps.study import Case, Study

THRESHOLD = 0.0165
"""Forecast rate at which about half of the runs of 16 blocks collapse within 600 steps: ramps that took 1230
steps collapsed at 0.0154, such as took 376 at 0.0191 (critical_rate_slopes, medians of 8 seeds)."""

SHARES = (0.75, 0.87, 1.0, 1.13, 1.25)
"""Of the forecast threshold."""

WARMUP, STEPS = 20, 600


def _around(threshold: float, *, name: str, which: str, suffix: str, first_seed: int) -> Study:
    """Runs of three depths at `SHARES` of a threshold, which goes with depth^(-1/2)."""
    return Study(
        name=name,
        claim=f"when runs of 8, 16 and 32 blocks collapse at a rate within a quarter of the {which} "
        "threshold",
        base=BASE.with_fields({"schedule": "warmup", "rate": THRESHOLD, "warmup": WARMUP, "steps": STEPS}),
        cases=tuple(
            Case(
                label=f"{depth} blocks at {share:g}{suffix}",
                options={"depth": depth, "rate": round(threshold * share * (16 / depth) ** 0.5, 6)},
            )
            for depth in (8, 16, 32)
            for share in SHARES
        ),
        seeds=28,
        first_seed=first_seed,
        ensemble=14,
        functional_every=5,
        signals_every=2,
    )


WAITING_TIME = _around(THRESHOLD, name="waiting_time", which="forecast", suffix="", first_seed=1000)

LOWER_THRESHOLD = 0.0117
"""Rate at which 16 blocks reach Delta_c in their first 100 steps, by law O2 as fitted on the ramps of
critical_rate_depth: the gain of a sub-layer is 1.6 times larger there than where those collapse. Written
down before `THRESHOLD`, which turned out too high: 82 % of the runs at 0.75 of that collapse."""

WAITING_TIME_LOW = _around(
    LOWER_THRESHOLD, name="waiting_time_low", which="lower", suffix=" of 0.0117", first_seed=1100
)
