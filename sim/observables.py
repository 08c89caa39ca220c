"""The observables of arXiv:2605.06169 App. A, exact: of the trunk here, of writer gradients re-exported."""

# B batch, T tokens, D width, H heads, K Krylov vectors

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sim.gradients import kappa, writer_amplification, writer_modes
from sim.tokens import centered, directions, need_pair, norm, single

__all__ = [
    "EPS",
    "adjoint_tcs",
    "centered",
    "kappa",
    "leakage",
    "mu_eff",
    "r_tr",
    "retention",
    "rho",
    "row_div",
    "tcs",
    "tcs_deficit",
    "var_gain",
    "writer_amplification",
    "writer_modes",
    "zero_tokens",
]

DENSE_TOKENS = 64
"""Up to here a dense singular value decomposition is as cheap as an iteration."""

EPS = 1e-12
"""Keeps ratios finite where a centered part is zero; far below every norm of a normalised trunk."""


def _mean_norm(x: Tensor) -> Tensor:
    """|mu(X)|_F = sqrt(T) |token mean|."""
    x = single(x)
    return x.shape[-2] ** 0.5 * torch.linalg.vector_norm(x.mean(-2), dim=-1)


def zero_tokens(x: Float[Tensor, "B T D"]) -> Int[Tensor, " B"]:
    """How many tokens vanish: they have no direction and are left out of every cosine."""
    return (x.abs().amax(-1) == 0).sum(-1)


def tcs_deficit(x: Float[Tensor, "B T D"]) -> Float[Tensor, " B"]:
    """1 - TCS, from the centered unit tokens, so that it stays accurate where all tokens nearly agree.

    With n unit tokens u_t, sum_{s != t} u_s . u_t = |sum u|^2 - n, hence 1 - TCS is
    sum_t |u_t - ubar|^2 / (n - 1). NaN where fewer than two tokens have a direction.

    Raises:
        ValueError: fewer than two tokens.
    """
    need_pair(x)
    unit, directed = directions(x)
    count = directed.sum(-2, keepdim=True)
    spread = torch.where(directed, unit - unit.sum(-2, keepdim=True) / count, 0.0)
    spread = torch.where(directed, spread - spread.sum(-2, keepdim=True) / count, 0.0)
    pairs = count[:, 0, 0] - 1
    return torch.where(pairs > 0, spread.square().sum((-2, -1)) / pairs, torch.nan)


def tcs(x: Float[Tensor, "B T D"]) -> Float[Tensor, " B"]:
    """Mean cosine similarity over ordered pairs of distinct tokens (TCS, App. A); 1 is full homogenisation.

    Exact, in O(T D). Zero tokens are left out; NaN where fewer than two tokens have a direction.

    Raises:
        ValueError: fewer than two tokens.
    """
    return 1 - tcs_deficit(x)


def adjoint_tcs(adjoint: Float[Tensor, "B T D"]) -> Float[Tensor, " B"]:
    """Mean cosine similarity of the loss adjoints dL/dX_l over ordered pairs of distinct tokens.

    Raises:
        ValueError: fewer than two tokens.
    """
    return tcs(adjoint)


def rho(x: Float[Tensor, "B T D"]) -> Float[Tensor, " B"]:
    """|mu(X)|_F / (|c(X)|_F + eps), the paper's energy ratio (a ratio of norms)."""
    need_pair(x)
    return _mean_norm(x) / (norm(centered(x)) + EPS)


def r_tr(trunk: Float[Tensor, "B T D"], branch: Float[Tensor, "B T D"]) -> Float[Tensor, " B"]:
    """|U(X)|_F / (|X|_F + eps): the branch output against the trunk it is added to."""
    return norm(branch) / (norm(trunk) + EPS)


def var_gain(trunk: Float[Tensor, "B T D"], branch: Float[Tensor, "B T D"]) -> Float[Tensor, " B"]:
    """|c(U(X))|_F / (|c(X)|_F + eps): the centered part a branch returns for the centered part it reads."""
    need_pair(trunk)
    return norm(centered(branch)) / (norm(centered(trunk)) + EPS)


def row_div(attention: Float[Tensor, "B H T T"]) -> Float[Tensor, " B"]:
    """|A - J A|_F / |A|_F: how far the rows of the attention matrix differ, mean over heads."""
    need_pair(attention)
    return (norm(centered(attention)) / norm(attention)).mean(1)


def retention(attention: Float[Tensor, "B H T T"], x: Float[Tensor, "B T D"]) -> Float[Tensor, " B"]:
    """Ret(c<-c) = |c(A c(X))|_F / (|c(X)|_F + eps), mean over heads."""
    need_pair(x)
    part = centered(x)
    mixed = single(attention) @ part[:, None]
    return (norm(centered(mixed)) / (norm(part)[:, None] + EPS)).mean(1)


