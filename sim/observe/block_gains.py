"""Gains of a block's current weights, the input of the dynamic front."""

# D width, H hidden width of the FFN

from torch import Tensor

from meanmode.sim.trunk.stack import Block
from meanmode.theory.meanfield.dynamic_front import BlockGains


def _energy(weight: Tensor) -> float:
    """|W|_F^2 in double precision."""
    return float(weight.detach().double().square().sum())


def block_gains(block: Block) -> BlockGains:
    """The factors by which a block currently multiplies energies, from its weight norms and merge gains.

    W_V multiplies a token's energy per feature by |W_V|_F^2 / D and W_O by another |W_O|_F^2 / D; the halves
    of W13 [2 H, D] and W2 [D, H] likewise. Queries and keys do not enter: QK-Norm fixes their size.
    """
    width = block.setting.width
    gate, value = (_energy(part) for part in block.ffn.w13.weight.chunk(2))
    hidden = block.setting.ffn_width
    return BlockGains(
        attention=_energy(block.operator.v_proj.weight) / width * _energy(block.operator.proj.weight) / width,
        ffn=value / hidden * _energy(block.ffn.w2.weight) / width,
        gate_std=(gate / hidden) ** 0.5,
        merge_attn=block.merge_attn.gains(),
        merge_ffn=block.merge_ffn.gains(),
    )
