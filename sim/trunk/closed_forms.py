"""RMSNorm, and merges with their RMSNorm, as autograd functions whose backward pass is in closed form (R6).

Autograd would differentiate them operation by operation: more passes over the tokens, and more tensors kept.
These are for a CPU; on a GPU kernels do the same (`meanmode.sim.kernels`). Compilers, which derive a backward
pass of their own, and whatever else inspects operations see torch's.
"""

# B batch (after a leading axis R of runs in an ensemble), T tokens, S segments that are not empty, D width

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import rms_norm

from meanmode.sim.kernels.choice import takes_functions
from meanmode.sim.kernels.merge_operator import GAINS, skip_is_constant
from meanmode.sim.kernels.refusal import refused_twice

TYPES = (torch.float32, torch.float64)
"""Types computed here: norms of shorter ones are computed in single precision inside."""


def in_closed_form(*given: Tensor) -> bool:
    """Whether the functions of this module take these tensors."""
    if torch.compiler.is_compiling():
        return False
    first = given[0].dtype
    alike = first in TYPES and all(x.dtype == first and x.device.type == "cpu" for x in given)
    return alike and takes_functions(*given)


def takes_closed_form(
    trunk: Tensor, branch: Tensor, segments: Sequence[int], gains: Mapping[str, Tensor]
) -> bool:
    """Whether `merged_and_normed` takes a merge; a branch may be of another type, to be converted."""
    return (
        in_closed_form(trunk, *gains.values())
        and takes_functions(branch)
        and branch.shape == trunk.shape
        and sum(segments) == trunk.shape[-2]
        and trunk.numel() > 0
        and skip_is_constant(gains)
        and all(gain.ndim < 2 or (gain.ndim == trunk.ndim and gain.shape[-2] == 1) for gain in gains.values())
    )


def normed(z: Float[Tensor, "*B D"], eps: float) -> Float[Tensor, "*B D"]:
    """RMSNorm(z) = r z with r = (|z|^2 / D + eps)^(-1/2), without weights."""
    if not in_closed_form(z):
        return rms_norm(z, (z.shape[-1],), eps=eps)
    if not (z.requires_grad and torch.is_grad_enabled()):
        return z * _inverse_rms(z, eps)
    y: Tensor = _Norm.apply(z, eps)  # type: ignore[no-untyped-call]
    return y


def merged_and_normed(
    trunk: Float[Tensor, "*B T D"],
    branch: Float[Tensor, "*B T D"],
    segments: Sequence[int],
    gains: Mapping[str, Tensor],
    eps: float,
) -> Float[Tensor, "*B T D"]:
    """RMSNorm(Z), with the formulas and gains of `meanmode.sim.kernels.merge_operator.merge_norm` (R1).

    The backward pass keeps the result, which must therefore not be changed in place before, its norms, the
    means of segments, and F if `write` learns.

    Args:
        trunk: X.
        branch: F, of the type of the trunk.
        segments: token counts, which add up to T.
        gains: any of `skip`, `write` and `alpha`, each one number or D, or those of every run [R, 1, 1, _].
        eps: added to the mean square in the norm.
    """
    lengths = [length for length in segments if length]
    given = [gains.get(name) for name in GAINS]
    if not torch.is_grad_enabled() or not any(x.requires_grad for x in (trunk, branch, *gains.values())):
        merged, *_ = _merged(trunk, branch, given, lengths)
        return merged.mul_(_inverse_rms(merged, eps))
    y: Tensor = _MergeNorm.apply(trunk, branch, *given, lengths, eps)  # type: ignore[no-untyped-call]
    return y


def _inverse_rms(z: Tensor, eps: float) -> Tensor:
    return z.square().mean(-1, keepdim=True).add_(eps).rsqrt_()


