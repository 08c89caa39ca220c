"""Builds token mixers by name."""

from meanmode.sim.trunk.attention import (
    BlendedAttention,
    GatedAttention,
    LinearAttention,
    Mixer,
    SoftmaxAttention,
    UniformAttention,
)
from meanmode.sim.trunk.constants import QK_EPS
from meanmode.sim.trunk.state_space import StateSpace
from meanmode.theory.setting import MIXERS, identity_blend


def make_mixer(
    name: str, width: int, heads: int, *, share: float = 0.5, rope: bool = False, eps: float = QK_EPS
) -> Mixer:
    """Build a token mixer.

    Args:
        name: one of `meanmode.theory.setting.MIXERS`.
        width: features per token.
        heads: number of attention heads.
        share: l of `lazy`, the weight of softmax attention (1 - l is that of the identity).
        rope: rotate the queries and keys of image tokens; ignored by `uniform` and `state_space`.
        eps: added to the mean square in QK-Norm.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in MIXERS:
        raise ValueError(f"unknown mixer {name!r}: choose one of {', '.join(MIXERS)}")
    if name == "uniform":
        return UniformAttention(width, heads)
    if name == "state_space":
        return StateSpace(width, heads)
    if name in ("lazy", "a_minus_i", "i_minus_a"):
        identity, share = identity_blend(name, share)
        return BlendedAttention(width, heads, identity=identity, share=share, rope=rope, eps=eps)
    compared = {"softmax": SoftmaxAttention, "linear": LinearAttention, "gated": GatedAttention}
    return compared[name](width, heads, rope=rope, eps=eps)
