"""Rotary positions and QK-Norm of heads as one operator of torch."""

# N samples (all leading axes), T tokens, H heads, F features per head, R rotary pairs, D = H F

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from meanmode.sim.kernels.refusal import refuse_second_derivative

WIDEST_HEAD = 2048
"""Largest number of features of a head."""


def takes_heads(x: Tensor, heads: int) -> bool:
    """Whether the operator splits x into heads of a size that it handles."""
    return x.ndim > 1 and x.shape[-1] <= heads * WIDEST_HEAD


def normed_heads(
    x: Float[Tensor, "*B T D"],
    rotation: tuple[Float[Tensor, "T R"], Float[Tensor, "T R"]] | None,
    heads: int,
    eps: float,
) -> Float[Tensor, "*B H T F"]:
    """Split tokens into heads, rotate first halves against second halves, and normalise (RMSNorm).

    Computed in single precision or wider; the result has the type of x. The backward pass keeps x.

    Args:
        x: queries or keys of all heads.
        rotation: cosine and sine of the angles; None rotates nothing.
        heads: number of heads.
        eps: added to the mean square in the norm.
    """
    cos, sin = (None, None) if rotation is None else rotation
    return _normed_heads(x, cos, sin, heads, eps)


@torch.library.custom_op("meanmode::normed_heads", mutates_args=())
def _normed_heads(x: Tensor, cos: Tensor | None, sin: Tensor | None, heads: int, eps: float) -> Tensor:
    from meanmode.sim.kernels.head_launch import forward

    return forward(x, cos, sin, heads, eps)


@_normed_heads.register_fake
def _(x: Tensor, cos: Tensor | None, sin: Tensor | None, heads: int, eps: float) -> Tensor:
    return new_heads(x, heads)


@torch.library.custom_op("meanmode::normed_heads_backward", mutates_args=())
def _normed_heads_backward(
    gradient: Tensor, x: Tensor, cos: Tensor | None, sin: Tensor | None, heads: int, eps: float
) -> Tensor:
    from meanmode.sim.kernels.head_launch import backward

    return backward(gradient, x, cos, sin, heads, eps)


@_normed_heads_backward.register_fake
def _(gradient: Tensor, x: Tensor, cos: Tensor | None, sin: Tensor | None, heads: int, eps: float) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def new_heads(x: Tensor, heads: int) -> Tensor:
    """Memory for the heads of x [*B, H, T, F]."""
    *lead, tokens, width = x.shape
    return x.new_empty(*lead, heads, tokens, width // heads)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, cos, sin, heads, eps = inputs
    ctx.save_for_backward(x, cos, sin)
    ctx.heads, ctx.eps = heads, eps


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
    x, cos, sin = ctx.saved_tensors
    return _normed_heads_backward(gradient, x, cos, sin, ctx.heads, ctx.eps), None, None, None, None


_normed_heads.register_autograd(_differentiate, setup_context=_keep)
refuse_second_derivative(_normed_heads_backward)
