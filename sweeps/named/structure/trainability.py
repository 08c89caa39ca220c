"""Do distances and adjoints grow at the predicted exponents? Stacks beside the collapsed state.

The stacks begin beside the collapsed state (c = 0.999, with MV-Split 0.999999, which leaves it within a few
blocks), and in two last ones at c = 0, where it is attracting. Predicted before the sweep was run
(`paper_figs/data/trainability.forecast.json`), with the blocks between which every slope is taken.
"""

from typing import Any

from meanmode.sweeps.engine.sweep import Sweep
from meanmode.theory.setting import Setting

WIDTH = 128


def _case(scale: float, depth: int, **more: Any) -> dict[str, Any]:
    """A setting with scale = weight_std sqrt(width)."""
    return {"weight_std": round(scale / WIDTH**0.5, 5), "depth": depth, **more}


TRAINABILITY = Sweep(
    name="trainability",
    claim="forward and backward exponents beside the collapsed state, over weight std, FFN ratio and gains",
    base=Setting(width=WIDTH, heads=4, tokens=64, input_cosine=0.999, adjoint_cosine=0.0),
    cases=(
        _case(0.6, 24),
        _case(0.75, 24),
        _case(0.9, 24),
        _case(1.1, 18),
        _case(1.5, 10),
        _case(0.75, 24, ffn_ratio=1.0),
        _case(0.95, 20, ffn_ratio=6.0),
        _case(0.75, 24, ffn_ratio=8.0),
        _case(1.2, 16, ffn_ratio=8.0),
        _case(0.9, 24, merge="layerscale", residual_gain=0.6),
        _case(1.1, 24, merge="layerscale", residual_gain=0.3),
        _case(0.9, 24, merge="deepnorm", residual_gain=1.5),
        _case(1.2, 24, merge="deepnorm", residual_gain=2.5),
        _case(0.9, 8, merge="mv_split", alpha=0.1, beta=1.0, input_cosine=0.999999),
        _case(0.9, 12, merge="mv_split", alpha=0.05, beta=0.5, input_cosine=0.999999),
        _case(0.9, 16, merge="mv_split", alpha=0.03, beta=0.2, input_cosine=0.999999),
        _case(0.75, 16, ffn_ratio=8.0, input_cosine=0.0),
        _case(1.0, 16, ffn_ratio=8.0, input_cosine=0.0),
    ),
    seeds=32,
    laws=("P1", "G1", "A2"),
    backward=True,
    ensemble=8,
)
