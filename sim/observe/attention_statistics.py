"""Exact statistics of attention matrices, computed a few matrices at a time."""

# B batch (after a leading axis of runs in an ensemble), T tokens, D width, H heads,
# N matrices (samples and heads) at a time

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from meanmode.sim.observe.attention_bands import banded_parts
from meanmode.sim.observe.token_parts import EPS, centered, need_pair, norm, within
from meanmode.sim.trunk.attention import Mixer
from meanmode.sim.trunk.linear import dot_products, matrix_times
from meanmode.sim.trunk.precision import single

DENSE_TOKENS = 32
"""Up to this many tokens a dense singular value decomposition is as cheap as an iteration."""


TESTS = (3, 12)
"""Lanczos steps at which convergence is tested, then every third step: matrices of rank one or two need 3,
attention at initialisation 12 to 18."""


MATRIX_ENTRIES = {"cpu": 2**17, "cuda": 2**27}
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
    mixer: Mixer, operands: tuple[Tensor, ...], x: Float[Tensor, "*B T D"], *, singular_value: bool = True
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
    shape = (*lead, heads)
    found = _MatrixParts(*(torch.cat(values).unflatten(0, shape) for values in zip(*parts, strict=True)))
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
) -> Iterator[_MatrixParts]:
    """The reductions of every head's matrix, a few matrices at a time."""
    tokens, device = transposed.shape[-1], transposed.device
    for chunk in _chunks(len(operands[0]), at_a_time(tokens * tokens, device)):
        if chunk.stop - chunk.start == 1:
            samples: slice | Tensor = slice(chunk.start // mixer.heads, chunk.start // mixer.heads + 1)
        else:
            samples = torch.arange(chunk.start, chunk.stop, device=device) // mixer.heads
        matrix = mixer.matrix_of(*(operand[chunk] for operand in operands))
        yield _matrix_parts(matrix, transposed[samples], singular_value=singular_value)


def _by_bands(
    mixer: Mixer, operands: list[Tensor], transposed: Float[Tensor, "S D T"], singular_value: bool
) -> Iterator[_MatrixParts]:
    """The reductions of every head's matrix, none of which is formed."""
    for index in range(len(operands[0])):
        of_head = [operand[index] for operand in operands]
        found = banded_parts(
            lambda rows, of_head=of_head: mixer.rows_of(rows, *of_head),  # type: ignore[misc]
            transposed[index // mixer.heads],
            singular_value=singular_value,
        )
        yield _MatrixParts(*(value[None] for value in found))


def _chunks(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _matrix_parts(
    matrix: Float[Tensor, "N T T"], transposed: Float[Tensor, "N D T"] | None, *, singular_value: bool
) -> _MatrixParts:
    """The reductions of matrices, given c(X)^T; overwrites the matrices. NaN for parts not requested."""
    column_means = matrix.mean(-2)
    apart = matrix.sub_(column_means[:, None])
    size = norm(apart)
    missing = torch.full_like(size, torch.nan)
    return _MatrixParts(
        size,
        missing if transposed is None else norm(dot_products(apart, transposed)),
        _centered_norm(apart) if singular_value else missing,
        column_means,
    )


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
    found = _matrix_parts(matrix, transposed, singular_value=False)
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
    value = _centered_norm(matrix - matrix.mean(-2, keepdim=True), tolerance)
    return value.unflatten(0, attention.shape[:-2]).mean(-1)


def _centered_norm(apart: Float[Tensor, "N T T"], tolerance: float | None = None) -> Float[Tensor, " N"]:
    """|P A P|_2 from P A."""
    finite = torch.isfinite(norm(apart))
    if not bool(finite.all()):
        apart = torch.where(finite[:, None, None], apart, 0.0)
    if apart.shape[-1] <= DENSE_TOKENS:
        value = torch.linalg.svdvals(centered(apart.transpose(-1, -2)))[:, 0]
    else:
        tolerance = torch.finfo(apart.dtype).eps ** 0.5 if tolerance is None else tolerance
        operator, size = apart - apart.mean(-1, keepdim=True), norm(apart)
        size = torch.where(size == 0, 1.0, size)
        if within(size**2.5):  # the iteration works on squares of the singular values
            value = _leading_singular_value(operator, tolerance)
        else:
            value = size * _leading_singular_value(operator / size[:, None, None], tolerance)
    return torch.where(finite, value, torch.nan)


@functools.lru_cache(maxsize=8)
def _start(tokens: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A fixed random unit vector: random, so that no symmetry makes it orthogonal to the leading vector."""
    drawn = torch.randn(tokens, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (drawn / torch.linalg.vector_norm(drawn)).to(device, dtype)


def _tested(step: int, tokens: int) -> bool:
    return step in TESTS or (step > TESTS[-1] and step % 3 == 0) or step == tokens


def _leading_singular_value(matrix: Float[Tensor, "N T T"], tolerance: float) -> Float[Tensor, " N"]:
    """Largest singular value of each matrix by Lanczos iteration on its normal matrix.

    The basis is not re-orthogonalised: rounding duplicates Ritz values that have converged but does not move
    the largest, and once a Krylov space is exhausted the iteration continues in another.
    """
    floor = 8 * torch.finfo(matrix.dtype).eps * norm(matrix).square()
    start = _start(matrix.shape[-1], matrix.dtype, matrix.device)
    if matrix.device.type == "cpu":
        found = [
            _iterated(one, start, tolerance, least) for one, least in zip(matrix, floor.tolist(), strict=True)
        ]
        return floor.new_tensor(found)
    return _iterated_together(matrix, start, tolerance, floor)


def _iterated(
    matrix: Float[Tensor, "T T"], start: Float[Tensor, " T"], tolerance: float, floor: float
) -> float:
    """One matrix, with scalars in Python: on a CPU, call overhead exceeds the arithmetic on short vectors."""
    transposed, tokens = matrix.mT, len(start)
    vector, before, length = start, start, 0.0
    diagonal: list[float] = []
    beside: list[float] = []
    value = 0.0
    for step in range(1, tokens + 1):
        image = matrix.mv(vector)
        ritz = image.dot(image).item()
        image = torch.addmv(before, transposed, image, beta=-length).add_(vector, alpha=-ritz)
        diagonal.append(ritz)
        length = image.dot(image).item() ** 0.5
        if _tested(step, tokens) or length == 0:
            values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(beside, -1))
            value = values[-1]
            if length * abs(vectors[-1, -1]) <= tolerance * value + floor:
                break
        beside.append(length)
        before, vector = vector, image.div_(length)
    return math.sqrt(max(value, 0.0))


def _iterated_together(
    matrix: Float[Tensor, "N T T"], start: Float[Tensor, " T"], tolerance: float, floor: Float[Tensor, " N"]
) -> Float[Tensor, " N"]:
    """All matrices at once, for a GPU."""
    tokens, tiny = matrix.shape[-1], torch.finfo(matrix.dtype).tiny
    vector = start.expand(len(matrix), tokens)
    before, length = torch.zeros_like(vector), torch.zeros_like(vector[:, :1])
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    value = torch.zeros_like(floor)
    for step in range(1, tokens + 1):
        image = matrix_times(matrix, vector)
        diagonal.append(torch.linalg.vector_norm(image, dim=-1, keepdim=True).square())
        image = torch.addcmul(matrix_times(matrix.mT, image), diagonal[-1], vector, value=-1)
        image = torch.addcmul(image, length, before, value=-1)
        length = torch.linalg.vector_norm(image, dim=-1, keepdim=True)
        if _tested(step, tokens):
            core = torch.diag_embed(torch.cat(diagonal, -1))
            core = core + torch.diag_embed(torch.cat(beside, -1), offset=-1) if beside else core
            values, vectors = torch.linalg.eigh(core)
            value, last = values[:, -1], vectors[:, -1, -1].abs()
            if bool((length[:, 0] * last <= tolerance * value + floor).all()):
                break
        beside.append(length)
        before, vector = vector, image / length.clamp_min(tiny)
    return value.clamp_min(0.0).sqrt()
