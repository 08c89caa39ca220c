"""Do profiles follow the recursion, better with width? TCS and amplification at fixed sigma sqrt(D)."""

from meanmode.sweeps.engine.sweep import Sweep
from meanmode.theory.setting import Setting

SCALE = 0.8
"""sigma sqrt(D), the same at every width."""


DEPTH_PROFILES = Sweep(
    name="depth_profiles",
    claim="profiles of TCS, adjoint cosine and amplification against the recursion, over widths",
    base=Setting(depth=52, tokens=64, heads=4, adjoint_cosine=0.1),
    cases=tuple({"width": width, "weight_std": SCALE / width**0.5} for width in (64, 128, 256, 512)),
    seeds=64,
    laws=("G1", "A2", "A4"),
    backward=True,
)
