"""Residual merges: how a branch output joins the trunk before the Post-Norm RMSNorm."""

# B batch (after a leading axis of runs in an ensemble), T tokens, D width

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from meanmode.sim.trunk.constants import MERGE_EPS
from meanmode.sim.trunk.segments import Segments, segment_mean
from meanmode.theory.setting import Gains


class Merge(nn.Module):
    """A residual merge followed by a non-affine RMSNorm, X' = RMSNorm(Z(X, F)); only `PreNorm` has no norm.

    Args:
        width: features per token.
        eps: added to the mean square in the RMSNorm.
    """

    def __init__(self, width: int, *, eps: float = MERGE_EPS) -> None:
        super().__init__()
        self.width = width
        self.eps = eps

    def combine(self, trunk: Tensor, branch: Tensor, segments: Segments) -> Tensor:
        """Z, the merged trunk before the norm."""
        return trunk + branch

    def read(self, trunk: Float[Tensor, "*B T D"]) -> Float[Tensor, "*B T D"]:
        """The trunk as a branch, or the layer after the last block, reads it: normalised."""
        return trunk

    def forward(
        self, trunk: Float[Tensor, "*B T D"], branch: Float[Tensor, "*B T D"], segments: Segments
    ) -> Float[Tensor, "*B T D"]:
        """Merge trunk and branch and normalise; `segments` are the token counts of image and text.

        Under autocast the branch arrives in half precision; merge and norm use the precision of the trunk.
        """
        merged = self.combine(trunk, branch.to(trunk.dtype), segments)
        return rms_norm(merged, (self.width,), eps=self.eps)

    def gains(self) -> Gains:
        """The merge's current gains on mean and centered part (rms over features), as the theory uses them.

        Raises:
            ValueError: the merge has no gains: it is not linear in the branch, or no norm follows.
        """
        return Gains(mean_skip=1.0, mean_write=1.0, centered_skip=1.0, centered_write=1.0)


class Plain(Merge):
    """Z = X + F, the baseline."""


def _rms(gain: Tensor) -> float:
    return float(gain.detach().double().square().mean().sqrt())


class LayerScale(Merge):
    """Z = X + lambda * F with a learned lambda per feature (arXiv:2605.06169 App. D, Eq. 40)."""

    def __init__(self, width: int, gain: float, *, eps: float = MERGE_EPS) -> None:
        super().__init__(width, eps=eps)
        self.gain = nn.Parameter(torch.full((width,), float(gain)))

    def combine(self, trunk: Tensor, branch: Tensor, segments: Segments) -> Tensor:
        return trunk + self.gain * branch

    def gains(self) -> Gains:
        gain = _rms(self.gain)
        return Gains(mean_skip=1.0, mean_write=gain, centered_skip=1.0, centered_write=gain)


class ReZero(LayerScale):
    """Z = X + lambda F with one learned scalar."""

    def __init__(self, width: int, gain: float, *, eps: float = MERGE_EPS) -> None:
        super().__init__(width, gain, eps=eps)
        self.gain = nn.Parameter(torch.tensor([float(gain)]))


class DeepNorm(Merge):
    """Z = a X + F with a constant a."""

    def __init__(self, width: int, gain: float, *, eps: float = MERGE_EPS) -> None:
        super().__init__(width, eps=eps)
        self.gain: Tensor
        self.register_buffer("gain", torch.tensor([float(gain)]), persistent=False)

    def combine(self, trunk: Tensor, branch: Tensor, segments: Segments) -> Tensor:
        return self.gain * trunk + branch

    def gains(self) -> Gains:
        gain = _rms(self.gain)
        return Gains(mean_skip=gain, mean_write=1.0, centered_skip=gain, centered_write=1.0)


