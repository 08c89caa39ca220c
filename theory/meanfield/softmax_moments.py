"""Second moments of softmax attention rows with Gaussian logits, by exact quadrature (no fitted constant)."""

# U outer quadrature points

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.special import roots_gegenbauer, roots_hermitenorm

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


def _head_nodes(head_width: int | None) -> tuple[Array, Array]:
    """Nodes and weights of one logit sqrt(d_h) cos(angle) between random directions; None is Gaussian.

    QK-Norm puts queries and keys on a sphere, so the logits of a finite head have exactly this distribution,
    of unit variance.
    """
    if head_width is None:
        return _normal_nodes(NODES)
    if head_width == 1:
        return np.array([-1.0, 1.0]), np.array([0.5, 0.5])
    nodes, weights = roots_gegenbauer(NODES, (head_width - 2) / 2)
    return np.sqrt(head_width) * nodes, weights / weights.sum()


def row_square(tokens: int, variance: float, head_width: int | None = None) -> float:
    """S_d = E sum_j a_ij^2 of one softmax row over `tokens` independent logits of this variance."""
    std = np.sqrt(variance)
    z, weight = _head_nodes(head_width)
    w = np.exp(std * z - variance / 2)
    u, step = _outer_points(tokens, std)
    decay = np.exp(-np.outer(u, w))
    inner = decay @ (weight * w**2)
    laplace = decay @ weight
    return float(tokens * step * np.sum(u**2 * inner * laplace ** (tokens - 1)))


def row_overlap(tokens: int, variance: float, correlation: float) -> float:
    """S_o = E sum_j a_ij a_i'j of two softmax rows whose logits N(0, variance) have this correlation."""
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


def row_entropy(tokens: int, variance: float, head_width: int | None = None) -> float:
    """E H = -E sum_j a_ij ln a_ij of one softmax row over `tokens` independent logits s of this variance.

    H = ln Z - sum_j a_ij s_j with Z = sum_j e^s_j. The expectations are Laplace integrals: E ln Z by
    Frullani's, and a_ij as in `row_square`. With many tokens H = ln T - variance / 2. The quadrature is for
    the logits of QK-Norm, whose variance is 1 - c.

    Raises:
        ValueError: fewer than two tokens, or a variance outside of 0 to 1.
    """
    if tokens < 2:
        raise ValueError(f"tokens must be at least 2, got {tokens}")
    if not 0 <= variance <= 1:
        raise ValueError(f"the variance of the logits of QK-Norm is at most 1, got {variance}")
    std = np.sqrt(variance)
    z, weight = _head_nodes(head_width)
    w = np.exp(std * z - variance / 2)
    u, step = _outer_points(tokens, std)
    decay = np.exp(-np.outer(u, w))
    laplace, inner = decay @ weight, decay @ (weight * w * std * z)
    log_sum = np.log(tokens) + step * np.sum(np.exp(-u * tokens) - laplace**tokens) + variance / 2
    return float(log_sum - tokens * step * np.sum(u * inner * laplace ** (tokens - 1)))


def freezing_scale(tokens: int, cosine: float, head_width: int) -> float:
    """Factor on the scores at which softmax rows freeze onto a few tokens, from the random energy model.

    Among T scores sqrt(d_h) x of random directions the largest has (1 - x^2)^((d_h - 3) / 2) = 1 / T. A row
    freezes where the maximum of the exponent g sqrt(d_h) x + (d_h - 3) / 2 ln(1 - x^2) gets there, so that
    g sqrt(1 - c) = (d_h - 3) x / ((1 - x^2) sqrt(d_h)), of which sqrt(2 ln T) is the limit of wide heads
    (arXiv:2505.24333). Heuristic for c > 0: the part that differs along a row keeps its distribution.

    Raises:
        ValueError: fewer than two tokens, heads narrower than 4, or a cosine outside of 0 to 1.
    """
    if tokens < 2 or head_width < 4 or not 0 <= cosine <= 1:
        raise ValueError(
            f"freezing needs 2 tokens, heads of width 4 and a cosine from 0 to 1, got {tokens}, {head_width} "
            f"and {cosine}"
        )
    if cosine == 1:
        return np.inf
    closed = tokens ** (-2 / (head_width - 3))
    scale = (head_width - 3) * np.sqrt(1 - closed) / (closed * np.sqrt(head_width))
    return float(scale / np.sqrt(1 - cosine))


@lru_cache(maxsize=64)
def softmax_table(tokens: int, head_width: int | None) -> CubicSpline:
    """(S_d - 1/T) / (1 - c) and (S_d - S_o) / (1 - c)^2 as functions of the token cosine, cached per process.

    Both stay finite at c = 1, where the softmax is linear. With QK-Norm the softmax sees logits of variance
    1 - c with correlation c between rows, whatever the weights; the rest of a logit is constant along its row
    and cancels. S_d uses the distribution of a finite head, exact at c = 0 and scaled with the variance
    elsewhere (heuristic). In S_o the terms of order 1/d_h cancel at c = 0 and are negligible elsewhere, so
    S_o uses Gaussian logits.

    Raises:
        ValueError: fewer than two tokens.
    """
    if tokens < 2:
        raise ValueError(f"tokens must be at least 2, got {tokens}")
    cosines = np.linspace(-1 / (tokens - 1), 1.0, TABLE_COSINES)
    rows = []
    for c in cosines[:-1]:
        square, overlap = row_square(tokens, 1 - c, head_width), row_overlap(tokens, 1 - c, c)
        rows.append(((square - 1 / tokens) / (1 - c), (square - overlap) / (1 - c) ** 2))
    rows.append(((1 - 1 / tokens) / tokens, 2 * rows[-1][1] - rows[-2][1]))
    return CubicSpline(cosines, np.array(rows))
