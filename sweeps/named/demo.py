"""The demo sweep: fronts, small enough for two CPU cores and a few minutes."""

import os

from meanmode.sweeps.engine.sweep import Sweep
from meanmode.sweeps.named.collapse_front import COLLAPSE_FRONT

DEMO_WORKERS = min(2, os.cpu_count() or 1)
"""Processes of the demo."""


def demo_sweep() -> Sweep:
    """`collapse_front` with one weight std, one input cosine, two depths and eight seeds."""
    axes = {"depth": (24, 64), "tokens": (16, 64, 256), "weight_std": (0.0625,), "input_cosine": (0.0,)}
    return COLLAPSE_FRONT.with_options(axes, seeds=8)
