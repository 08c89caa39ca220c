"""Largest singular values of the centered parts of many small matrices at once."""

# T tokens, N matrices at a time, K Lanczos steps so far

import functools
import math

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from meanmode.sim.observe.token_parts import centered, norm, within

DENSE_TOKENS, EXACT_TOKENS = 12, 32
"""Up to so many tokens all eigenvalues of a normal matrix are as cheap as an iteration: of any, and of fewer
matrices than `SEARCHED`. Up to the second number an iteration goes on until only rounding is left."""


TOGETHER_TOKENS = 128
"""Up to this many tokens, a CPU iterates on several matrices at once: on large ones, products of single
matrices are faster than batched ones."""


WAITING_ENTRIES = {"cpu": 2**22, "cuda": 2**26}
"""Entries of the matrices that wait to be tested together."""


TESTS = (3, 12)
"""Lanczos steps at which convergence is tested, then every third step: matrices of rank one or two need 3,
attention at initialisation 12 to 18."""


FIRST_TEST, BETWEEN_TESTS = 6, 3
"""Steps before the first test of several matrices at once and between tests; those that have converged leave
the iteration."""


SEARCHED, SEARCHES = 512, 4
"""Least number of tridiagonal matrices that are searched together for their largest eigenvalues, and steps of
the search, after which nine in ten are known to single precision."""


class CenteredNorms:
    """|P A P|_2 of matrices that come a few at a time: their convergence is tested together.

    NaN for matrices that are not finite. A caller takes the values once `full`, and in the end.

    Args:
        tolerance: relative residual of the iteration; None uses the square root of the dtype's resolution.
    """

    def __init__(self, tolerance: float | None = None) -> None:
        self._tolerance = tolerance
        self._found: list[Tensor] = []
        # iterations begun, and the factors on the roots of the eigenvalues
        self._begun: list[tuple[_Lanczos, Tensor]] = []

    @property
    def full(self) -> bool:
        """Whether the matrices that wait take as much memory as they may."""
        normals = [begun.first for begun, _ in self._begun]
        entries = WAITING_ENTRIES.get(normals[0].device.type, WAITING_ENTRIES["cuda"]) if normals else 0
        return bool(normals) and sum(map(torch.numel, normals)) >= entries

    def add(self, apart: Float[Tensor, "N T T"]) -> None:
        """Take some matrices, and begin to iterate while a cache holds them.

        Args:
            apart: P A.
        """
        size, tokens = norm(apart), apart.shape[-1]
        finite = torch.isfinite(size)
        factor = torch.where(finite, 1.0, torch.nan).to(size)
        if not bool(finite.all()):
            apart, size = torch.where(finite[:, None, None], apart, 0.0), torch.where(finite, size, 0.0)
        operator = centered(apart.mT).mT if tokens <= EXACT_TOKENS else apart - apart.mean(-1, True)
        size = torch.where(size == 0, 1.0, size)
        if not within(size**2.5):  # what follows works on squares of the singular values
            operator, factor = operator / size[:, None, None], factor * size
        if tokens > TOGETHER_TOKENS and operator.device.type == "cpu":
            self.know(factor * _one_by_one(operator, self._relative(operator)))
            return
        if tokens <= EXACT_TOKENS:
            lanczos = _Lanczos(operator.mT @ operator)
        else:  # a few steps with two matrices cost less than the product of these
            lanczos = _Lanczos(operator.mT.contiguous(), operator)
            lanczos.advance(FIRST_TEST)
        self._begun.append((lanczos, factor))

    def know(self, values: Float[Tensor, " N"]) -> None:
        """Take norms that are known, in place of matrices."""
        self._finish()
        self._found.append(values)

    def values(self) -> Float[Tensor, " N"]:
        """The norms of all matrices since the last call, in their order."""
        self._finish()
        values = torch.cat(self._found)
        self._found.clear()
        return values

    def _relative(self, operator: Tensor) -> float:
        if self._tolerance is not None:
            return self._tolerance
        resolution = torch.finfo(operator.dtype).eps
        return resolution if operator.shape[-1] <= EXACT_TOKENS else resolution**0.5

    def _finish(self) -> None:
        if not self._begun:
            return
        parts, factors = (list(of) for of in zip(*self._begun, strict=True))
        self._begun.clear()
        tokens, count = parts[0].first.shape[-1], sum(len(part.first) for part in parts)
        if tokens <= (EXACT_TOKENS if count < SEARCHED else DENSE_TOKENS):
            value = torch.linalg.eigvalsh(torch.cat([part.first for part in parts]))[:, -1]
        else:
            energy = torch.cat([part.energy for part in parts])
            floor = 8 * torch.finfo(energy.dtype).eps * energy
            value = _converged(parts, self._relative(parts[0].first), floor)
        self._found.append(torch.cat(factors) * value.clamp_min(0.0).sqrt())


def centered_norm(apart: Float[Tensor, "N T T"], tolerance: float | None = None) -> Float[Tensor, " N"]:
    """|P A P|_2 from P A; NaN for matrices that are not finite.

    Args:
        apart: P A.
        tolerance: relative residual of the iteration; None uses the square root of the dtype's resolution.
    """
    norms = CenteredNorms(tolerance)
    norms.add(apart)
    return norms.values()


@functools.lru_cache(maxsize=8)
def start(tokens: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, " T"]:
    """A fixed random unit vector: random, so that no symmetry makes it orthogonal to the leading vector."""
    drawn = torch.randn(tokens, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (drawn / torch.linalg.vector_norm(drawn)).to(device, dtype)


def _one_by_one(operator: Float[Tensor, "N T T"], tolerance: float) -> Float[Tensor, " N"]:
    """Largest singular value of each matrix."""
    begin = start(operator.shape[-1], operator.dtype, operator.device)
    floor = 8 * torch.finfo(operator.dtype).eps * norm(operator).square()
    found = [
        _iterated(one, begin, tolerance, least) for one, least in zip(operator, floor.tolist(), strict=True)
    ]
    return floor.new_tensor(found)


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


class _Lanczos:
    """Lanczos iterations on normal matrices M^T M, all from the same vector.

    The basis is not re-orthogonalised: rounding duplicates Ritz values that have converged but does not move
    the largest, and once a Krylov space is exhausted the iteration continues in another.

    Args:
        first: M^T M, or M^T.
        second: M in the second case.
    """

    def __init__(self, first: Float[Tensor, "N T T"], second: Float[Tensor, "N T T"] | None = None) -> None:
        count, tokens = first.shape[:2]
        self.first, self.second = first, first[:0] if second is None else second
        self.vector = start(tokens, first.dtype, first.device).expand(count, tokens)
        self.before, self.length = torch.zeros_like(self.vector), torch.zeros_like(self.vector[:, :1])
        self.diagonal, self.beside = self.length[:, :0], self.length[:, :0]

    @property
    def energy(self) -> Float[Tensor, " N"]:
        """tr M^T M."""
        if len(self.second):
            return norm(self.second).square()
        return self.first.diagonal(dim1=-2, dim2=-1).sum(-1)

    def keep(self, left: Tensor) -> None:
        """Go on with some of the matrices."""
        if len(left) < len(self.first):
            for name, of in vars(self).items():
                setattr(self, name, of[left] if len(of) else of)

    def advance(self, steps: int) -> None:
        """Make some steps."""
        tiny = torch.finfo(self.first.dtype).tiny
        diagonal, beside = [self.diagonal], [self.beside]
        for _ in range(steps):
            image = torch.bmm(self.vector[:, None], self.first)  # as rows, several times as fast on a CPU
            image = (torch.bmm(image, self.second) if len(self.second) else image)[:, 0]
            diagonal.append((image * self.vector).sum(-1, keepdim=True))
            image = image.addcmul_(diagonal[-1], self.vector, value=-1)
            image = image.addcmul_(self.length, self.before, value=-1)
            self.length = torch.linalg.vector_norm(image, dim=-1, keepdim=True)
            beside.append(self.length)
            self.before, self.vector = self.vector, image / self.length.clamp_min(tiny)
        self.diagonal, self.beside = torch.cat(diagonal, -1), torch.cat(beside, -1)


def iterated(
    normal: Float[Tensor, "N T T"], tolerance: float, floor: Float[Tensor, " N"]
) -> Float[Tensor, " N"]:
    """Largest eigenvalue of each normal matrix M^T M by Lanczos iteration, all at once.

    Args:
        normal: the matrices.
        tolerance: residual relative to the eigenvalue at which the iteration ends.
        floor: residual at which it ends in any case.
    """
    return _converged([_Lanczos(normal)], tolerance, floor)


def _converged(parts: list[_Lanczos], tolerance: float, floor: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Continue iterations until all have converged; matrices that have leave the others."""
    found, left = torch.zeros_like(floor), torch.arange(len(floor), device=floor.device)
    for part in parts:
        part.advance(FIRST_TEST - part.diagonal.shape[-1])
    while True:
        diagonal, beside, length = (
            torch.cat(of)
            for of in zip(*((part.diagonal, part.beside, part.length) for part in parts), strict=True)
        )
        value, last = _leading(diagonal, beside[:, :-1])
        found[left] = value
        more = length[:, 0] * last > tolerance * value + floor[left]
        if not bool(more.any()) or diagonal.shape[-1] >= 2 * parts[0].first.shape[-1]:
            return found
        left = left[more]
        for part, going in zip(parts, more.split([len(part.first) for part in parts]), strict=True):
            part.keep(going.nonzero()[:, 0])
            part.advance(BETWEEN_TESTS)


def _leading(
    diagonal: Float[Tensor, "N K"], beside: Float[Tensor, "N _"]
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Largest eigenvalue of each tridiagonal matrix, and the last entry of its unit eigenvector.

    Many matrices are searched together; a decomposition of each would cost more than its Lanczos iteration.
    """
    if len(diagonal) < SEARCHED:
        return _decomposed(diagonal, beside)
    value, last, settled = _searched(diagonal.T.double(), beside.T.double(), torch.finfo(diagonal.dtype).eps)
    value, last = value.to(diagonal.dtype), last.to(diagonal.dtype)
    rest = (~settled).nonzero()[:, 0]
    if len(rest):
        value[rest], last[rest] = _decomposed(diagonal[rest], beside[rest])
    return value, last


def _decomposed(diagonal: Tensor, beside: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(torch.diag_embed(diagonal) + torch.diag_embed(beside, offset=-1))
    return values[:, -1], vectors[:, -1, -1].abs()


def _searched(
    diagonal: Float[Tensor, "K N"], beside: Float[Tensor, "_ N"], resolution: float
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"], Bool[Tensor, " N"]]:
    """The same by Laguerre's iteration, and whether it has settled; it has not if two eigenvalues are close.

    It descends with third order from the bound tr(T^4)^(1/4), above which all ratios of successive trailing
    minors of T - x are negative; these also give the eigenvector.
    """
    steps, rounding = len(diagonal), torch.finfo(diagonal.dtype).eps
    scale = torch.maximum(diagonal.amax(0), beside.amax(0))
    scale = torch.where(scale > 0, scale, 1.0)
    diagonal, beside = diagonal / scale, beside / scale
    squares = beside.square()
    around = diagonal.square()
    around[1:] += squares
    around[:-1] += squares
    fourth = around.square().sum(0) + 2 * (squares * (diagonal[1:] + diagonal[:-1]).square()).sum(0)
    value = (fourth + 2 * (squares[1:] * squares[:-1]).sum(0)).sqrt().sqrt() * (1 + 4 * rounding)
    down = value
    for _ in range(SEARCHES):
        inverse = 1 / (diagonal[-1] - value).clamp_max(-rounding)
        slope, bend = torch.full_like(value, -1), torch.zeros_like(value)
        first = -inverse
        second = first.square()
        for k in range(steps - 2, -1, -1):
            ratio = torch.addcmul(diagonal[k] - value, squares[k], inverse, value=-1).clamp_max(-rounding)
            weight = squares[k] * inverse.square()
            bend = weight * (bend - 2 * slope.square() * inverse)
            slope = weight * slope - 1
            inverse = 1 / ratio
            share = slope * inverse
            first += share
            second += share.square() - bend * inverse
        before, down = (
            down,
            steps / (first + ((steps - 1) * (steps * second - first.square())).clamp_min(0.0).sqrt()),
        )
        value = value - down
    entry, energy = torch.ones_like(value), torch.ones_like(value)
    ratio = (diagonal[-1] - value).clamp_max(-rounding)
    for k in range(steps - 2, -1, -1):
        entry = entry * ratio / beside[k]
        energy = energy + entry.square()
        ratio = (diagonal[k] - value - squares[k] / ratio).clamp_max(-rounding)
    return scale * value, energy.rsqrt(), down * (down / before) ** 3 <= resolution * value