def _merged(
    trunk: Tensor, branch: Tensor, gains: Sequence[Tensor | None], lengths: Sequence[int]
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Z, in memory of its own, and for MV-Split the means [*B, 1, D] of F and of F - X in every segment."""
    skip, write, alpha = gains
    if alpha is None:
        kept = trunk if skip is None else skip * trunk
        return kept + (branch if write is None else write * branch), [], []
    merged = branch.clone(memory_format=torch.contiguous_format)
    means, gaps = [], []
    for z, x in zip(*(of.split(lengths, dim=-2) for of in (merged, trunk)), strict=True):
        means.append(z.mean(-2, keepdim=True))
        gaps.append(means[-1] - x.mean(-2, keepdim=True))
        z.sub_(means[-1])
        if write is not None:
            z.mul_(write)
        z.add_(x).add_(alpha * gaps[-1])
    return merged, means, gaps


def _through_norm(gradient: Tensor, y: Tensor, inverse_rms: Tensor) -> Tensor:
    """Delta = r (G - <G, Y> Y / D), the gradient of Z, from Y = r Z."""
    along = (gradient * y).mean(-1, keepdim=True)
    return torch.addcmul(gradient, y, along, value=-1).mul_(inverse_rms)


class _Norm(torch.autograd.Function):
    """The norm while it is differentiated."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, eps: float) -> Tensor:
        inverse_rms = _inverse_rms(z, eps)
        y = z * inverse_rms
        ctx.save_for_backward(y, inverse_rms)
        return y

    @staticmethod
    @refused_twice
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _through_norm(gradient, *ctx.saved_tensors), None


class _MergeNorm(torch.autograd.Function):
    """A merge and its norm while they are differentiated."""

    @staticmethod
    def forward(
        ctx: Any,
        trunk: Tensor,
        branch: Tensor,
        skip: Tensor | None,
        write: Tensor | None,
        alpha: Tensor | None,
        lengths: Sequence[int],
        eps: float,
    ) -> Tensor:
        merged, means, gaps = _merged(trunk, branch, (skip, write, alpha), lengths)
        inverse_rms = _inverse_rms(merged, eps)
        y = merged.mul_(inverse_rms)
        ctx.lengths = lengths
        learns = write is not None and write.requires_grad
        ctx.save_for_backward(y, inverse_rms, branch if learns else None, skip, write, alpha, *means, *gaps)
        return y

    @staticmethod
    @refused_twice
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        y, inverse_rms, branch, skip, write, alpha, *kept = ctx.saved_tensors
        delta = _through_norm(gradient, y, inverse_rms)
        if alpha is not None:
            half = len(kept) // 2
            of_x, of_f, of_write, of_alpha = _through_split(
                delta, branch, write, alpha, kept[:half], kept[half:], ctx.lengths
            )
        else:
            of_x = delta if skip is None else skip * delta
            of_f = delta if write is None else write * delta
            of_write = None if branch is None else (delta * branch).sum_to_size(write.shape)
            of_alpha = None
        return of_x, of_f, None, of_write, of_alpha, None, None


def _through_split(
    delta: Tensor,
    branch: Tensor | None,
    write: Tensor | None,
    alpha: Tensor,
    means: Sequence[Tensor],
    gaps: Sequence[Tensor],
    lengths: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of X, F, write and alpha from that of Z, segment by segment; that of X overwrites `delta`."""
    of_branch = delta.clone()
    of_write, of_alpha = [], []
    branches = [None] * len(lengths) if branch is None else branch.split(lengths, dim=-2)
    parts = zip(delta.split(lengths, dim=-2), of_branch.split(lengths, dim=-2), strict=True)
    for (of_x, of_f), f, mean, gap, length in zip(parts, branches, means, gaps, lengths, strict=True):
        average = of_x.mean(-2, keepdim=True)
        of_f.sub_(average)
        if write is not None and f is not None:
            of_write.append(((f - mean) * of_f).sum_to_size(write.shape))
        if alpha.requires_grad:
            of_alpha.append((average * gap).sum_to_size(alpha.shape) * length)
        leaked = alpha * average
        if write is not None:
            of_f.mul_(write)
        of_f.add_(leaked)
        of_x.sub_(leaked)
    return delta, of_branch, _total(of_write), _total(of_alpha)


def _total(parts: Sequence[Tensor]) -> Tensor | None:
    return functools.reduce(torch.add, parts) if parts else None
