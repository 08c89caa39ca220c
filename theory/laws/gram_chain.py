"""Law E4: for Gaussian weights the cosines of all pairs of tokens are a Markov chain over the blocks."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sympy import Expr, IndexedBase, KroneckerDelta, Sum, Symbol

from meanmode.theory.proof.index_sums import over
from meanmode.theory.proof.law import Clause, Law, Premises, Sides
from meanmode.theory.proof.step import Step, cited
from meanmode.theory.proof.symbols import WIDTH, M, N, T, a, b, j, k, r, s, t
from meanmode.theory.proof.token_sums import ATTENTION, TokenSums

STATE = IndexedBase("X", shape=(T, WIDTH), real=True)
INPUT = IndexedBase("Y", shape=(T, N), real=True)
FIRST, SECOND = (IndexedBase(name, shape=(M,), real=True) for name in "pq")
OTHER = Symbol("u", integer=True, positive=True)
COSINE = Symbol("c", real=True)


def _gram(base: IndexedBase, length: Expr, one: Expr, other: Expr) -> Expr:
    """<x_one, x_other>."""
    return Sum(base[one, k] * base[other, k], over(k, length))


def _paired(first: Expr, second: Expr) -> Expr:
    """E W_(k, a) W_(j, b) of standard normal weights: delta_kj delta_ab."""
    return KroneckerDelta(k, j) * KroneckerDelta(a, b) * first * second


def _gram_chain(premises: Premises) -> list[Step]:
    tokens = TokenSums(premises)
    summed = Sum(ATTENTION[t, k] * ATTENTION[s, k], over(k, T))
    cosines = (1 - COSINE) * KroneckerDelta(j, k) + COSINE
    return [
        tokens.step(
            "reader: E <(X W)_t, p> <(X W)_s, q> = <x_t, x_s> <p, q>",
            Sum(
                _paired(STATE[t, k] * FIRST[a], STATE[s, j] * SECOND[b]),
                *(over(k, WIDTH), over(j, WIDTH), over(a, M), over(b, M)),
            ),
            _gram(STATE, WIDTH, t, s) * Sum(FIRST[b] * SECOND[b], over(b, M)),
        ),
        tokens.step(
            "writer: E <x_t, f_s> <x_u, f_r> = <x_t, x_u> <y_s, y_r>",
            Sum(
                _paired(INPUT[s, k] * STATE[t, a], INPUT[r, j] * STATE[OTHER, b]),
                *(over(k, N), over(j, N), over(a, WIDTH), over(b, WIDTH)),
            ),
            _gram(STATE, WIDTH, t, OTHER) * _gram(INPUT, N, s, r),
        ),
        tokens.step(
            "writer: E <f_t, f_s> = D <y_t, y_s>",
            Sum(
                INPUT[t, k] * INPUT[s, j] * KroneckerDelta(k, j),
                *(over(k, N), over(j, N), over(b, WIDTH)),
            ),
            WIDTH * _gram(INPUT, N, t, s),
        ),
        cited(
            "X W and F = Y W' are determined by these second moments",
            theorem="a centered Gaussian vector is determined by its covariance",
            conditions="given X and Y, their entries are linear in independent centered Gaussian weights",
        ),
        tokens.step(
            "exchangeable: (A C A^T)_ts = c + (1 - c) sum_j a_tj a_sj",
            Sum(ATTENTION[t, j] * ATTENTION[s, k] * cosines, over(j, T), over(k, T)),
            COSINE + (1 - COSINE) * summed,
        ),
    ]


def evaluate_gram_chain(
    x: NDArray[Any], y: NDArray[Any], attention: NDArray[Any], cosine: Any
) -> dict[str, Sides]:
    """Both sides of E4 for a trunk [T, D], writer inputs [T, N], a row-stochastic matrix and a cosine.

    The mean over weights is one over weights with a single entry sqrt(N D): the same second moments.
    """
    entries = [np.outer(x[:, feature], column) for feature in range(x.shape[1]) for column in y.T]
    covariance = sum(np.multiply.outer(entry, entry) for entry in entries)
    identity = np.eye(len(attention), dtype=int)
    return {
        "cross": (covariance, np.multiply.outer(x @ x.T, y @ y.T).transpose(0, 2, 1, 3)),
        "exchangeable": (
            attention @ ((1 - cosine) * identity + cosine) @ attention.T,
            cosine + (1 - cosine) * (attention @ attention.T),
        ),
    }


GRAM_CHAIN = Law(
    tag="E4",
    title="for Gaussian weights the cosines of all pairs of tokens are a Markov chain",
    clauses=(
        Clause(
            says="given X, X W has the covariance <x_t, x_s> between tokens, feature by feature",
            steps=("reader: E", "X W and F"),
        ),
        Clause(
            says="F = Y W': E <x_t, f_s> <x_u, f_r> = <x_t, x_u> <y_s, y_r>, E <f_t, f_s> = D <y_t, y_s>",
            steps=("writer: E <x_t", "writer: E <f_t"),
        ),
        Clause(
            says="C_(l+1) given C_0, ..., C_l depends on C_l only",
            steps=("reader: E", "writer: E <x_t", "writer: E <f_t", "X W and F"),
            prose="scores, values and hidden units are functions of X W, so the law of Y Y^T is one of C_l; "
            "turning the features keeps X X^T and the law of F, so the law of X F^T and F F^T is one of C_l "
            "and Y Y^T; a merge with one gain per part and RMSNorm act on these Gram matrices; every block "
            "has fresh weights",
        ),
        Clause(
            says="C = (1 - c) I + c 1 1^T: (A C A^T)_ts = c + (1 - c) sum_j a_tj a_sj",
            steps=("exchangeable",),
        ),
    ),
    assumes=(
        "weights independent standard normal, one gain per matrix taken out",
        "queries, keys and SwiGLU without biases; mixer a function of queries and keys; A 1 = 1",
        "C_l the cosines of the tokens after block l, all of norm sqrt(D)",
    ),
    source="derived here",
    derive=_gram_chain,
    evaluate=evaluate_gram_chain,
)
