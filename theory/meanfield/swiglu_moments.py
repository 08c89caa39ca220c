"""Moments of SwiGLU hidden units over random weights: pair kernel and fluctuations."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.polynomial import Polynomial
from numpy.polynomial.hermite_e import hermegauss, hermevander
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.special import expit, gammaln

Array = NDArray[np.float64]
HERMITE_ORDERS = 80
TABLE_COSINES = 41


def _silu(x: Array) -> Array:
    return x * expit(x)


def _silu_slope(x: Array) -> Array:
    gate = expit(x)
    return gate * (1 + x * (1 - gate))


def _nodes(count: int) -> tuple[Array, Array]:
    nodes, weights = hermegauss(count)
    return nodes, weights / weights.sum()


def _hermite_modes(values: Array, nodes: Array, weights: Array) -> Array:
    """Normalised Hermite coefficients of a function sampled at the nodes."""
    norms = np.exp(-0.5 * gammaln(np.arange(HERMITE_ORDERS) + 1))
    return (hermevander(nodes, HERMITE_ORDERS - 1) * norms).T @ (weights * values)


def _kernel(first: Array, second: Array, scale: float) -> Polynomial:
    return Polynomial(first * second).trim(1e-15 * scale)


@lru_cache(maxsize=64)
def silu_kernel(std: float) -> Polynomial:
    """E[silu(std u) silu(std u')] as a power series in the correlation of the standard normal pair (u, u').

    By Mehler's formula the coefficient of c^n is the squared n-th normalised Hermite coefficient of
    silu(std .). Value, derivatives and limits are exact up to the truncation, 1e-15 of the value at c = 0.
    """
    nodes, weights = _nodes(2 * HERMITE_ORDERS)
    modes = _hermite_modes(_silu(std * nodes), nodes, weights)
    return _kernel(modes, modes, modes[0] ** 2)


@lru_cache(maxsize=64)
def sigmoid_kernel(std: float) -> Polynomial:
    """E[sigmoid(std u) sigmoid(std u')], as `silu_kernel`: the kernel of the gates of gated attention."""
    nodes, weights = _nodes(2 * HERMITE_ORDERS)
    modes = _hermite_modes(expit(std * nodes), nodes, weights)
    return _kernel(modes, modes, modes[0] ** 2)


@lru_cache(maxsize=64)
def slope_kernel(std: float) -> Polynomial:
    """E[silu'(std u) silu'(std u')] as a power series in the correlation, for the backward pass."""
    nodes, weights = _nodes(2 * HERMITE_ORDERS)
    modes = _hermite_modes(_silu_slope(std * nodes), nodes, weights)
    return _kernel(modes, modes, modes[0] ** 2)


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitFluctuations:
    """Relative covariances over hidden units h = silu(g) v, to be divided by the number of units r D.

    Attributes:
        mean: variance of the energy of the token mean.
        mean_centered: covariance of the energies of the mean and the centered part.
        centered: variance of the energy of the centered part.
        pair_token: covariance of the product of two tokens with the energy of one of them.
        token: variance of the energy of one token.
        token_token: covariance of the energies of two tokens.
    """

    mean: Array
    mean_centered: Array
    centered: Array
    pair_token: Array
    token: Array
    token_token: Array


@lru_cache(maxsize=64)
def _fluctuation_table(std: float) -> CubicSpline:
    """The six fluctuations over the pair cosine; common and own part of a gate are integrated separately."""
    nodes, weights = _nodes(2 * HERMITE_ORDERS)
    silu = _silu(std * nodes)
    single, double, triple = (_hermite_modes(silu**power, nodes, weights) for power in (1, 2, 3))
    triple_single, double_double = Polynomial(triple * single), Polynomial(double * double)
    kernel = silu_kernel(std)
    energy, fourth = float(kernel(1.0)), float(weights @ silu**4)
    cosines = np.linspace(0, 1, TABLE_COSINES)
    rows: list[list[float]] = []
    for c in cosines:
        gate = std * (np.sqrt(c) * nodes[:, None] + np.sqrt(1 - c) * nodes[None])
        first, second = _silu(gate) @ weights, _silu(gate) ** 2 @ weights
        common, spread, own = first**2, c * (second - first**2), (1 - c) * second
        mean_energy, centered_energy = weights @ common, weights @ (spread + own)
        if c < 1:
            part = [
                (weights @ (3 * common * spread + common * own)) / (mean_energy * centered_energy) - 1,
                (weights @ (3 * spread**2 + 2 * spread * own + own**2)) / centered_energy**2 - 1,
            ]
        else:
            part = [2 * rows[-1][column] - rows[-2][column] for column in (1, 2)]
        at = float(kernel(c))
        rows.append(
            [
                float(3 * (weights @ common**2) / mean_energy**2 - 1),
                *part,
                3 * float(triple_single(c)) / (at * energy) - 1,
                3 * fourth / energy**2 - 1,
                (1 + 2 * c**2) * float(double_double(c)) / energy**2 - 1,
            ]
        )
    return CubicSpline(cosines, np.array(rows))


def unit_fluctuations(std: float, cosine: Array) -> UnitFluctuations:
    """Fluctuations of hidden units at each pair cosine; `std` is the standard deviation of their gates."""
    columns = np.moveaxis(_fluctuation_table(std)(np.clip(cosine, 0, 1)), -1, 0)
    names = ("mean", "mean_centered", "centered", "pair_token", "token", "token_token")
    return UnitFluctuations(**dict(zip(names, columns, strict=True)))


@lru_cache(maxsize=64)
def _kurtosis_table(std: float) -> CubicSpline:
    nodes, weights = _nodes(48)
    cosines = np.linspace(0, 1 - 1e-6, TABLE_COSINES)
    rows = []
    for c in cosines:
        gate = std * (np.sqrt(c) * nodes[:, None] + np.sqrt(1 - c) * nodes[None])
        first = _silu(gate) @ weights
        spread = ((_silu(gate) - first[:, None]) ** 2) @ weights
        energy, own = spread + first**2, 1 - c
        once = weights @ (own * energy + c * spread)
        twice = weights @ (own**2 * energy**2 + 2 * own * c * energy * spread + 3 * c**2 * spread**2)
        rows.append(twice / once**2)
    return CubicSpline(cosines, np.array(rows))


def unit_kurtosis(std: float, cosine: Array) -> Array:
    """E[Var(h | common)^2] / (E Var(h | common))^2 over units; the variance is over the tokens' own parts."""
    return np.asarray(_kurtosis_table(std)(np.clip(cosine, 0, 1)))
