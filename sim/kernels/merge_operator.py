"""A merge and its RMSNorm as one operator of torch, differentiated in closed form (R6)."""

# N samples (all leading axes), R runs of an ensemble, T tokens, S segments that are not empty, D width

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from meanmode.sim.kernels.choice import computed_type
from meanmode.sim.kernels.refusal import refuse_second_derivative

WIDEST = 8192
"""Largest width: a token is normalised in the registers of one program."""

GAINS = ("skip", "write", "alpha")


def takes_merge(trunk: Tensor, branch: Tensor, segments: Sequence[int], gains: Mapping[str, Tensor]) -> bool:
    """Whether the operator computes a merge of these shapes and types as plain torch would."""
    tokens, width = trunk.shape[-2:]
    runs = {gain.numel() // gain.shape[-1] for gain in gains.values() if gain.numel()}
    return (
        branch.shape == trunk.shape
        and skip_is_constant(gains)
        and width <= WIDEST
        and sum(length > 0 for length in segments) <= 2
        and (not runs or runs == {1} or runs == {trunk.shape[0]})
        and sum(segments) == tokens
        and all(
            gain.dtype == trunk.dtype and gain.device == trunk.device and gain.shape[-1:] in ((width,), (1,))
            for gain in gains.values()
        )
    )


def skip_is_constant(gains: Mapping[str, Tensor]) -> bool:
    """Whether no gradient of `skip` is asked for, which the closed form does not give."""
    return "skip" not in gains or not gains["skip"].requires_grad


def merge_norm(
    trunk: Float[Tensor, "*B T D"],
    branch: Float[Tensor, "*B T D"],
    segments: Sequence[int],
    gains: Mapping[str, Tensor],
    eps: float,
) -> Float[Tensor, "*B T D"]:
    """RMSNorm(Z) with Z = skip X + write F, or of MV-Split, Z = X + write (P F) + alpha J (F - X) (R1, R6).

    J takes means, P = 1 - J, both segment-wise. Computed in single precision or wider, whatever the inputs
    are; the result has the type of the trunk. The backward pass keeps X, F and the means.

    Args:
        trunk: X.
        branch: F, of any precision.
        segments: token counts, which add up to T; at most two are not 0.
        gains: any of `skip`, `write` and `alpha`. Without `alpha` no means are taken, the others are 1 if
            missing. Each holds one number or D, for all samples or for each run along the first axis of the
            trunk. `skip` is a constant without a gradient.
        eps: added to the mean square in the norm.
    """
    given = (gains.get(name) for name in GAINS)
    merged, _ = _merge_norm(trunk, branch, *given, [length for length in segments if length], eps)
    return merged


@torch.library.custom_op("meanmode::merge_norm", mutates_args=())
def _merge_norm(
    trunk: Tensor,
    branch: Tensor,
    skip: Tensor | None,
    write: Tensor | None,
    alpha: Tensor | None,
    segments: list[int],
    eps: float,
) -> tuple[Tensor, Tensor]:
    """The merged trunk, and means [N, S, 2, D] of F and of F - X (empty without alpha)."""
    from meanmode.sim.kernels.merge_launch import forward

    return forward(trunk, branch, (skip, write, alpha), segments, eps)


@_merge_norm.register_fake
def _(
    trunk: Tensor,
    branch: Tensor,
    skip: Tensor | None,
    write: Tensor | None,
    alpha: Tensor | None,
    segments: list[int],
    eps: float,
) -> tuple[Tensor, Tensor]:
    merged = torch.empty_like(trunk, memory_format=torch.contiguous_format)
    return merged, new_means(trunk, branch, alpha, segments)


@torch.library.custom_op("meanmode::merge_norm_backward", mutates_args=())
def _merge_norm_backward(
    gradient: Tensor,
    trunk: Tensor,
    branch: Tensor,
    skip: Tensor | None,
    write: Tensor | None,
    alpha: Tensor | None,
    means: Tensor,
    segments: list[int],
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of X, of F (empty if equal to that of X) and of (alpha, write) or write [_, R, D]."""
    from meanmode.sim.kernels.merge_launch import backward

    return backward(gradient, trunk, branch, (skip, write, alpha), means, segments, eps)


@_merge_norm_backward.register_fake
def _(
    gradient: Tensor,
    trunk: Tensor,
    branch: Tensor,
    skip: Tensor | None,
    write: Tensor | None,
    alpha: Tensor | None,
    means: Tensor,
    segments: list[int],
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return new_gradients(trunk, branch, (skip, write, alpha))


def new_means(trunk: Tensor, branch: Tensor, alpha: Tensor | None, segments: Sequence[int]) -> Tensor:
    """Memory for the means of F and of F - X [N, S, 2, D]; none without alpha."""
    samples, width = trunk.shape[:-2].numel(), trunk.shape[-1]
    shape = (0,) if alpha is None else (samples, len(segments), 2, width)
    return trunk.new_empty(shape, dtype=computed_type(trunk, branch))


def new_gradients(
    trunk: Tensor, branch: Tensor, gains: tuple[Tensor | None, Tensor | None, Tensor | None]
) -> tuple[Tensor, Tensor, Tensor]:
    """Memory for the gradients of X, F and the gains, as `_merge_norm_backward` returns them."""
    _, write, alpha = gains
    equal = all(gain is None for gain in gains) and branch.dtype == trunk.dtype
    learned = [gain for gain in (alpha, write) if gain is not None]
    runs = max((gain.numel() // gain.shape[-1] for gain in learned), default=0)
    of_gains = (len(learned), runs, trunk.shape[-1]) if learned else (0,)
    return (
        torch.empty_like(trunk, memory_format=torch.contiguous_format),
        branch.new_empty((0,) if equal else branch.shape),
        trunk.new_empty(of_gains, dtype=computed_type(trunk, branch)),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    trunk, branch, skip, write, alpha, segments, eps = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(trunk, branch, skip, write, alpha, output[1])
    ctx.segments, ctx.eps = segments, eps


def _differentiate(ctx: Any, gradient: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    nothing = (None,) * 7
    if gradient is None:
        return nothing
    trunk, branch, skip, write, alpha, means = ctx.saved_tensors
    of_trunk, of_branch, of_gains = _merge_norm_backward(
        gradient, trunk, branch, skip, write, alpha, means, ctx.segments, ctx.eps
    )
    learned = {name: gain for name, gain in (("alpha", alpha), ("write", write)) if gain is not None}
    found = (
        {name: _folded(part, gain) for part, (name, gain) in zip(of_gains, learned.items(), strict=True)}
        if learned
        else {}
    )
    by_branch = of_branch if of_branch.numel() else of_trunk
    return of_trunk, by_branch, None, found.get("write"), found.get("alpha"), None, None


def _folded(gradient: Float[Tensor, "R D"], gain: Tensor) -> Tensor:
    """The gradient of a gain, summed over features if it has one number for all."""
    if gain.shape[-1] == 1:
        gradient = gradient.sum(-1)
    return gradient.to(gain.dtype).reshape(gain.shape)


_merge_norm.register_autograd(_differentiate, setup_context=_keep)
refuse_second_derivative(_merge_norm_backward)
