"""Does the Gram recursion see structure? Fronts and amplification of photographs, clusters and video."""

from typing import Any

from meanmode.sweeps.engine.sweep import Sweep
from meanmode.theory.setting import Setting

INPUTS = ({"input": "gaussian"}, {"input": "photo"}, {"input": "clusters"}, {"input": "video", "frames": 4})


def _of_every_input(depths: tuple[int, int, int, int], **fields: Any) -> list[dict[str, Any]]:
    """A setting with every input, each deep enough for its front."""
    return [{**fields, **given, "depth": depth} for given, depth in zip(INPUTS, depths, strict=True)]


STRUCTURED_FRONTS = Sweep(
    name="structured_fronts",
    claim="the collapse front of inputs with structure, predicted from the cosines of all pairs of tokens",
    base=Setting(heads=4, width=128, tokens=64, weight_std=0.0625),
    cases=(
        *_of_every_input((80, 50, 46, 38)),
        *_of_every_input((52, 32, 30, 24), weight_std=0.0884),
        *_of_every_input((66, 44, 42, 28), width=64, tokens=16, weight_std=0.1),
        *_of_every_input((36, 28, 26, 18), width=256, tokens=16),
        *_of_every_input((116, 80, 76, 56), tokens=36, weight_std=0.07, merge="rezero", residual_gain=0.7),
        *_of_every_input((136, 86, 82, 66), weight_std=0.0707, merge="deepnorm", residual_gain=1.5),
        *_of_every_input((26, 16, 16, 12), width=256, weight_std=0.09375, merge="mv_split", alpha=1.0),
        *_of_every_input((76, 48, 46, 38), width=64, heads=2, weight_std=0.1),
        *_of_every_input((58, 40, 36, 30), ffn_ratio=1.0),
        *_of_every_input((80, 50, 46, 38), mixer="linear"),
        *_of_every_input((80, 50, 46, 38), rope=True),
        *_of_every_input((98, 62, 58, 48), mixer="lazy", mixer_share=0.7),
        *_of_every_input((86, 58, 56, 48), text_tokens=16),
    ),
    seeds=128,
    laws=("E4",),
    ensemble=8,
)


STRUCTURED_GRADIENTS = Sweep(
    name="structured_gradients",
    claim="amplification of both writers for inputs with structure, from the Gram matrix of the adjoints",
    base=Setting(heads=4, width=128, tokens=36, weight_std=0.0707, adjoint_cosine=0.1),
    cases=(
        *_of_every_input((48, 34, 32, 24)),
        *_of_every_input((34, 26, 24, 18), width=64, tokens=16, weight_std=0.125),
        *_of_every_input((64, 44, 40, 30), weight_std=0.0884, merge="deepnorm", residual_gain=1.5),
        *_of_every_input((48, 34, 32, 24), rope=True),
        *_of_every_input((24, 24, 24, 24), mixer="state_space"),
        *_of_every_input((24, 24, 24, 24), mixer="gated"),
        *_of_every_input((24, 24, 24, 24), merge="mv_split", alpha=0.3, text_tokens=8),
    ),
    seeds=32,
    laws=("E4", "A2"),
    backward=True,
    ensemble=8,
)
