"""Residual merges: how a branch output joins the trunk before the Post-Norm RMSNorm."""

# B batch (after a leading axis of runs in an ensemble), T tokens, D width

from typing import Any

from jaxtyping import Float
from torch import Tensor

from meanmode.sim.kernels.choice import fused
from meanmode.sim.kernels.merge_operator import merge_norm, takes_merge
from meanmode.sim.trunk.closed_forms import merged_and_normed, normed, takes_closed_form
from meanmode.sim.trunk.combinations import (
    Combination,
    DeepNormCombination,
    LayerScaleCombination,
    MVSplitCombination,
    ReZeroCombination,
)
from meanmode.sim.trunk.constants import MERGE_EPS
from meanmode.sim.trunk.segments import Division, Segments, segment_mean, token_counts
from meanmode.theory.setting import Gains, framed


class Merge(Combination):
    """A combination followed by a non-affine RMSNorm, X' = RMSNorm(Z(X, F)); only `PreNorm` has no norm.

    Args:
        width: features per token.
        eps: added to the mean square in the RMSNorm.
        frames: equal frames that the first segment consists of; means are taken in each.
        gains: those of the combination, in order or by name.
    """

    def __init__(
        self, width: int, *gains: float, eps: float = MERGE_EPS, frames: int = 1, **named: Any
    ) -> None:
        super().__init__(width, *gains, **named)
        self.eps = eps
        self.frames = frames

    def read(self, trunk: Float[Tensor, "*B T D"]) -> Float[Tensor, "*B T D"]:
        """The trunk as a branch, or the layer after the last block, reads it: normalised."""
        return trunk

    def forward(
        self,
        trunk: Float[Tensor, "*B T D"],
        branch: Float[Tensor, "*B T D"],
        segments: Division = None,
        kept: Tensor | None = None,
    ) -> Float[Tensor, "*B T D"]:
        """Merge trunk and branch and normalise; `segments` are the token counts of image and text.

        Under autocast the branch arrives in half precision; merge and norm use the precision of the trunk.
        Both are one function with a backward pass in closed form, which needs the result unchanged: on a GPU
        kernels (`meanmode.sim.kernels`), on a CPU `meanmode.sim.trunk.closed_forms`.
        """
        if self.frames > 1:
            image, *rest = token_counts(self.segments if segments is None else segments, trunk.shape[-2])
            segments = (*framed(image, self.frames), *rest)
        if type(self) in FUSED and self.layout == "BTD" and kept is None:
            counts = token_counts(self.segments if segments is None else segments, trunk.shape[-2])
            gains = {name: getattr(self, gain) for name, gain in FUSED[type(self)].items()}
            if fused(trunk, branch) and takes_merge(trunk, branch, counts, gains):
                return merge_norm(trunk, branch, counts, gains, self.eps)
            if takes_closed_form(trunk, branch, counts, gains):
                return merged_and_normed(trunk, branch.to(trunk.dtype), counts, gains, self.eps)
        return normed(self._combined(trunk, branch.to(trunk.dtype), segments, kept), self.eps)


class Plain(Merge):
    """Z = X + F, the baseline."""


class LayerScale(Merge, LayerScaleCombination):
    """Z = X + lambda * F with a learned lambda per feature (arXiv:2605.06169 App. D, Eq. 40)."""


class ReZero(Merge, ReZeroCombination):
    """Z = X + lambda F with one learned scalar."""


class DeepNorm(Merge, DeepNormCombination):
    """Z = a X + F with a constant a."""


class MVSplit(Merge, MVSplitCombination):
    """Z = X + beta * (P F) + alpha * J (F - X), J and P segment-wise (R1, arXiv:2605.06169 Eq. 7-8)."""


class HardCentering(Merge):
    """Z = P (X + F), P segment-wise: the mean is removed in every merge (N1, arXiv:2605.06169 App. J)."""

    over_tokens = True

    def combine(
        self, trunk: Tensor, branch: Tensor, segments: Segments, kept: Tensor | None = None
    ) -> Tensor:
        merged = trunk + branch
        return merged - segment_mean(merged, segments, kept)

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

    def combine(
        self, trunk: Tensor, branch: Tensor, segments: Segments, kept: Tensor | None = None
    ) -> Tensor:
        return self.gain * trunk + normed(branch, self.eps)

    def gains(self) -> Gains:
        raise ValueError("no theory of the merge 'highway': its branch is normalised")


class PreNorm(Merge):
    """X' = X + F(RMSNorm(X)): branches read a normalised trunk; the trunk itself has no norm and grows.

    The contrast to the Post-Norm merges. Every reader of the trunk, a final head included, normalises it by
    `read`; a stack therefore returns the trunk unnormalised. TCS does not depend on token lengths.
    """

    def read(self, trunk: Float[Tensor, "*B T D"]) -> Float[Tensor, "*B T D"]:
        return normed(trunk, self.eps)

    def forward(
        self,
        trunk: Float[Tensor, "*B T D"],
        branch: Float[Tensor, "*B T D"],
        segments: Division = None,
        kept: Tensor | None = None,
    ) -> Float[Tensor, "*B T D"]:
        return self._combined(trunk, branch.to(trunk.dtype), segments, kept)

    def gains(self) -> Gains:
        raise ValueError("no theory of the merge 'pre_norm': its trunk has no norm")


FUSED: dict[type[Merge], dict[str, str]] = {
    Plain: {},
    LayerScale: {"write": "gain"},
    ReZero: {"write": "gain"},
    DeepNorm: {"skip": "gain"},
    MVSplit: {"alpha": "alpha", "write": "beta"},
}
"""Merges that have a closed form -> name of a gain there -> its name here. Not their subclasses."""


def make_merge(
    name: str,
    width: int,
    *,
    residual_gain: float = 1.0,
    alpha: float = 0.0,
    beta: float = 1.0,
    eps: float = MERGE_EPS,
    frames: int = 1,
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
        frames: equal frames of the image, in each of which mv_split and hard_centering take their means.

    Raises:
        ValueError: the name is unknown.
    """
    if name == "mv_split":
        return MVSplit(width, alpha, beta, eps=eps, frames=frames)
    constant = {"plain": Plain, "hard_centering": HardCentering, "pre_norm": PreNorm}
    if name in constant:
        return constant[name](width, eps=eps, frames=frames)
    scaled = {"layerscale": LayerScale, "rezero": ReZero, "deepnorm": DeepNorm, "highway": Highway}
    if name not in scaled:
        single = [*constant, *scaled, "mv_split"]
        raise ValueError(f"unknown merge {name!r}: choose one of {', '.join(single)}")
    return scaled[name](width, residual_gain, eps=eps)
