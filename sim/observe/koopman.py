"""Residual Koopman spectral profiling (arXiv:2602.22988): how close to the identity each block acts."""

# B batch (after a leading axis R of runs in an ensemble), T tokens, D width, N samples (tokens of a batch)

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

BAND = (0.90, 1.05)
"""Range of the moduli that count as near one."""


RESIDUAL = 0.1
"""Largest relative residual; eigenvalues above it are not eigenvalues of the block and are dropped."""


EPS = 1e-6
"""Added to the covariance before taking its inverse square root; features have a mean square of one."""


def koopman_share(
    before: Float[Tensor, "*R B T D"],
    after: Float[Tensor, "*R B T D"],
    *,
    band: tuple[float, float] = BAND,
    residual: float = RESIDUAL,
    eps: float = EPS,
) -> Float[Tensor, "*R"]:
    """Share of the eigenvalues of a block whose modulus lies in a band about one, in double precision.

    The tokens of all samples are the columns of X, before the block, and of Y, after it. Both are centred and
    multiplied by (cov X + eps I)^(-1/2). The block is then A = Y X^+, with left eigenvectors u and
    eigenvalues l; those with |u* (Y - l X)| > residual |u* X| are dropped. The identity has share 1, so every
    block of a network with zero residual writers has share 1: the score is blind there by construction. If
    every eigenvalue is dropped, no linear mode is near one and the share is 0.

    Args:
        before: input states of the block.
        after: its output states.
        band: range of the moduli that count as near one.
        residual: largest relative residual of an eigenvalue that is kept.
        eps: added to the covariance of X before taking its inverse square root.

    Raises:
        ValueError: no more tokens than features; any block would then look linear.
    """
    width, samples = before.shape[-1], before.shape[-3] * before.shape[-2]
    if samples <= width:
        raise ValueError(f"the spectrum of {width} features needs more than {width} tokens, got {samples}")
    x, y = (_columns(state) for state in (before, after))
    variances, axes = torch.linalg.eigh(x @ x.mT / samples)
    whitening = axes * (variances.clamp_min(0) + eps).rsqrt()[..., None, :] @ axes.mT
    x, y = whitening @ x, whitening @ y
    block = y @ torch.linalg.pinv(x)
    eigenvalues, vectors = torch.linalg.eig(block.mT)  # columns u* of A, transposed
    seen, made = (vectors.mT @ part.to(vectors.dtype) for part in (x, y))
    missed = torch.linalg.vector_norm(made - eigenvalues[..., None] * seen, dim=-1)
    kept = missed <= residual * torch.linalg.vector_norm(seen, dim=-1)
    near = kept & (eigenvalues.abs() >= band[0]) & (eigenvalues.abs() <= band[1])
    return near.sum(-1) / kept.sum(-1).clamp_min(1).double()


def mean_koopman_share(
    states: Sequence[Float[Tensor, "*R B T D"]], *, residual: float = RESIDUAL
) -> Float[Tensor, "*R"]:
    """The score of a network: the mean of `koopman_share` over its blocks.

    Args:
        states: x_0 to x_L, e.g. from `meanmode.sim.observe.functional_step.block_states`.
        residual: largest relative residual of an eigenvalue that is kept; infinity keeps all.

    Raises:
        ValueError: no blocks, or no more tokens than features.
    """
    if len(states) < 2:
        raise ValueError(f"a spectral profile needs at least one block, got {len(states) - 1}")
    return torch.stack([koopman_share(*pair, residual=residual) for pair in pairwise(states)]).mean(0)


def _columns(state: Tensor) -> Tensor:
    """All tokens as columns, centred [*R, D, N]."""
    columns = state.double().flatten(-3, -2).mT
    return columns - columns.mean(-1, keepdim=True)
