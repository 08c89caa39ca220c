"""Mean and centered part of a weight's gradient, or of the tokens themselves, changed on their way."""

# B batch (behind a leading axis R of runs in an ensemble), T tokens, D width, M features written, N read

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
"""Mean and centered part, which add up to the whole."""


class Turn:
    """A random signed permutation of the features of a tensor: an orthogonal map that only moves entries.

    Its moments up to the third are those of a random rotation: a turned matrix [M, N] has with the original a
    cosine of mean 0 and mean square 1 / (M N). Norms, rank, spectrum and the products between tokens, samples
    and passes are kept. It is a function of its key alone: recomputation, resumption and membership in an
    ensemble do not change it.

    Args:
        key: seed first.
        sides: trailing axes that are features: 2 of a gradient [*R, M, N], 1 of tokens [*B, T, D].
    """

    def __init__(self, key: tuple[int, ...], sides: int) -> None:
        self.key = key
        self.sides = sides
        self._drawn: dict[tuple[int, int, torch.device], tuple[Tensor, Tensor]] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """The tensor with its features turned."""
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
            with torch.inference_mode(False):  # autograd saves no tensor made in inference mode
                self._drawn[place] = torch.tensor(order, device=device), torch.tensor(signs, device=device)
        return self._drawn[place]


@dataclass(frozen=True, kw_only=True, slots=True)
class PartChange:
    """A change of one of the two parts.

    Attributes:
        part: 0 the mean part, 1 the centered part.
        factor: what the part is multiplied by, 0 to delete it; None replaces it by itself turned.
        control: change the part by as much in a random direction instead.
        replacement: turns the part.
        direction: turns the change, of a control.
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
            # a deleted part leaves nothing behind, not even the NaN of an overflow
            after = self.factor * before if self.factor else torch.zeros_like(before)
        if self.control:
            after = before + self.direction(after - before)
        return (after, parts[1]) if self.part == 0 else (parts[0], after)


def changed(parts: Parts, changes: Sequence[PartChange]) -> Parts:
    """The parts after all changes, in their order."""
    for change in changes:
        parts = change(parts)
    return parts


def change_tokens(x: Float[Tensor, "*B T D"], changes: Sequence[PartChange]) -> Float[Tensor, "*B T D"]:
    """JX + PX with their changes, J the mean over all tokens of a sample (arXiv:2605.06169 Eq. 3)."""
    mean, rest = changed((single(x).mean(-2, keepdim=True), centered(x)), changes)
    return (mean + rest).to(x.dtype)


class GradientChange:
    """Hands on another gradient of a layer's weight: its two parts DW_mu and DW_c (G1), each changed.

    What the layer writes and the cotangent of what it reads stay what they are. DW_c is formed from the
    centered parts themselves, so that it is accurate beside a much larger DW_mu; both are summed over all
    calls of the layer in a backward pass, and the layer is the only one that uses the weight.

    In every forward pass the change is put behind all other hooks of the weight, so that they see the
    gradient of the loss, whichever was there first. It is set on the weight as the layer reads it then, which
    under FSDP2 is the gathered one.

    Args:
        layer: whose weight's gradient is changed, until `remove`.
        changes: of the two parts.
        handed_on: given the changed parts in every backward pass.
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
        """Take all hooks off the layer."""
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
            raise ValueError("a gradient is changed only where its forward pass was made inside the context")
        with measuring(gradient.device):
            parts, self._parts = changed(self._parts, self.changes), None
            if self._handed_on is not None:
                self._handed_on(parts)
            return (parts[0] + parts[1]).to(gradient.dtype)
