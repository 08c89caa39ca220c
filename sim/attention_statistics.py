"""The statistics of attention matrices, exact, from a few matrices at a time."""

# B batch (behind a leading axis of runs in an ensemble), T tokens, D width, H heads,
# N matrices (samples and heads) at a time

import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sim.attention import Mixer
from sim.linear import dot_products, matrix_times
from sim.tokens import EPS, centered, need_pair, norm, single

DENSE_TOKENS = 32
"""Up to here a dense singular value decomposition is as cheap as an iteration."""

TESTS = (3, 12)
"""Steps at which convergence is tested, then every third: matrices of rank one or two need 3, attention at
initialisation 12 to 18."""

MATRIX_ENTRIES = {"cpu": 2**17, "cuda": 2**27}
"""Entries formed at a time: what stays in a processor's cache, what a GPU fills up with."""


class AttentionStatistics(NamedTuple):
    """Statistics of the mixing matrices of a mixer, mean over heads, each [*B]: `mu_eff`, `row_div`,
    `retention`, `leakage` as in `sim.observables`."""

    mu_eff: Tensor
    row_div: Tensor
    retention: Tensor
    leakage: Tensor


def at_a_time(entries: int, device: torch.device) -> int:
    """How many pieces of so many entries are formed at a time on a device, at least one."""
    return max(1, MATRIX_ENTRIES.get(device.type, MATRIX_ENTRIES["cuda"]) // entries)


def attention_statistics(
    mixer: Mixer, operands: tuple[Tensor, ...], x: Float[Tensor, "*B T D"], *, singular_value: bool = True
) -> AttentionStatistics:
    """All statistics of a mixer's matrices on a trunk, from one recomputed matrix per head.

    Args:
        mixer: whose matrices.
        operands: what the matrices are made of, `Mixer.operands`.
        x: the trunk the mixer reads.
        singular_value: compute mu_eff, the dearest; NaN without.

    Raises:
        ValueError: fewer than two tokens.
    """
    need_pair(x)
    tokens, lead, heads = x.shape[-2], x.shape[:-2], mixer.heads
    part = centered(x).reshape(-1, tokens, x.shape[-1])
    part_norms = norm(part)
    part_transposed = part.transpose(-1, -2).contiguous()
    flat = [single(operand).reshape(-1, *operand.shape[-2:]) for operand in operands]
    found: list[tuple[Tensor, ...]] = []
    for chunk in _chunks(part.shape[0] * heads, at_a_time(tokens * tokens, x.device)):
        if chunk.stop - chunk.start == 1:
            samples: slice | Tensor = slice(chunk.start // heads, chunk.start // heads + 1)
        else:
            samples = torch.arange(chunk.start, chunk.stop, device=x.device) // heads
        beside, beside_norms = part_transposed[samples], part_norms[samples]
        apart, column_means = _apart(mixer.matrix_of(*(operand[chunk] for operand in flat)))
        found.append(
            (
                _centered_norm(apart) if singular_value else torch.full_like(beside_norms, torch.nan),
                _row_div(apart, column_means),
                _retention(apart, beside, beside_norms),
                _leakage(column_means, beside, beside_norms),
            )
        )
    means = (torch.cat(values).unflatten(0, (*lead, heads)).mean(-1) for values in zip(*found, strict=True))
    return AttentionStatistics(*means)


def _chunks(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _apart(matrix: Float[Tensor, "N T T"]) -> tuple[Float[Tensor, "N T T"], Float[Tensor, "N T"]]:
    """P A and the column means of A."""
    column_means = matrix.mean(-2)
    apart = matrix - column_means[:, None]
    return apart, column_means


def _row_div(apart: Tensor, column_means: Tensor) -> Tensor:
    spread = norm(apart)
    return spread / torch.hypot(
        spread, apart.shape[-1] ** 0.5 * torch.linalg.vector_norm(column_means, dim=-1)
    )


def _retention(apart: Tensor, part_transposed: Tensor, part_norms: Tensor) -> Tensor:
    return norm(dot_products(apart, part_transposed)) / (part_norms + EPS)


def _leakage(column_means: Tensor, part_transposed: Tensor, part_norms: Tensor) -> Tensor:
    leaked = matrix_times(part_transposed, column_means)
    scale = column_means.shape[-1] ** 0.5
    return scale * torch.linalg.vector_norm(leaked, dim=-1) / (part_norms + EPS)


def _of_heads(attention: Float[Tensor, "*B H T T"]) -> tuple[Tensor, Tensor]:
    """P A and the column means, heads and samples in one axis."""
    need_pair(attention)
    return _apart(single(attention).reshape(-1, *attention.shape[-2:]))


def _beside(attention: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """c(X) transposed and its norm, once for every head."""
    part = centered(x)[..., None, :, :].expand(*attention.shape[:-1], x.shape[-1])
    part = part.reshape(-1, *x.shape[-2:])
    return part.transpose(-1, -2), norm(part)


def row_div(attention: Float[Tensor, "*B H T T"]) -> Float[Tensor, "*B"]:
    """|A - J A|_F / |A|_F: how far the rows of the attention matrix differ, mean over heads."""
    return _row_div(*_of_heads(attention)).unflatten(0, attention.shape[:-2]).mean(-1)


def retention(attention: Float[Tensor, "*B H T T"], x: Float[Tensor, "*B T D"]) -> Float[Tensor, "*B"]:
    """Ret(c<-c) = |c(A c(X))|_F / (|c(X)|_F + eps), mean over heads."""
    apart, _ = _of_heads(attention)
    return _retention(apart, *_beside(attention, x)).unflatten(0, attention.shape[:-2]).mean(-1)


def leakage(attention: Float[Tensor, "*B H T T"], x: Float[Tensor, "*B T D"]) -> Float[Tensor, "*B"]:
    """Leakage(mu<-c) = |mu(A c(X))|_F / (|c(X)|_F + eps), mean over heads (law P1's leakage term)."""
    _, column_means = _of_heads(attention)
    return _leakage(column_means, *_beside(attention, x)).unflatten(0, attention.shape[:-2]).mean(-1)


def mu_eff(attention: Float[Tensor, "*B H T T"], *, tolerance: float | None = None) -> Float[Tensor, "*B"]:
    """|P A P|_2, the operator norm on the centered part (law P2, Eq. 4), mean over heads.

    Dense up to `DENSE_TOKENS` tokens. Beyond, Lanczos iteration on (P A P)^T (P A P), stopped when the
    residual of every head's leading eigenpair is below `tolerance` times its value; at most T steps. NaN for
    a matrix that is not finite.

    Args:
        attention: attention matrices.
        tolerance: relative residual; None takes the square root of the dtype's resolution, so that the value
            (its error is of the order of the residual squared) is good to the resolution.

    Raises:
        ValueError: fewer than two tokens.
    """
    apart, _ = _of_heads(attention)
    return _centered_norm(apart, tolerance).unflatten(0, attention.shape[:-2]).mean(-1)


def _centered_norm(apart: Float[Tensor, "N T T"], tolerance: float | None = None) -> Float[Tensor, " N"]:
    """|P A P|_2 from P A."""
    finite = torch.isfinite(norm(apart))
    if not bool(finite.all()):
        apart = torch.where(finite[:, None, None], apart, 0.0)
    if apart.shape[-1] <= DENSE_TOKENS:
        value = torch.linalg.svdvals(centered(apart.transpose(-1, -2)))[:, 0]
    else:
        tolerance = torch.finfo(apart.dtype).eps ** 0.5 if tolerance is None else tolerance
        value = _leading_singular_value(apart - apart.mean(-1, keepdim=True), tolerance)
    return torch.where(finite, value, torch.nan)


@functools.lru_cache(maxsize=8)
def _start(tokens: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A unit vector, the same draw each time, so that no symmetry hides the leading vector."""
    drawn = torch.randn(tokens, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (drawn / torch.linalg.vector_norm(drawn)).to(device, dtype)


def _leading_singular_value(matrix: Float[Tensor, "N T T"], tolerance: float) -> Float[Tensor, " N"]:
    """Largest singular value of each matrix by Lanczos iteration on its normal matrix.

    The basis is not re-orthogonalised: rounding repeats Ritz values that have converged, it does not move the
    largest, and a start that has left its Krylov space goes on in another.
    """
    tokens = matrix.shape[-1]
    tiny = torch.finfo(matrix.dtype).tiny
    floor = 8 * torch.finfo(matrix.dtype).eps * norm(matrix).square()
    vector = _start(tokens, matrix.dtype, matrix.device)
    if matrix.shape[0] == 1:  # a batch of one takes a slow path
        times, times_transposed = matrix[0].mv, matrix[0].mT.mv
    else:
        vector = vector.expand(matrix.shape[0], tokens)
        times, times_transposed = (functools.partial(matrix_times, of) for of in (matrix, matrix.mT))
    before, length = torch.zeros_like(vector), torch.zeros_like(vector[..., :1])
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    value = floor
    for step in range(1, tokens + 1):
        image = times(vector)
        diagonal.append(torch.linalg.vector_norm(image, dim=-1, keepdim=True).square())
        image = torch.addcmul(times_transposed(image), diagonal[-1], vector, value=-1)
        image = torch.addcmul(image, length, before, value=-1)
        length = torch.linalg.vector_norm(image, dim=-1, keepdim=True)
        if step in TESTS or (step > TESTS[-1] and step % 3 == 0) or step == tokens:
            value, last = _ritz(torch.cat(diagonal, -1), torch.cat(beside, -1))
            if bool((length[..., 0] * last <= tolerance * value + floor).all()):
                break
        beside.append(length)
        before, vector = vector, image / length.clamp_min(tiny)
    return value.clamp_min(0.0).sqrt().reshape(-1)


def _ritz(diagonal: Float[Tensor, "*N K"], beside: Float[Tensor, "*N J"]) -> tuple[Tensor, Tensor]:
    """Leading eigenvalue of each tridiagonal matrix, and the size of its vector's last entry."""
    values, vectors = torch.linalg.eigh(torch.diag_embed(diagonal) + torch.diag_embed(beside, offset=-1))
    return values[..., -1], vectors[..., -1, -1].abs()
