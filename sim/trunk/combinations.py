"""Residual combinations: how a branch output joins the trunk, without a norm; for blocks of any kind."""

# B batch (after a leading axis of runs in an ensemble), T tokens, D width

from typing import Any

import torch
from torch import Tensor, nn

from meanmode.sim.trunk.precision import single
from meanmode.sim.trunk.segments import Division, Segments, segment_mean, token_counts
from meanmode.theory.setting import Gains

LAYOUTS = ("BTD", "TBD")
"""Orders of batch, tokens and features that a combination accepts."""


class Combination(nn.Module):
    """Z = X + F, the residual addition of nearly every block; the base of all others.

    A combination that takes means over tokens belongs to bidirectional blocks only: in a causal one the mean
    would show a token the later ones. It cannot see which of the two its block is.

    Args:
        width: features per token.
        segments: token counts in order, or name -> count; means are taken in each. None for one segment.
        layout: `BTD` or `TBD`, the order of batch, tokens and features.

    Raises:
        ValueError: another layout.
    """

    over_tokens = False
    """Whether Z at one token depends on other tokens."""

    def __init__(self, width: int, *, segments: Division = None, layout: str = "BTD") -> None:
        super().__init__()
        if layout not in LAYOUTS:
            raise ValueError(f"layout must be {' or '.join(LAYOUTS)}, got {layout!r}")
        self.width = width
        self.segments = segments
        self.layout = layout

    def combine(
        self, trunk: Tensor, branch: Tensor, segments: Segments, kept: Tensor | None = None
    ) -> Tensor:
        """Z in the layout BTD, in the precision of its inputs."""
        return trunk + branch

    def forward(
        self, trunk: Tensor, branch: Tensor, segments: Division = None, kept: Tensor | None = None
    ) -> Tensor:
        """Z [B, T, D] or [T, B, D], in the type of trunk + branch; computed in single precision or wider.

        Args:
            trunk: X.
            branch: F, of the shape of the trunk.
            segments: as those of the class, which they replace.
            kept: true at tokens, false at padding [B, T]. Means are over the tokens; padding is combined with
                them by the same formula. None keeps all.

        Raises:
            ValueError: the segments or `kept` do not fit the number of tokens.
        """
        if type(self).combine is Combination.combine:
            return trunk + branch
        dtype = torch.promote_types(trunk.dtype, branch.dtype)
        return self._combined(single(trunk), single(branch), segments, kept).to(dtype)

    def _combined(self, trunk: Tensor, branch: Tensor, segments: Division, kept: Tensor | None) -> Tensor:
        """Z in the layout of the combination."""
        first = self.layout == "TBD"
        if first:
            trunk, branch = trunk.transpose(0, 1), branch.transpose(0, 1)
        counts = token_counts(self.segments if segments is None else segments, trunk.shape[-2])
        merged = self.combine(trunk, branch, counts, kept)
        return merged.transpose(0, 1) if first else merged

    def gains(self) -> Gains:
        """The current gains on mean and centered part (rms over features), as the theory uses them.

        Raises:
            ValueError: there are none: it is not linear in the branch, or no norm follows.
        """
        return Gains(mean_skip=1.0, mean_write=1.0, centered_skip=1.0, centered_write=1.0)


def _rms(gain: Tensor) -> float:
    return float(gain.detach().double().square().mean().sqrt())


class LayerScaleCombination(Combination):
    """Z = X + lambda * F with a learned lambda per feature (arXiv:2605.06169 App. D, Eq. 40)."""

    def __init__(self, width: int, gain: float, **options: Any) -> None:
        super().__init__(width, **options)
        self.gain = nn.Parameter(torch.full((width,), float(gain)))

    def combine(
        self, trunk: Tensor, branch: Tensor, segments: Segments, kept: Tensor | None = None
    ) -> Tensor:
        return trunk + self.gain * branch

    def gains(self) -> Gains:
        gain = _rms(self.gain)
        return Gains(mean_skip=1.0, mean_write=gain, centered_skip=1.0, centered_write=gain)


class ReZeroCombination(LayerScaleCombination):
    """Z = X + lambda F with one learned scalar."""

    def __init__(self, width: int, gain: float, **options: Any) -> None:
        super().__init__(width, gain, **options)
        self.gain = nn.Parameter(torch.tensor([float(gain)]))


class DeepNormCombination(Combination):
    """Z = a X + F with a constant a."""

    def __init__(self, width: int, gain: float, **options: Any) -> None:
        super().__init__(width, **options)
        self.gain: Tensor
        self.register_buffer("gain", torch.tensor([float(gain)]), persistent=False)

    def combine(
        self, trunk: Tensor, branch: Tensor, segments: Segments, kept: Tensor | None = None
    ) -> Tensor:
        return self.gain * trunk + branch

    def gains(self) -> Gains:
        gain = _rms(self.gain)
        return Gains(mean_skip=gain, mean_write=1.0, centered_skip=gain, centered_write=1.0)


class MVSplitCombination(Combination):
    """Z = X + beta * (P F) + alpha * J (F - X), J and P segment-wise (R1, arXiv:2605.06169 Eq. 7-8).

    alpha, the gain on the mean, makes the mean a leaky integrator; beta is the gain on the centered part.
    Both are learned per feature.
    """

    over_tokens = True

    def __init__(self, width: int, alpha: float = 0.0, beta: float = 1.0, **options: Any) -> None:
        super().__init__(width, **options)
        self.alpha = nn.Parameter(torch.full((width,), float(alpha)))
        self.beta = nn.Parameter(torch.full((width,), float(beta)))

    def combine(
        self, trunk: Tensor, branch: Tensor, segments: Segments, kept: Tensor | None = None
    ) -> Tensor:
        branch_mean = segment_mean(branch, segments, kept)
        shift = self.alpha * (branch_mean - segment_mean(trunk, segments, kept))
        return trunk + self.beta * (branch - branch_mean) + shift

    def gains(self) -> Gains:
        alpha = self.alpha.detach().double()
        return Gains(
            mean_skip=_rms(1 - alpha),
            mean_write=_rms(alpha),
            centered_skip=1.0,
            centered_write=_rms(self.beta),
        )


def make_combination(
    name: str,
    width: int,
    *,
    gain: float = 1.0,
    alpha: float = 0.0,
    beta: float = 1.0,
    frozen_alpha: bool = False,
    segments: Division = None,
    layout: str = "BTD",
) -> Combination:
    """Build a combination for one sub-layer of a block.

    Args:
        name: `plain`, `layerscale`, `rezero`, `deepnorm` or `mv_split`.
        width: features per token.
        gain: initial lambda of layerscale and rezero; a of deepnorm.
        alpha: initial gain of mv_split on the mean.
        beta: its initial gain on the centered part.
        frozen_alpha: whether alpha asks for no gradient.
        segments: token counts in order, or name -> count; None for one segment.
        layout: `BTD` or `TBD`.

    Raises:
        ValueError: an unknown name or layout.
    """
    if name == "mv_split":
        split = MVSplitCombination(width, alpha, beta, segments=segments, layout=layout)
        split.alpha.requires_grad_(not frozen_alpha)
        return split
    if name == "plain":
        return Combination(width, segments=segments, layout=layout)
    scaled = {
        "layerscale": LayerScaleCombination,
        "rezero": ReZeroCombination,
        "deepnorm": DeepNormCombination,
    }
    if name not in scaled:
        raise ValueError(f"unknown combination {name!r}: choose one of plain, {', '.join(scaled)}, mv_split")
    return scaled[name](width, gain, segments=segments, layout=layout)
