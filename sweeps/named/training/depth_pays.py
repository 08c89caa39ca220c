"""Does depth pay? 8, 32 and 128 blocks at equal parameters and at equal width, with four residual merges.

With L W^2 constant, networks have equal parameters and, up to the attention scores (3 to 12 % here), equal
floating-point operations per step: equal parameters, compute and steps are one comparison. At equal width the
deeper network has more of both, as where the source of this project compares 400 with 1000 blocks.
"""

from collections.abc import Mapping
from typing import Any

from meanmode.dit.config.presets import MV_SPLIT, PRESETS
from meanmode.sweeps.engine.judged.judged_study import JudgedStudy
from meanmode.sweeps.engine.study import Case

SIZES: Mapping[str, Mapping[str, int]] = {
    "8 blocks, width 96": {"depth": 8, "width": 96, "heads": 6},
    "32 blocks, width 48": {"depth": 32, "width": 48, "heads": 3},
    "128 blocks, width 24": {"depth": 128, "width": 24, "heads": 2},
    "8 blocks, width 24": {"depth": 8, "width": 24, "heads": 2},
    "32 blocks, width 24": {"depth": 32, "width": 24, "heads": 2},
}
"""The first three have equal parameters, the last three equal width."""

MERGES: Mapping[str, Mapping[str, Any]] = {
    "MV-Split": {**MV_SPLIT, "beta": 1.0},
    "LayerScale 0.01": {"merge": "layerscale", "residual_gain": 0.01, "writer_std": None},
    "DeepNorm (2 L)^(1/4)": {"merge": "deepnorm"},
    "pre-norm": {"merge": "pre_norm"},
}
"""Label of a merge -> fields of its network."""

PEAK, PEAK_DEPTH = 0.009, 8
"""Peak rate at a depth; it scales with depth^(-1/2). Of 0.003, 0.006, 0.012 and 0.024 (MV-Split, equal
parameters, 200 steps, a seed of no run here) 0.006 or 0.012 was the best at every depth."""


def _case(size: str, merge: str) -> Case:
    fields, options = SIZES[size], MERGES[merge]
    depth = fields["depth"]
    gain = {"residual_gain": round((2 * depth) ** 0.25, 3)} if options["merge"] == "deepnorm" else {}
    rate = round(PEAK * (PEAK_DEPTH / depth) ** 0.5, 6)
    return Case(label=f"{size}, {merge}", options={**fields, **options, **gain, "rate": rate})


DEPTH_PAYS = JudgedStudy(
    name="depth_pays",
    claim="held-out loss, FID and KID of 8 to 128 blocks at equal parameters and at equal width, four merges",
    base=PRESETS["pixels-samples"].with_fields(
        {
            "data": "latents:fashion.zarr",
            "side": 28,
            "patch": 7,
            "text_tokens": 4,
            "text_width": 64,
            "batch": 16,
            "ema": 0.0,
            "schedule": "cosine",
            "rate": PEAK,
            "warmup": 50,
            "steps": 600,
        }
    ),
    cases=tuple(_case(size, merge) for size in SIZES for merge in MERGES),
    seeds=3,
    first_seed=6000,
    ensemble=3,
    functional_every=0,
    expectation="at equal parameters 8 blocks have the lowest held-out loss with every merge and 128 the "
    "highest, by more than 0.05; at equal width 128 blocks are better than 8 with every "
    "merge; at 128 blocks LayerScale, pre-norm and DeepNorm are within 0.05 of each other, "
    "MV-Split of beta 1 is not the best; no run fails",
)
