"""The backward pass of one block, recomputed from its input: what reaches trunk and residual writers."""

# B batch, T tokens, D width

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sim.attention import QueryKeyMixer
from sim.merges import Segments
from sim.stack import Block


class WriterPair(NamedTuple):
    """What a residual writer read, and the cotangent of what it wrote; its gradient is sum_t,b delta y^T.

    Attributes:
        y: inputs [B, T, N].
        delta: cotangents of the outputs [B, T, M].
    """

    y: Tensor
    delta: Tensor


class BlockBackward(NamedTuple):
    """The backward pass of one block.

    Attributes:
        adjoint: dL/dX of the block's input [B, T, D].
        writers: of the attention and of the SwiGLU sub-layer.
        queries: gradient of `q_proj`, None for a mixer without queries.
        keys: gradient of `k_proj`, None for a mixer without keys.
    """

    adjoint: Tensor
    writers: tuple[WriterPair, WriterPair]
    queries: Tensor | None
    keys: Tensor | None


def backward_block(
    block: Block,
    x: Float[Tensor, "B T D"],
    adjoint: Float[Tensor, "B T D"],
    segments: Segments,
) -> BlockBackward:
    """Recompute a block from its input under autograd and pull the adjoint of its output back.

    No weight gradients but those of queries and keys are formed: the observables of a writer need only what
    it read and the cotangent of what it wrote.

    Args:
        block: with its weights; their `requires_grad` is left as it is.
        x: the trunk before the block.
        adjoint: dL/dX after the block.
        segments: token counts of image and text.
    """
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(_: nn.Module, given: tuple[Tensor, ...], written: Tensor) -> None:
        seen.append((given[0].detach(), written))

    mixer = block.operator
    compared = (mixer.q_proj.weight, mixer.k_proj.weight) if isinstance(mixer, QueryKeyMixer) else ()
    handles = [writer.register_forward_hook(keep) for writer in (mixer.proj, block.ffn.w2)]
    try:
        with torch.enable_grad():
            start = x.detach().requires_grad_()
            end = block(start, segments)
    finally:
        for handle in handles:
            handle.remove()
    (y_attn, written_attn), (y_ffn, written_ffn) = seen
    wanted = (start, written_attn, written_ffn, *compared)
    start_grad, delta_attn, delta_ffn, *weights = torch.autograd.grad(end, wanted, adjoint)
    writers = (WriterPair(y_attn, delta_attn), WriterPair(y_ffn, delta_ffn))
    queries, keys = weights or (None, None)
    return BlockBackward(start_grad, writers, queries, keys)
