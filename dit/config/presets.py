"""Named run configurations: the published networks, and small runs that a CPU can train."""

import math
from collections.abc import Mapping
from typing import Any

from meanmode.dit.config.architecture import PUBLISHED_WIDTH, DiTConfig
from meanmode.dit.config.run_config import RunConfig
from meanmode.dit.config.training_config import TrainingConfig

PUBLISHED_RATE = 1e-3 / (0.2 * math.sqrt(PUBLISHED_WIDTH))
"""Learning rate of the published runs, 1.5625e-4 (arXiv:2605.06169 Table 3)."""


def _published(training: Mapping[str, Any], **model: Any) -> RunConfig:
    """A run of arXiv:2605.06169 Table 3: ImageNet latents of 16 x 16 x 128, text features of width 1024."""
    sizes: dict[str, Any] = {"width": 1024, "heads": 8, "channels": 128, "side": 16, "patch": 1}
    text: dict[str, Any] = {"text_tokens": 256, "text_width": 1024, "initialisation": "published"}
    large = {"sharding": "full", "recompute": 1, "telemetry_blocks": 16, "checkpoint_every": 1000}
    schedule = {"steps": 50_000, "batch": 1024, "rate": PUBLISHED_RATE, "warmup": 1000, "precision": "bf16"}
    return RunConfig(
        model=DiTConfig(**{**sizes, **text, **model}),
        training=TrainingConfig(**{**large, **schedule, **training}),
        data="none",
    )


def _ramp(depth: int, **model: Any) -> RunConfig:
    """A narrow network on digits, whose learning rate rises until the network collapses."""
    watch: dict[str, Any] = {"telemetry_every": 5, "watch_every": 1, "checkpoint_every": 100}
    if depth > 64:
        watch["telemetry_blocks"] = 32
    return RunConfig(
        model=DiTConfig(depth=depth, **model),
        training=TrainingConfig(
            schedule="depth_ramp", rate=None, steps=500, time_shift=1.0, stop_on="collapse", **watch
        ),
    )


MV_SPLIT = {"merge": "mv_split", "alpha": 0.0}
"""Fields of a network with MV-Split merges, whose mean gain starts at 0 as published."""


def _event() -> RunConfig:
    """A healthy network on digits at low noise, whose learning rate jumps above its threshold."""
    shown = (
        "tcs",
        "rho",
        "g_mean",
        "g_ctr",
        "amplification",
        "kappa",
        "kappa_abs",
        "grad_rms_q",
        "grad_rms_k",
    )
    jump: dict[str, Any] = {"schedule": "jump", "first_rate": 0.005, "first_steps": 150, "rate": 0.018}
    watch: dict[str, Any] = {"telemetry_every": 1, "observables": shown, "interval": 10, "event_window": 40}
    return RunConfig(
        model=DiTConfig(width=64, heads=4, text_width=64),
        training=TrainingConfig(batch=64, steps=250, time_shift=1.0, stop_on="collapse", **jump, **watch),
    )


def _samples(patch: int) -> RunConfig:
    """A small network for generating samples; the latent store it is trained on sets its input sizes."""
    return RunConfig(
        model=DiTConfig(depth=6, width=96, heads=6, patch=patch, **MV_SPLIT),
        training=TrainingConfig(steps=1500, batch=32, rate=3e-3, warmup=100, ema=0.998, telemetry_every=100),
        data="none",
    )


PRESETS: dict[str, RunConfig] = {
    "dit-400l-baseline": _published({}, depth=400),
    "dit-400l-baseline-half": _published({"rate": PUBLISHED_RATE / 2}, depth=400),
    "dit-400l-layerscale": _published({}, depth=400, merge="layerscale", residual_gain=1e-2, writer_std=None),
    "dit-400l-mvsplit": _published({}, depth=400, **MV_SPLIT, beta=1.0),
    "dit-1000l-mvsplit": _published({}, depth=1000, **MV_SPLIT, beta=0.03),
    **{f"digits-{depth}l": _ramp(depth) for depth in (16, 64, 128, 400, 1000)},
    **{f"digits-{depth}l-mvsplit": _ramp(depth, **MV_SPLIT, beta=1.0) for depth in (16, 64, 128, 400)},
    "digits-1000l-mvsplit": _ramp(1000, **MV_SPLIT, beta=0.03),
    "digits-event": _event(),
    "digits-samples": RunConfig(
        model=DiTConfig(depth=6, width=96, heads=6, side=16, patch=4, text_width=96, **MV_SPLIT),
        training=TrainingConfig(
            steps=2400, batch=32, rate=3e-3, warmup=100, ema=0.998, time_shift=1.0, telemetry_every=100
        ),
    ),
    **{f"{kind}-samples": _samples(patch) for kind, patch in (("pixels", 4), ("latents", 1))},
}
"""By name: the runs of arXiv:2605.06169 Table 3; learning-rate ramps on digits with 16 to 1000 blocks; a
jump of the rate that shows the event in minutes; three small networks for generating samples."""
