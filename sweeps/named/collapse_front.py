"""Where does an untrained stack collapse? Depth x tokens x weight std x input cosine x merge x seeds."""

from meanmode.sweeps.engine.sweep import Sweep
from meanmode.theory.setting import Setting

COLLAPSE_FRONT = Sweep(
    name="collapse_front",
    claim="the depth at which all tokens agree, against the mean-field recursion without a fitted constant",
    base=Setting(width=256, heads=4, alpha=0.1, beta=1.0),
    axes={
        "depth": (80,),
        "tokens": (16, 64, 256),
        "weight_std": (0.05, 0.0625),
        "input_cosine": (0.0, 0.3),
        "merge": ("plain", "mv_split"),
    },
    seeds=32,
    laws=("P1", "P2"),
)
