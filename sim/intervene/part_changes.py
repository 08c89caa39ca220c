"""Changes the mean or centered part of a weight's gradient, or of the tokens, as they pass through."""

# B batch (after a leading axis R of runs in an ensemble), T tokens, D width, M features written, N read

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from meanmode.sim.observe.layer_hooks import recomputing, watch_writer
from meanmode.sim.observe.token_parts import centered, measuring
from meanmode.sim.observe.writer_gradients import centered_gradient, mean_coherent
from meanmode.sim.trunk.linear import Linear
from meanmode.sim.trunk.precision import single

Parts = tuple[Tensor, Tensor]
"""Mean and centered part; their sum is the whole."""


class Turn:
    """A random signed permutation of a tensor's features: an orthogonal map that only moves entries.

    Its moments up to the third are those of a random rotation: the cosine between a turned matrix [M, N] and
    the original has mean 0 and mean square 1 / (M N). Norms, rank, spectrum and the inner products between
    tokens, samples and passes are preserved. It depends on its key alone, so recomputing, resuming or joining
    an ensemble does not change it.

    Args:
        key: the seed, followed by integers that tell apart the turns of one seed.
        sides: number of trailing feature axes: 2 for a gradient [*R, M, N], 1 for tokens [*B, T, D].
    """

    def __init__(self, key: tuple[int, ...], sides: int) -> None:
        self.key = key
        self.sides = sides
        self._drawn: dict[tuple[int, int, torch.device], tuple[Tensor, Tensor]] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """Turn the features of a tensor."""
        for side in range(self.sides):
            axis = x.ndim - 1 - side
            order, signs = self._draw(side, x.shape[axis], x.device)
            x = x.index_select(axis, order) * signs.to(x.dtype).view(-1, *[1] * side)
        return x

    def _draw(self, side: int, features: int, device: torch.device) -> tuple[Tensor, Tensor]:
        place = (side, features, device)
        if place not in self._drawn:
            seed, *key = self.key
            drawn = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(*key, side)))
            order, signs = drawn.permutation(features), 2.0 * drawn.integers(2, size=features) - 1
            with torch.inference_mode(False):  # autograd cannot save tensors created in inference mode
                self._drawn[place] = torch.tensor(order, device=device), torch.tensor(signs, device=device)
        return self._drawn[place]


@dataclass(frozen=True, kw_only=True, slots=True)
class PartChange:
    """A change to one of the two parts.

    Attributes:
        part: 0 for the mean part, 1 for the centered part.
        factor: multiplies the part, 0 deletes it; None replaces the part by its turned copy.
        control: instead change the part by the same norm in a random direction.
        replacement: turn that makes the replacement of the part.
        direction: turn that makes the direction of a control.
    """

    part: int
    factor: float | None
    control: bool
    replacement: Turn
    direction: Turn

    def __call__(self, parts: Parts) -> Parts:
        """The parts after the change."""
        before = parts[self.part]
        if self.factor is None:
            after = self.replacement(before)
        else:
            # deleting also removes the NaN of an overflow, which a factor of 0 would keep
            after = self.factor * before if self.factor else torch.zeros_like(before)
        if self.control:
            after = before + self.direction(after - before)
        return (after, parts[1]) if self.part == 0 else (parts[0], after)


def changed(parts: Parts, changes: Sequence[PartChange]) -> Parts:
    """The parts after all changes, applied in order."""
    for change in changes:
        parts = change(parts)
    return parts


def change_tokens(x: Float[Tensor, "*B T D"], changes: Sequence[PartChange]) -> Float[Tensor, "*B T D"]:
    """JX + PX after the changes, J being the mean over all tokens of a sample (arXiv:2605.06169 Eq. 3)."""
    mean, rest = changed((single(x).mean(-2, keepdim=True), centered(x)), changes)
    return (mean + rest).to(x.dtype)


class GradientChange:
    """Replaces the gradient of a layer's weight by one whose parts DW_mu and DW_c (G1) are changed.

    The layer's output and the cotangent of its input stay the same. DW_c is formed from the centered parts,
    so that it is accurate next to a much larger DW_mu. Both are summed over all calls of the layer in a
    backward pass; no other layer may use the weight.

    In every forward pass the hook is registered anew as the last one on the weight, so that all other hooks
    see the gradient of the loss. It sits on the weight as the layer reads it, which under FSDP2 is the
    gathered one.

    Args:
        layer: layer whose weight gradient is changed, until `remove`.
        changes: changes to the two parts, applied in order.
        handed_on: called with the changed parts in every backward pass.

    Attributes:
        layer: the changed layer.
        changes: changes to the two parts, applied in order.
    """

    def __init__(
        self, layer: Linear, changes: Sequence[PartChange], handed_on: Callable[[Parts], None] | None
    ) -> None:
        self.layer = layer
        self.changes = changes
        self._handed_on = handed_on
        self._parts: Parts | None = None
        self._handle: RemovableHandle | None = None
        self._handles = [layer.register_forward_pre_hook(self._go_last), watch_writer(layer, self._add)]

    def remove(self) -> None:
        """Remove all hooks from the layer."""
        for handle in (*self._handles, *([self._handle] if self._handle else [])):
            handle.remove()

    def _go_last(self, _: nn.Module, __: tuple[Tensor, ...]) -> None:
        if not recomputing():
            self._parts = None
        if torch.is_grad_enabled() and self.layer.weight.requires_grad:
            if self._handle is not None:
                self._handle.remove()
            self._handle = self.layer.weight.register_hook(self._hand_on)

    def _add(self, y: Tensor, delta: Tensor) -> None:
        parts = mean_coherent(y, delta), centered_gradient(y, delta)
        if self._parts is not None:
            parts = self._parts[0] + parts[0], self._parts[1] + parts[1]
        self._parts = parts

    def _hand_on(self, gradient: Float[Tensor, "*R M N"]) -> Float[Tensor, "*R M N"]:
        if self._parts is None:
            raise ValueError("cannot change this gradient: run its forward pass inside the context too")
        with measuring(gradient.device):
            parts, self._parts = changed(self._parts, self.changes), None
            if self._handed_on is not None:
                self._handed_on(parts)
            return (parts[0] + parts[1]).to(gradient.dtype)