class MVSplit(Merge):
    """Z = X + beta * (P F) + alpha * J (F - X), J and P segment-wise (R1, arXiv:2605.06169 Eq. 7-8).

    alpha, the gain on the mean, makes the mean a leaky integrator; beta is the gain on the centered part.
    Both are learned per feature.
    """

    def __init__(self, width: int, alpha: float = 0.0, beta: float = 1.0, *, eps: float = MERGE_EPS) -> None:
        super().__init__(width, eps=eps)
        self.alpha = nn.Parameter(torch.full((width,), float(alpha)))
        self.beta = nn.Parameter(torch.full((width,), float(beta)))

    def combine(self, trunk: Tensor, branch: Tensor, segments: Segments) -> Tensor:
        branch_mean = segment_mean(branch, segments)
        shift = self.alpha * (branch_mean - segment_mean(trunk, segments))
        return trunk + self.beta * (branch - branch_mean) + shift

    def gains(self) -> Gains:
        alpha = self.alpha.detach().double()
        return Gains(
            mean_skip=_rms(1 - alpha),
            mean_write=_rms(alpha),
            centered_skip=1.0,
            centered_write=_rms(self.beta),
        )


class HardCentering(Merge):
    """Z = P (X + F), P segment-wise: the mean is removed in every merge (N1, arXiv:2605.06169 App. J)."""

    def combine(self, trunk: Tensor, branch: Tensor, segments: Segments) -> Tensor:
        merged = trunk + branch
        return merged - segment_mean(merged, segments)

    def gains(self) -> Gains:
        return Gains(mean_skip=0.0, mean_write=0.0, centered_skip=1.0, centered_write=1.0)


class Highway(DeepNorm):
    """Z = lambda X + RMSNorm(F) with a constant lambda: Post-Norm with a highway path, Keel-style.

    The branch is normalised token by token before it joins, so a merge replaces a share 1 / (1 + lambda^2) of
    the trunk's energy whatever the weights; with lambda^2 of the order of the number of merges, the gradient
    path from the last block to the first stays open. The equation is ours; only the idea (Post-Norm beyond
    1000 layers by a highway path) is that of arXiv:2601.19895. A branch of zeros stays zero; the norm's
    derivative there is 1 / sqrt(eps).
    """

    def combine(self, trunk: Tensor, branch: Tensor, segments: Segments) -> Tensor:
        return self.gain * trunk + rms_norm(branch, (self.width,), eps=self.eps)

    def gains(self) -> Gains:
        raise ValueError("no theory of the merge 'highway': its branch is normalised")


class PreNorm(Merge):
    """X' = X + F(RMSNorm(X)): branches read a normalised trunk; the trunk itself has no norm and grows.

    The contrast to the Post-Norm merges. Every reader of the trunk, a final head included, normalises it by
    `read`; a stack therefore returns the trunk unnormalised. TCS does not depend on token lengths.
    """

    def read(self, trunk: Float[Tensor, "*B T D"]) -> Float[Tensor, "*B T D"]:
        return rms_norm(trunk, (self.width,), eps=self.eps)

    def forward(
        self, trunk: Float[Tensor, "*B T D"], branch: Float[Tensor, "*B T D"], segments: Segments
    ) -> Float[Tensor, "*B T D"]:
        return self.combine(trunk, branch.to(trunk.dtype), segments)

    def gains(self) -> Gains:
        raise ValueError("no theory of the merge 'pre_norm': its trunk has no norm")


def make_merge(
    name: str,
    width: int,
    *,
    residual_gain: float = 1.0,
    alpha: float = 0.0,
    beta: float = 1.0,
    eps: float = MERGE_EPS,
) -> Merge:
    """Build the merge of one sub-layer.

    Args:
        name: one of `meanmode.theory.setting.MERGES`, except `mv_split_attn`, which stands for two different
            merges (`Setting.merges`).
        width: features per token.
        residual_gain: lambda of layerscale, rezero and highway; a of deepnorm.
        alpha: initial mean gain of mv_split.
        beta: initial centered gain of mv_split.
        eps: added to the mean square in the RMSNorm.

    Raises:
        ValueError: the name is unknown.
    """
    if name == "mv_split":
        return MVSplit(width, alpha, beta, eps=eps)
    constant = {"plain": Plain, "hard_centering": HardCentering, "pre_norm": PreNorm}
    if name in constant:
        return constant[name](width, eps=eps)
    scaled = {"layerscale": LayerScale, "rezero": ReZero, "deepnorm": DeepNorm, "highway": Highway}
    if name not in scaled:
        single = [*constant, *scaled, "mv_split"]
        raise ValueError(f"unknown merge {name!r}: choose one of {', '.join(single)}")
    return scaled[name](width, residual_gain, eps=eps)
