"""What functions of our own cannot do, said in one sentence."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

Gradients = TypeVar("Gradients", bound=tuple[Tensor | None, ...])

TWICE = (
    "a backward pass in closed form cannot be differentiated twice (create_graph=True): run both passes "
    "inside `with meanmode.sim.kernels.choice.plain_torch():`"
)


def refuse_second_derivative(operator: Any) -> None:
    """Refuse to differentiate the backward pass of an operator, which `create_graph=True` asks for."""

    def refuse(ctx: Any, *gradients: Any) -> None:
        raise RuntimeError(TWICE)

    operator.register_autograd(refuse)


def refused_twice(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
    """The backward pass of an autograd function that refuses to be differentiated itself."""

    @functools.wraps(backward)
    def once(ctx: Any, *gradients: Any) -> Gradients:
        with torch.no_grad():
            found = backward(ctx, *gradients)
        if torch.is_grad_enabled():
            # all that the result depends on, or autograd would find no path to what is asked for: a silent 0
            depends = [x for x in (*gradients, *ctx.saved_tensors) if x is not None]
            found = _Refusing.apply(len(depends), *depends, *found)  # type: ignore[no-untyped-call]
        return found

    return once


class _Refusing(torch.autograd.Function):
    """The identity on gradients that are differentiated again; its backward pass raises."""

    @staticmethod
    def forward(ctx: Any, count: int, *given: Tensor | None) -> tuple[Tensor | None, ...]:
        return tuple(None if gradient is None else gradient.detach() for gradient in given[count:])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> None:
        raise RuntimeError(TWICE)
