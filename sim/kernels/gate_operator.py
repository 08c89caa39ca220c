"""The gate of SwiGLU as one operator of torch."""

# N tokens (all leading axes), M hidden features

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from meanmode.sim.kernels.refusal import refuse_second_derivative


def swiglu(x: Float[Tensor, "*N _"]) -> Float[Tensor, "*N M"]:
    """SiLU(g) * v, [g, v] the halves of x; computed in single precision or wider, given in the type of x."""
    return _swiglu(x)


@torch.library.custom_op("meanmode::swiglu", mutates_args=())
def _swiglu(x: Tensor) -> Tensor:
    from meanmode.sim.kernels.gate_launch import forward

    return forward(x)


@_swiglu.register_fake
def _(x: Tensor) -> Tensor:
    return new_gated(x)


@torch.library.custom_op("meanmode::swiglu_backward", mutates_args=())
def _swiglu_backward(gradient: Tensor, x: Tensor) -> Tensor:
    from meanmode.sim.kernels.gate_launch import backward

    return backward(gradient, x)


@_swiglu_backward.register_fake
def _(gradient: Tensor, x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def new_gated(x: Tensor) -> Tensor:
    """Memory for half as many features."""
    return x.new_empty(*x.shape[:-1], x.shape[-1] // 2)


def _keep(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, gradient: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    return _swiglu_backward(gradient, x)


_swiglu.register_autograd(_differentiate, setup_context=_keep)
refuse_second_derivative(_swiglu_backward)
