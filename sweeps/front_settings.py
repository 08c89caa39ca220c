"""Does one theory hold everywhere? Fronts over widths, tokens, merges, FFN ratios and input cosines, and none."""

from sweeps.sweep import Sweep
from theory import Setting

CLAIM = "the collapse front from 8 to 900 blocks over widths, tokens, merges, FFN ratios; and stacks without one"

FRONT_SETTINGS = Sweep(
    name="front_settings",
    claim=CLAIM,
    base=Setting(heads=4),
    cases=(
        {"width": 512, "tokens": 64, "weight_std": 0.0354, "depth": 55},
        {"width": 256, "tokens": 64, "weight_std": 0.03, "depth": 200},
        {"width": 128, "tokens": 64, "weight_std": 0.04, "ffn_ratio": 8.0, "depth": 420},
        {"width": 256, "tokens": 64, "weight_std": 0.0375, "ffn_ratio": 8.0, "input_cosine": 0.3, "depth": 300},
        {"width": 256, "tokens": 64, "weight_std": 0.05, "merge": "rezero", "residual_gain": 0.5, "input_cosine": 0.3, "depth": 150},
        {"width": 64, "tokens": 64, "weight_std": 0.0625, "ffn_ratio": 8.0, "input_cosine": 0.3, "depth": 300},
        {"width": 64, "tokens": 16, "weight_std": 0.0625, "ffn_ratio": 8.0, "depth": 400},
        {"width": 128, "tokens": 256, "weight_std": 0.0884, "merge": "deepnorm", "residual_gain": 1.5, "depth": 200},
        {"width": 256, "tokens": 16, "weight_std": 0.05, "merge": "layerscale", "residual_gain": 0.6, "depth": 120},
        {"width": 128, "tokens": 64, "weight_std": 0.08, "merge": "layerscale", "residual_gain": 0.7, "depth": 130},
        {"width": 128, "tokens": 16, "weight_std": 0.07, "merge": "rezero", "residual_gain": 0.7, "depth": 110},
        {"width": 128, "tokens": 64, "weight_std": 0.0707, "merge": "deepnorm", "residual_gain": 1.5, "input_cosine": 0.3, "depth": 110},
        {"width": 64, "tokens": 16, "weight_std": 0.1, "depth": 80},
        {"width": 64, "tokens": 64, "weight_std": 0.1, "depth": 85},
        {"width": 64, "tokens": 256, "weight_std": 0.125, "depth": 75},
        {"width": 128, "tokens": 16, "weight_std": 0.0625, "depth": 70},
        {"width": 128, "tokens": 64, "weight_std": 0.0625, "input_cosine": 0.3, "depth": 55},
        {"width": 128, "tokens": 256, "weight_std": 0.0707, "input_cosine": 0.3, "depth": 60},
        {"width": 256, "tokens": 16, "weight_std": 0.0625, "input_cosine": 0.3, "depth": 30},
        {"width": 256, "tokens": 64, "weight_std": 0.09375, "merge": "mv_split", "alpha": 1.0, "beta": 1.0, "depth": 30},
        {"width": 256, "tokens": 256, "weight_std": 0.09375, "merge": "mv_split", "alpha": 1.0, "beta": 1.0, "depth": 35},
        {"width": 256, "tokens": 64, "weight_std": 0.09375, "merge": "mv_split", "alpha": 0.9, "beta": 1.0, "input_cosine": 0.3, "depth": 40},
        # none is predicted, or the side of the unstable cosine decides
        {"width": 128, "tokens": 64, "weight_std": 0.0707, "ffn_ratio": 8.0, "input_cosine": 0.3, "depth": 100},
        {"width": 128, "tokens": 64, "weight_std": 0.0884, "ffn_ratio": 8.0, "input_cosine": 0.2, "depth": 60},
        {"width": 128, "tokens": 64, "weight_std": 0.0884, "ffn_ratio": 8.0, "input_cosine": 0.65, "depth": 60},
        {"width": 128, "tokens": 64, "weight_std": 0.0884, "merge": "mv_split", "alpha": 0.5, "beta": 1.0, "input_cosine": 0.3, "depth": 100},
    ),
    seeds=32,
    laws=("P1", "P2"),
)  # fmt: skip

FRONT_SETTINGS_LARGE = Sweep(
    name="front_settings_large",
    claim=CLAIM,
    base=Setting(heads=4),
    cases=(
        {"width": 256, "tokens": 1024, "weight_std": 0.0625, "depth": 58},
        {"width": 64, "tokens": 1024, "weight_std": 0.125, "heads": 2, "depth": 64},
        {"width": 1024, "tokens": 16, "weight_std": 0.025, "heads": 8, "depth": 38},
        {"width": 1024, "tokens": 64, "weight_std": 0.03, "heads": 8, "input_cosine": 0.3, "depth": 22},
        {"width": 256, "tokens": 16, "weight_std": 0.02, "depth": 680},
        {"width": 512, "tokens": 256, "weight_std": 0.03, "input_cosine": 0.3, "depth": 38},
    ),
    seeds=16,
    laws=("P1", "P2"),
)
