"""Residual Koopman spectral profiling (arXiv:2602.22988): how near to the identity blocks act, spectrally."""

# B batch (behind a leading axis R of runs in an ensemble), T tokens, D width, N samples (tokens of a batch)

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

BAND = (0.90, 1.05)
"""Of the moduli of eigenvalues that count as near one."""


RESIDUAL = 0.1
"""Eigenvalues of a larger relative residual are no eigenvalues of the block and are dropped."""


EPS = 1e-6
"""Added to the covariance before its inverse root is taken; features have a mean square of one."""


def koopman_share(
    before: Float[Tensor, "*R B T D"],
    after: Float[Tensor, "*R B T D"],
    *,
    band: tuple[float, float] = BAND,
    residual: float = RESIDUAL,
    eps: float = EPS,
) -> Float[Tensor, "*R"]:
    """Share of the eigenvalues of a block whose modulus lies in a band about one, in double precision.

    The tokens of all samples are the columns of X, before the block, and of Y, behind it. Both are centred
    and multiplied by (cov X + eps I)^(-1/2); the block is then A = Y X^+, with left eigenvectors u and
    eigenvalues l, of which those with |u* (Y - l X)| > residual |u* X| are dropped. The identity has share 1,
    so that a network whose residual writers are zero has it in every block: the score is blind there by
    construction. Where every eigenvalue is dropped there is no linear mode near one, and the share is 0.

    Args:
        before: states that the block was given.
        after: what it made of them.
        band: of moduli that count.
        residual: the largest relative one that is kept.
        eps: see there.

    Raises:
        ValueError: no more tokens than features, from which any linear map could be read.
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
    """The score of a network: `koopman_share` of every block, their mean.

    Args:
        states: x_0 to x_L, such as `meanmode.sim.observe.functional_step.block_states`.
        residual: as there; infinite to drop none.

    Raises:
        ValueError: no block, or as `koopman_share`.
    """
    if len(states) < 2:
        raise ValueError(f"a spectral profile needs at least one block, got {len(states) - 1}")
    return torch.stack([koopman_share(*pair, residual=residual) for pair in pairwise(states)]).mean(0)


def _columns(state: Tensor) -> Tensor:
    """All tokens as columns, centred [*R, D, N]."""
    columns = state.double().flatten(-3, -2).mT
    return columns - columns.mean(-1, keepdim=True)
