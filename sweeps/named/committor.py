"""The committor study: forks of runs around their collapse."""

from meanmode.sweeps.engine.committor_study import Committor
from meanmode.sweeps.named.critical_rate import BASE
from meanmode.sweeps.named.waiting_time import THRESHOLD, WARMUP

COMMITTOR = Committor(
    name="committor",
    claim="which share of the forks of a state collapses within 150 steps, and which observable tells it",
    base=BASE.with_fields({"schedule": "warmup", "rate": THRESHOLD, "warmup": WARMUP, "steps": 600}),
    parents=tuple(range(2000, 2008)),
    offsets=(160, 80, 40, 20, 10, 5, 0),
    forks=12,
    horizon=150,
)
