"""Watching a layer's own passes: what a writer read and the cotangent it got, once and as written."""

# B batch (behind a leading axis R of runs in an ensemble), T tokens, M features written, N features read

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
    """The identity on a layer's output; its backward shows what the layer read and the cotangent it got.

    What was read is saved like any activation: it is the tensor the layer itself keeps, and activation
    checkpointing drops and recomputes it.
    """

    @staticmethod
    def forward(ctx: Any, written: Tensor, y: Tensor, seen: Seen) -> Tensor:
        ctx.save_for_backward(y)
        ctx.seen = seen
        return written.view_as(written)

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor, None, None]:
        (y,) = ctx.saved_tensors
        with measuring(delta.device):
            ctx.seen(y, delta)
        return delta, None, None


def watch_writer(layer: Linear, seen: Seen) -> RemovableHandle:
    """Call `seen(y, delta)` in every backward pass: what the layer read, and the cotangent of what it wrote.

    Nothing changes: outputs, gradients and memory are those without it.
    """

    def show(_: nn.Module, given: tuple[Tensor, ...], written: Tensor) -> Tensor | None:
        if not (torch.is_grad_enabled() and written.requires_grad):
            return None
        watched: Tensor = _Watch.apply(written, given[0], seen)  # type: ignore[no-untyped-call]
        return watched

    return layer.register_forward_hook(show)


def recomputing() -> bool:
    """Whether this forward pass is a recomputation inside a backward pass (activation checkpointing)."""
    return bool(torch._C._current_graph_task_id() != -1)


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """Whatever was compiled runs as it was written meanwhile: compiled code passes over hooks silently."""
    with contextlib.ExitStack() as stack:
        if "torch._dynamo" in sys.modules:  # nothing is compiled without it, and to import it takes seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield
