"""Exact statistics of attention matrices, computed a few matrices at a time."""

# B batch (after a leading axis of runs in an ensemble), T tokens, D width, H heads,
# N matrices (samples and heads) at a time

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from meanmode.sim.observe.attention_bands import banded_parts
from meanmode.sim.observe.singular_values import centered_norm
from meanmode.sim.observe.token_parts import EPS, centered, need_pair, norm
from meanmode.sim.trunk.attention import Mixer
from meanmode.sim.trunk.linear import dot_products
from meanmode.sim.trunk.precision import single

MATRIX_ENTRIES = {"cpu": 2**18, "cuda": 2**27}
"""Matrix entries formed at a time: few enough for a CPU's cache, enough to fill a GPU."""


WHOLE_TOKENS = 2048
"""Most tokens of a matrix that is formed whole; larger ones are formed a band of rows at a time."""


class AttentionStatistics(NamedTuple):
    """Statistics of a mixer's matrices, mean over heads, each [*B].

    Attributes:
        mu_eff: |P A P|_2, NaN if it was not requested.
        row_div: |A - J A|_F / |A|_F.
        retention: |c(A c(X))|_F / |c(X)|_F.
        leakage: |mu(A c(X))|_F / |c(X)|_F.
    """

    mu_eff: Tensor
    row_div: Tensor
    retention: Tensor
    leakage: Tensor


def at_a_time(entries: int, device: torch.device) -> int:
    """How many matrices of `entries` entries to form at a time on a device; at least one."""
    return max(1, MATRIX_ENTRIES.get(device.type, MATRIX_ENTRIES["cuda"]) // entries)


def attention_statistics(
    mixer: Mixer,
    operands: tuple[Tensor, ...],
    x: Float[Tensor, "*B T D"],
    *,
    singular_value: bool = True,
) -> AttentionStatistics:
    """All statistics of a mixer's matrices on a trunk, from one recomputed matrix per head.

    Beyond `WHOLE_TOKENS` tokens no matrix is formed, only bands of its rows (`attention_bands`), except those
    of `state_space`, whose rows cannot be formed alone.

    Args:
        mixer: the mixer to measure.
        operands: the features its matrices are computed from, from `Mixer.operands`.
        x: the trunk that the mixer reads.
        singular_value: whether to compute mu_eff, the most expensive one; NaN otherwise.

    Raises:
        ValueError: fewer than two tokens.
    """
    need_pair(x)
    tokens, lead, heads = x.shape[-2], x.shape[:-2], mixer.heads
    part = centered(x).reshape(-1, tokens, x.shape[-1])
    part_norms = norm(part).reshape(*lead, 1)
    transposed = part.transpose(-1, -2).contiguous()
    flat = [single(operand).reshape(-1, *operand.shape[-2:]) for operand in operands]
    banded = tokens > WHOLE_TOKENS and type(mixer).rows_of is not Mixer.rows_of
    parts = (_by_bands if banded else _whole)(mixer, flat, transposed, singular_value)
    found = _MatrixParts(*(values.unflatten(0, (*lead, heads)) for values in parts))
    return AttentionStatistics(
        found.singular_value.mean(-1),
        _row_div(found).mean(-1),
        _retention(found, part_norms).mean(-1),
        _leakage(found, part.reshape(x.shape), part_norms).mean(-1),
    )


class _MatrixParts(NamedTuple):
    """Reductions of any number of matrices A: |P A|_F, |P A c(X)|_F, |P A P|_2 and the column means."""

    apart: Tensor
    mixed: Tensor
    singular_value: Tensor
    column_means: Tensor


def _whole(
    mixer: Mixer, operands: list[Tensor], transposed: Float[Tensor, "S D T"], singular_value: bool
) -> _MatrixParts:
    """The reductions of every head's matrix, a few matrices at a time."""
    tokens = transposed.shape[-1]
    of_heads = [operand.unflatten(0, (-1, mixer.heads)) for operand in operands]
    parts = []
    for samples, heads in _chunks(len(transposed), mixer.heads, at_a_time(tokens**2, transposed.device)):
        matrix = mixer.matrix_of(*(operand[samples, heads].flatten(0, 1) for operand in of_heads))
        parts.append(_matrix_parts(matrix, transposed[samples], singular_value=singular_value))
    return _joined(parts)


def _by_bands(
    mixer: Mixer, operands: list[Tensor], transposed: Float[Tensor, "S D T"], singular_value: bool
) -> _MatrixParts:
    """The reductions of every head's matrix, none of which is formed."""
    parts = []
    for index in range(len(operands[0])):
        of_head = [operand[index] for operand in operands]
        found = banded_parts(
            lambda rows, of_head=of_head: mixer.rows_of(rows, *of_head),  # type: ignore[misc]
            transposed[index // mixer.heads],
            singular_value=singular_value,
        )
        parts.append(_MatrixParts(*(part[None] for part in found)))
    return _joined(parts)


def _joined(parts: list[_MatrixParts]) -> _MatrixParts:
    return _MatrixParts(*(torch.cat(values) for values in zip(*parts, strict=True)))


def _chunks(samples: int, heads: int, at_once: int) -> Iterator[tuple[slice, slice]]:
    """Samples with all their heads, or some heads of one sample, so that they share a product with c(X)."""
    rows, columns = max(at_once // heads, 1), -(-heads // -(-heads // min(at_once, heads)))
    for start in range(0, samples, rows):
        for first in range(0, heads, columns):
            yield slice(start, start + rows), slice(first, first + columns)


def _matrix_parts(
    matrix: Float[Tensor, "N T T"],
    transposed: Float[Tensor, "S D T"] | None,
    *,
    singular_value: bool = False,
) -> _MatrixParts:
    """The reductions of matrices; overwrites them. NaN for parts not requested.

    Args:
        matrix: as many of each sample, in its order.
        transposed: c(X)^T of every sample.
        singular_value: whether |P A P|_2 is requested.
    """
    column_means = matrix.mean(-2)
    apart = matrix.sub_(column_means[:, None])
    size = norm(apart)
    missing = torch.full_like(size, torch.nan)
    mixed = missing
    if transposed is not None:
        products = dot_products(apart.view(len(transposed), -1, apart.shape[-1]), transposed)
        mixed = norm(products.view(*apart.shape[:-1], -1))
    return _MatrixParts(size, mixed, centered_norm(apart) if singular_value else missing, column_means)


def _row_div(found: _MatrixParts) -> Tensor:
    scale = found.column_means.shape[-1] ** 0.5
    return found.apart / torch.hypot(
        found.apart, scale * torch.linalg.vector_norm(found.column_means, dim=-1)
    )


def _retention(found: _MatrixParts, part_norms: Tensor) -> Tensor:
    return found.mixed / (part_norms + EPS)


def _leakage(found: _MatrixParts, part: Float[Tensor, "*B T D"], part_norms: Tensor) -> Tensor:
    leaked = found.column_means @ part
    scale = found.column_means.shape[-1] ** 0.5
    return scale * torch.linalg.vector_norm(leaked, dim=-1) / (part_norms + EPS)


def _of_heads(attention: Float[Tensor, "*B H T T"], x: Tensor | None = None) -> _MatrixParts:
    """The reductions of given matrices, which are left as they are."""
    need_pair(attention)
    transposed = None
    if x is not None:
        part = centered(x)[..., None, :, :].expand(*attention.shape[:-1], x.shape[-1])
        transposed = part.reshape(-1, *x.shape[-2:]).transpose(-1, -2)
    matrix = single(attention).reshape(-1, *attention.shape[-2:]).clone()
    found = _matrix_parts(matrix, transposed)
    return _MatrixParts(*(values.unflatten(0, attention.shape[:-2]) for values in found))


def _part_norms(x: Tensor) -> Tensor:
    return norm(centered(x))[..., None]


def row_div(attention: Float[Tensor, "*B H T T"]) -> Float[Tensor, "*B"]:
    """|A - J A|_F / |A|_F: how far the rows of the attention matrix differ, mean over heads."""
    return _row_div(_of_heads(attention)).mean(-1)


def retention(attention: Float[Tensor, "*B H T T"], x: Float[Tensor, "*B T D"]) -> Float[Tensor, "*B"]:
    """Ret(c<-c) = |c(A c(X))|_F / (|c(X)|_F + eps), mean over heads."""
    return _retention(_of_heads(attention, x), _part_norms(x)).mean(-1)


def leakage(attention: Float[Tensor, "*B H T T"], x: Float[Tensor, "*B T D"]) -> Float[Tensor, "*B"]:
    """Leakage(mu<-c) = |mu(A c(X))|_F / (|c(X)|_F + eps), mean over heads (law P1's leakage term)."""
    return _leakage(_of_heads(attention), centered(x), _part_norms(x)).mean(-1)


def mu_eff(attention: Float[Tensor, "*B H T T"], *, tolerance: float | None = None) -> Float[Tensor, "*B"]:
    """|P A P|_2, the operator norm on the centered part (law P2, Eq. 4), mean over heads.

    Dense up to `DENSE_TOKENS` tokens; above, Lanczos iteration on (P A P)^T (P A P) until the residual of
    every head's leading eigenpair is below `tolerance` times its value, for at most T steps. NaN for matrices
    that are not finite.

    Args:
        attention: attention matrices.
        tolerance: relative residual; None uses the square root of the dtype's resolution. The result never
            exceeds the norm and is off by at most about the residual. If the leading singular value is well
            separated, the error is the squared residual over the gap, at the dtype's resolution: so for
            random matrices, but not for (1 - l) I + l A at small l, where errors of 4e-4 occur.

    Raises:
        ValueError: fewer than two tokens.
    """
    need_pair(attention)
    matrix = single(attention).reshape(-1, *attention.shape[-2:])
    value = centered_norm(matrix - matrix.mean(-2, keepdim=True), tolerance)
    return value.unflatten(0, attention.shape[:-2]).mean(-1)
