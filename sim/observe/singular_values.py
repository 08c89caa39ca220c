"""Largest singular values of the centered parts of many small matrices at once."""

# T tokens, N matrices at a time, K Lanczos steps so far

import functools
import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from meanmode.sim.observe.token_parts import centered, norm, within

DENSE_TOKENS = 32
"""Up to this many tokens all eigenvalues of the normal matrix are as cheap as an iteration."""


TOGETHER_TOKENS = 128
"""Up to this many tokens, a CPU iterates on several matrices at once: on large ones, products of single
matrices are faster than batched ones."""


TESTS = (3, 12)
"""Lanczos steps at which convergence is tested, then every third step: matrices of rank one or two need 3,
attention at initialisation 12 to 18."""


FIRST_TEST = 15
"""First test of several matrices at once, of which the slowest decides and where a test costs many steps."""


def centered_norm(apart: Float[Tensor, "N T T"], tolerance: float | None = None) -> Float[Tensor, " N"]:
    """|P A P|_2 from P A; NaN for matrices that are not finite.

    Args:
        apart: P A.
        tolerance: relative residual of the iteration; None uses the square root of the dtype's resolution.
    """
    finite = torch.isfinite(norm(apart))
    if not bool(finite.all()):
        apart = torch.where(finite[:, None, None], apart, 0.0)
    operator = centered(apart.mT).mT if apart.shape[-1] <= DENSE_TOKENS else apart - apart.mean(-1, True)
    size = norm(apart)
    size = torch.where(size == 0, 1.0, size)
    if within(size**2.5):  # what follows works on squares of the singular values
        value = _largest(operator, tolerance)
    else:
        value = size * _largest(operator / size[:, None, None], tolerance)
    return torch.where(finite, value, torch.nan)


def _largest(operator: Float[Tensor, "N T T"], tolerance: float | None) -> Float[Tensor, " N"]:
    tokens, resolution = operator.shape[-1], torch.finfo(operator.dtype).eps
    if tokens <= DENSE_TOKENS:
        return torch.linalg.eigvalsh(operator.mT @ operator)[:, -1].clamp_min(0.0).sqrt()
    floor = 8 * resolution * norm(operator).square()
    tolerance = resolution**0.5 if tolerance is None else tolerance
    if tokens <= TOGETHER_TOKENS or operator.device.type != "cpu":
        return iterated(operator.mT @ operator, tolerance, floor).clamp_min(0.0).sqrt()
    begin = start(tokens, operator.dtype, operator.device)
    found = [
        _iterated(one, begin, tolerance, least) for one, least in zip(operator, floor.tolist(), strict=True)
    ]
    return floor.new_tensor(found)


def _times(matrix: Float[Tensor, "N T T"], vector: Float[Tensor, "N T"]) -> Float[Tensor, "N T"]:
    """Symmetric matrices times their vectors; as rows this is several times as fast on a CPU."""
    return torch.bmm(vector[:, None], matrix)[:, 0]


@functools.lru_cache(maxsize=8)
def start(tokens: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, " T"]:
    """A fixed random unit vector: random, so that no symmetry makes it orthogonal to the leading vector."""
    drawn = torch.randn(tokens, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (drawn / torch.linalg.vector_norm(drawn)).to(device, dtype)


def _tested(step: int, tokens: int) -> bool:
    return step in TESTS or (step > TESTS[-1] and step % 3 == 0) or step == tokens


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


def iterated(
    normal: Float[Tensor, "N T T"], tolerance: float, floor: Float[Tensor, " N"]
) -> Float[Tensor, " N"]:
    """Largest eigenvalue of each normal matrix M^T M by Lanczos iteration, all at once.

    The basis is not re-orthogonalised: rounding duplicates Ritz values that have converged but does not move
    the largest, and once a Krylov space is exhausted the iteration continues in another.

    Args:
        normal: the matrices.
        tolerance: residual relative to the eigenvalue at which the iteration ends.
        floor: residual at which it ends in any case.
    """
    tokens, tiny = normal.shape[-1], torch.finfo(normal.dtype).tiny
    vector = start(tokens, normal.dtype, normal.device).expand(len(normal), tokens)
    before, length = torch.zeros_like(vector), torch.zeros_like(vector[:, :1])
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    value = torch.zeros_like(floor)
    for step in range(1, tokens + 1):
        image = _times(normal, vector)
        diagonal.append((image * vector).sum(-1, keepdim=True))
        image = image.addcmul_(diagonal[-1], vector, value=-1).addcmul_(length, before, value=-1)
        length = torch.linalg.vector_norm(image, dim=-1, keepdim=True)
        if (step >= FIRST_TEST and step % 3 == 0) or step == tokens:
            core = torch.diag_embed(torch.cat(diagonal, -1))
            if beside:
                core = core + torch.diag_embed(torch.cat(beside, -1), offset=-1)
            values, vectors = torch.linalg.eigh(core)
            value, last = values[:, -1], vectors[:, -1, -1].abs()
            if bool((length[:, 0] * last <= tolerance * value + floor).all()):
                break
        beside.append(length)
        before, vector = vector, image / length.clamp_min(tiny)
    return value
