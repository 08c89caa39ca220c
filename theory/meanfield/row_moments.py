"""Row moments of the token mixers: all that the mean-field recursion needs to know about attention."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.polynomial import Polynomial
from numpy.polynomial.hermite_e import hermegauss, hermevander
from numpy.typing import NDArray
from scipy.special import gammaln

from meanmode.theory.meanfield.softmax_moments import softmax_table

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class RowMoments:
    """Moments of the rows of a row-stochastic mixer, for tokens with one common pair cosine.

    Attributes:
        square: S_d = E sum_j a_ij^2 of one row.
        overlap: S_o = E sum_j a_ij a_i'j of two rows.
        square_response: share of the spread of the pair cosines that enters the energy of a mixed token.
        overlap_response: share of it that enters the product of a pair of mixed tokens.
    """

    square: Array
    overlap: Array
    square_response: Array
    overlap_response: Array


Rows = Callable[[Array], RowMoments]

ATTENTIONS = ("softmax", "uniform", "linear")
"""The mixers whose row moments are known; all rows of one have the same distribution."""


def attention_of(mixer: str) -> str:
    """Name of the attention A in a mixer e I + l A."""
    return "softmax" if mixer in ("lazy", "a_minus_i", "i_minus_a") else mixer


@lru_cache(maxsize=64)
def row_moments(mixer: str, tokens: int, head_width: int) -> Rows:
    """Row moments of a mixer as a function of the pair cosine, cached per process.

    softmax: exact quadrature; tokens attend more to the tokens they resemble. uniform: a_ij = 1/T. linear:
    a_ij proportional to phi(q_i) . phi(k_j) with phi = elu + 1 on normalised features, to leading order in
    1/d_h.

    Raises:
        ValueError: a mixer whose row moments are not known.
    """
    if mixer == "softmax":
        return _softmax_rows(tokens, head_width)
    if mixer == "uniform":
        return _uniform_rows(tokens)
    if mixer == "linear":
        return _linear_rows(tokens, head_width)
    raise ValueError(f"no theory for the mixer {mixer!r}: choose one of {', '.join(ATTENTIONS)}")


def _softmax_rows(tokens: int, head_width: int) -> Rows:
    table = softmax_table(tokens, head_width)

    def moments(cosine: Array) -> RowMoments:
        cosine = np.clip(cosine, -1 / (tokens - 1), 1.0)
        concentration, divergence = np.moveaxis(table(cosine), -1, 0)
        square = 1 / tokens + (1 - cosine) * concentration
        overlap = square - (1 - cosine) ** 2 * divergence
        return RowMoments(
            square=square,
            overlap=overlap,
            square_response=1 - square,
            overlap_response=(1 - overlap) * cosine,
        )

    return moments


def _uniform_rows(tokens: int) -> Rows:
    def moments(cosine: Array) -> RowMoments:
        even, none = np.full_like(cosine, 1 / tokens), np.zeros_like(cosine)
        return RowMoments(square=even, overlap=even, square_response=none, overlap_response=none)

    return moments


FEATURE_ORDERS = 60


def _linear_rows(tokens: int, head_width: int) -> Rows:
    """psi(c) = E phi(u) phi(u') by Mehler's series; QK-Norm removes the second Hermite mode."""
    nodes, weights = hermegauss(180)
    weights = weights / weights.sum()
    feature = np.where(nodes > 0, nodes + 1, np.exp(np.minimum(nodes, 0)))
    norms = np.exp(-0.5 * gammaln(np.arange(FEATURE_ORDERS) + 1))
    modes = (hermevander(nodes, FEATURE_ORDERS - 1) * norms).T @ (weights * feature)
    energies = modes**2
    energies[-1] += weights @ feature**2 - energies.sum()  # the truncated tail; makes psi(1) exact
    psi = Polynomial(energies)
    slope = psi.deriv()
    scale = head_width * modes[0] ** 4

    def moments(cosine: Array) -> RowMoments:
        top, here = psi(1.0), psi(cosine)
        silent = modes[0] ** 2 * modes[2] ** 2 * (1 - cosine**2)
        response = slope(np.minimum(cosine, 0.98)) / scale
        spread = [(first * (top - here) - silent) / scale for first in (top, here)]
        square, overlap = ((1 + (1 - 1 / tokens) * part) / tokens for part in spread)
        return RowMoments(
            square=square, overlap=overlap, square_response=top * response, overlap_response=here * response
        )

    return moments