def leakage(attention: Float[Tensor, "B H T T"], x: Float[Tensor, "B T D"]) -> Float[Tensor, " B"]:
    """Leakage(mu<-c) = |mu(A c(X))|_F / (|c(X)|_F + eps), mean over heads (law P1's leakage term)."""
    need_pair(x)
    part = centered(x)
    column_means = single(attention).mean(-2)
    leaked = x.shape[-2] ** 0.5 * torch.linalg.vector_norm(column_means @ part, dim=-1)
    return (leaked / (norm(part)[:, None] + EPS)).mean(1)


def mu_eff(attention: Float[Tensor, "B H T T"], *, tolerance: float | None = None) -> Float[Tensor, " B"]:
    """|P A P|_2, the operator norm on the centered part (law P2, Eq. 4), mean over heads.

    Dense up to `DENSE_TOKENS` tokens. Beyond, Golub-Kahan-Lanczos with full re-orthogonalisation, stopped
    when the residual of every head's leading singular pair is below `tolerance` times its value; at most T
    steps, where it is exact. NaN for a matrix that is not finite.

    Args:
        attention: attention matrices.
        tolerance: relative residual; None takes the square root of the dtype's resolution, so that the value
            (its error is of the order of the residual squared) is good to the resolution.

    Raises:
        ValueError: fewer than two tokens.
    """
    need_pair(attention)
    attention = single(attention)
    operator = centered(centered(attention).transpose(-1, -2)).flatten(0, 1)
    finite = torch.isfinite(operator).all(-1).all(-1)
    operator = torch.where(finite[:, None, None], operator, 0.0)
    if operator.shape[-1] <= DENSE_TOKENS:
        value = torch.linalg.svdvals(operator)[:, 0]
    else:
        tolerance = torch.finfo(attention.dtype).eps ** 0.5 if tolerance is None else tolerance
        value = _leading_singular_value(operator, tolerance)
    return torch.where(finite, value, torch.nan).unflatten(0, attention.shape[:2]).mean(1)


def _orthogonal(vector: Tensor, basis: list[Tensor]) -> Tensor:
    """The vector less its components along the basis, twice for safety."""
    if basis:
        columns = torch.stack(basis, -1)
        for _ in range(2):
            vector = vector - (columns @ (columns.transpose(-1, -2) @ vector[..., None]))[..., 0]
    return vector


def _unit(vector: Tensor, floor: Tensor) -> tuple[Tensor, Tensor]:
    """Length and direction; a vector of rounding noise is zero, for it has left the Krylov space."""
    length = torch.linalg.vector_norm(vector, dim=-1)
    alive = length > floor
    direction = torch.where(alive[:, None], vector / torch.where(alive, length, 1.0)[:, None], 0.0)
    return torch.where(alive, length, 0.0), direction


def _leading_singular_value(matrix: Float[Tensor, "N T T"], tolerance: float) -> Float[Tensor, " N"]:
    """Largest singular value of each matrix by Golub-Kahan-Lanczos bidiagonalisation.

    The start is drawn at random, the same draw each time, so that no symmetry hides the leading vector.
    """
    tokens = matrix.shape[-1]
    floor = 8 * torch.finfo(matrix.dtype).eps * torch.linalg.matrix_norm(matrix)
    start = torch.randn(tokens, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    _, right = _unit(start.to(matrix).expand(len(matrix), tokens), torch.zeros_like(floor))
    rights: list[Tensor] = [right]
    lefts: list[Tensor] = []
    diagonal: list[Tensor] = []
    upper: list[Tensor] = []
    value = matrix.new_zeros(len(matrix))
    for step in range(tokens):
        length, left = _unit(_orthogonal((matrix @ rights[-1][..., None])[..., 0], lefts), floor)
        diagonal.append(length)
        lefts.append(left)
        length, right = _unit(_orthogonal((lefts[-1][:, None] @ matrix)[:, 0], rights), floor)
        upper.append(length)
        rights.append(right)
        if step % 4 == 3 or step == tokens - 1:
            core = torch.diag_embed(torch.stack(diagonal, -1))
            core = core + torch.diag_embed(torch.stack(upper[:-1], -1), offset=1) if step else core
            left_vectors, values, _ = torch.linalg.svd(core)
            value = values[:, 0]
            residual = upper[-1] * left_vectors[:, -1, 0].abs()
            if bool((residual <= tolerance * value + floor).all()):
                break
    return value
