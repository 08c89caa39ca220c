"""Hooks on a layer's own passes: its input and the cotangent of its output, each pass counted once."""

# B batch (after a leading axis R of runs in an ensemble), T tokens, M features written, N features read

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from meanmode.sim.observe.token_parts import measuring
from meanmode.sim.trunk.linear import Linear

Seen = Callable[[Tensor, Tensor], None]


class _Watch(torch.autograd.Function):
    """The identity on a layer's output; its backward reports the layer's input and the output's cotangent.

    The input is saved like any activation: it is the tensor that the layer itself keeps, and activation
    checkpointing drops and recomputes it.
    """

    @staticmethod
    def forward(ctx: Any, written: Tensor, y: Tensor, seen: Seen) -> Tensor:
        ctx.save_for_backward(y)
        ctx.seen = seen
        return written.detach()  # not a view, which a later addition in place would not be allowed to change

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor, None, None]:
        (y,) = ctx.saved_tensors
        with measuring(delta.device):
            ctx.seen(y, delta)
        return delta, None, None


def watched(written: Tensor, y: Tensor, seen: Seen) -> Tensor:
    """A product of a layer, to be used in its place: its backward calls `seen(y, delta)`.

    Args:
        written: output of the layer.
        y: its input.
        seen: takes the input and the cotangent of the output.
    """
    passed: Tensor = _Watch.apply(written, y, seen)  # type: ignore[no-untyped-call]
    return passed


def watch_writer(layer: Linear, seen: Seen) -> RemovableHandle:
    """Call `seen(y, delta)` in every backward pass, y the layer's input and delta its output's cotangent.

    Outputs, gradients and memory use stay the same.
    """

    def show(_: nn.Module, given: tuple[Tensor, ...], written: Tensor) -> Tensor | None:
        if not (torch.is_grad_enabled() and written.requires_grad):
            return None
        return watched(written, given[0], seen)

    return layer.register_forward_hook(show)


def recomputing() -> bool:
    """Whether this forward pass is a recomputation inside a backward pass (activation checkpointing)."""
    return bool(torch._C._current_graph_task_id() != -1)


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """Run compiled modules uncompiled inside the context: compiled code silently skips hooks."""
    with contextlib.ExitStack() as stack:
        if "torch._dynamo" in sys.modules:  # nothing is compiled without it, and importing it takes seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield
