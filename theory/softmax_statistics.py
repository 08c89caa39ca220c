"""Second moments of softmax attention rows with Gaussian logits, by exact quadrature (no fitted constant)."""

# C cosines of the table, U outer quadrature points, G Gauss-Hermite nodes

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.special import roots_hermitenorm

Array = NDArray[np.float64]

NODES = 64
OUTER = 150
TABLE_COSINES = 41


def _normal_nodes(count: int) -> tuple[Array, Array]:
    """Nodes and weights of the standard normal expectation."""
    nodes, weights = roots_hermitenorm(count)
    return nodes, weights / weights.sum()


def _outer_points(tokens: int, std: float) -> tuple[Array, float]:
    """Points u = e^tau and the step in tau; 1/S^2 = int u e^(-uS) du makes a softmax a Laplace transform."""
    tau = np.linspace(-np.log(tokens) - 17, -np.log(tokens) + 5 + 3 * std, OUTER)
    return np.exp(tau), tau[1] - tau[0]


def row_square(tokens: int, variance: float) -> float:
    """E sum_j a_ij^2 of one softmax row over `tokens` independent N(0, variance) logits (S_d)."""
    std = np.sqrt(variance)
    z, weight = _normal_nodes(NODES)
    w = np.exp(std * z - variance / 2)
    u, step = _outer_points(tokens, std)
    decay = np.exp(-np.outer(u, w))
    inner = decay @ (weight * w**2)
    laplace = decay @ weight
    return float(tokens * step * np.sum(u**2 * inner * laplace ** (tokens - 1)))


def row_overlap(tokens: int, variance: float, correlation: float) -> float:
    """E sum_j a_ij a_i'j of two softmax rows whose logits N(0, variance) have this correlation (S_o)."""
    std = np.sqrt(variance)
    z, weight = _normal_nodes(NODES)
    u, step = _outer_points(tokens, std)
    first = np.exp(std * z - variance / 2)
    partner = correlation * z[:, None] + np.sqrt(max(0.0, 1 - correlation**2)) * z[None, :]
    second = np.exp(std * partner - variance / 2)
    decay_first = np.exp(-np.outer(u, first))
    decay_second = np.exp(-u[:, None, None] * second[None])
    laplace = (decay_first * weight) @ (decay_second @ weight).T
    inner = (decay_first * weight * first) @ ((decay_second * second[None]) @ weight).T
    return float(tokens * step**2 * np.sum(np.outer(u, u) * inner * laplace ** (tokens - 1)))


def _row_overlap_curvature(tokens: int, variance: float, correlation: float) -> float:
    """Second derivative of `row_overlap` in the correlation at fixed variance, by a central difference."""
    span = 0.04
    middle = float(np.clip(correlation, -1 + span, 1 - span))
    low, mid, high = (row_overlap(tokens, variance, middle + shift) for shift in (-span, 0.0, span))
    return (low - 2 * mid + high) / span**2


@dataclass(frozen=True, kw_only=True, slots=True)
class SoftmaxStatistics:
    """Attention-row moments as functions of the token cosine c, for one token count.

    With QK-Norm the softmax sees logits of variance 1 - c whose rows correlate by c, whatever the weights,
    the width and the number of heads (the rest of the logit is constant along a row and drops out).
    """

    tokens: int
    _table: CubicSpline

    def __call__(self, cosine: Array) -> tuple[Array, Array, Array]:
        """S_d, S_o and the second derivative of S_o in the row correlation, at each cosine."""
        cosine = np.clip(cosine, -1 / (self.tokens - 1), 1.0)
        concentration, divergence, curvature = np.moveaxis(self._table(cosine), -1, 0)
        square = 1 / self.tokens + (1 - cosine) * concentration
        return square, square - (1 - cosine) ** 2 * divergence, (1 - cosine) ** 2 * curvature


@lru_cache(maxsize=64)
def softmax_statistics(tokens: int) -> SoftmaxStatistics:
    """The tabulated attention-row moments for `tokens` tokens; computed once per process.

    Tabulated are (S_d - 1/T) / (1 - c), (S_d - S_o) / (1 - c)^2 and S_o'' / (1 - c)^2, which stay finite at c
    = 1: there the softmax is linear, and the first two tend to (1 - 1/T) / T.

    Raises:
        ValueError: fewer than two tokens.
    """
    if tokens < 2:
        raise ValueError(f"tokens must be at least 2, got {tokens}")
    least = -1 / (tokens - 1)
    cosines = np.linspace(least, 1.0, TABLE_COSINES)[:-1]
    rows = []
    for c in cosines:
        square, overlap = row_square(tokens, 1 - c), row_overlap(tokens, 1 - c, c)
        curvature = _row_overlap_curvature(tokens, 1 - c, c)
        rows.append(
            ((square - 1 / tokens) / (1 - c), (square - overlap) / (1 - c) ** 2, curvature / (1 - c) ** 2)
        )
    linear = (1 - 1 / tokens) / tokens
    rows.append((linear, linear, 2 * rows[-1][2] - rows[-2][2]))
    return SoftmaxStatistics(tokens=tokens, _table=CubicSpline([*cosines, 1.0], np.array(rows)))
