"""Law S1: homogeneous values give the scores no gradient; a bound for nearly homogeneous values."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sympy import Expr, Function, IndexedBase, Integer, Rational, Sum, Symbol, diff

from meanmode.theory.proof.index_sums import off_diagonal, over
from meanmode.theory.proof.law import Clause, Law, Premises, Sides
from meanmode.theory.proof.step import Relation, Step
from meanmode.theory.proof.symbols import M, N, T, a, b, j, r, s, t
from meanmode.theory.proof.token_sums import ATTENTION, TokenSums, average

COTANGENT, DEVIATION, GAP, VALUE = (IndexedBase(name, shape=(T, N), real=True) for name in "defV")
READER, COMMON = IndexedBase("g", shape=(T, M), real=True), IndexedBase("vbar", shape=(N,), real=True)
SLACK = IndexedBase("q", shape=(T,), nonnegative=True)
EXPONENTIAL = IndexedBase("w", shape=(T,), positive=True)
VARIATION = IndexedBase("h", shape=(T,), real=True)
Values = Callable[[Expr], Expr]


def softmax_derivative(premises: Premises, token: Expr) -> Expr:
    """da_j along dS = h by the quotient rule, from a_j = w_j / z with w = exp(S), z = sum_k w_k."""
    along = Symbol("x", real=True)
    weight, total = Function("w")(along), Function("z")(along)
    derivative = diff(weight / total**premises.softmax_exponent, along)
    normaliser = Symbol("z", positive=True)
    return (
        derivative.subs(diff(weight, along), EXPONENTIAL[token] * VARIATION[token])
        .subs(diff(total, along), Sum(EXPONENTIAL[s] * VARIATION[s], over(s, T)))
        .subs({weight: EXPONENTIAL[token], total: normaliser})
    )


def score_gradient(value: Values, cotangent: IndexedBase = COTANGENT) -> Expr:
    """dL/dS_tj = a_tj (<d_t, V_j> - sum_s a_ts <d_t, V_s>), the softmax Jacobian applied to dL/da_tj."""

    def read(token: Expr) -> Expr:
        return Sum(cotangent[t, b] * value(token), over(b, N))

    return ATTENTION[t, j] * (read(j) - Sum(ATTENTION[t, s] * read(s), over(s, T)))


def _homogeneous(premises: Premises) -> list[Step]:
    """The softmax Jacobian, and the gradients that remain if all values are equal."""
    tokens = TokenSums(premises)
    normaliser = Symbol("z", positive=True)
    share = EXPONENTIAL[j] / normaliser
    mixed = Sum(EXPONENTIAL[s] / normaliser * VARIATION[s], over(s, T))
    read = Sum(COTANGENT[t, b] * VALUE[j, b], over(b, N))
    moved = Sum(ATTENTION[t, s] * VARIATION[s], over(s, T))

    def output(token: Expr) -> Expr:
        return Sum(ATTENTION[token, j] * COMMON[b], over(j, T))

    def reader(token: Expr) -> Expr:
        return READER[token, a]

    return [
        tokens.step(
            "softmax Jacobian, from the quotient rule: da_j = a_j h_j - a_j sum_k a_k h_k",
            softmax_derivative(premises, j),
            share * VARIATION[j] - share * mixed,
        ),
        tokens.step(
            "so dL = sum_j <d_t, V_j> da_j = sum_j (dL/dS_tj) h_j, dL/dS_tj = a_tj (<d_t, V_j> - <d_t, O_t>)",
            Sum(read * (ATTENTION[t, j] * VARIATION[j] - ATTENTION[t, j] * moved), over(j, T)),
            Sum(score_gradient(lambda token: VALUE[token, b]) * VARIATION[j], over(j, T)),
        ),
        tokens.step("V_j = vbar: dL/dS_tj = 0", score_gradient(lambda token: COMMON[b]), Integer(0)),
        tokens.step("V_j = vbar: O_t = vbar", output(t), COMMON[b]),
        tokens.step(
            "V_j = vbar: the gradient of W_O is T dbar vbar^T",
            Sum(reader(t) * output(t), over(t, T)),
            T * average(reader) * COMMON[b],
        ),
        tokens.step(
            "V_j = vbar: its centered part DW_c vanishes",
            Sum(tokens.centered(reader, t) * tokens.centered(output, t), over(t, T)),
            Integer(0),
        ),
    ]


DRIFT = Sum(ATTENTION[t, s] * DEVIATION[s, b], over(s, T))
LENGTH = Sum(COTANGENT[t, a] ** 2, over(a, N))
SPREAD = Sum(ATTENTION[t, j] * DEVIATION[j, b] ** 2, over(j, T), over(b, N))


def _minors(gap: Values) -> Expr:
    """Half the sum of squared minors of d_t and a_tj f_j."""
    minor = COTANGENT[t, a] * gap(j) - COTANGENT[t, b] * gap(j).subs(b, a)
    return Rational(1, 2) * Sum(ATTENTION[t, j] ** 2 * minor**2, over(j, T), over(a, N), over(b, N))


def _others(gap: Values) -> Expr:
    """sum_{j != r} a_tj a_tr |f_j|^2."""
    pair = off_diagonal(j, r) * ATTENTION[t, j] * ATTENTION[t, r]
    return Sum(pair * gap(j) ** 2, over(j, T), over(r, T), over(b, N))


def _gap(token: Expr) -> Expr:
    """f_j = e_j - sum_s a_ts e_s."""
    return DEVIATION[token, b] - DRIFT


def _bounds(tokens: TokenSums) -> list[Step]:
    """The three bounds that make up that on the score gradient, the first two for every f."""
    read = Sum(COTANGENT[t, b] * GAP[j, b], over(b, N))

    def free(token: Expr) -> Expr:
        return GAP[token, b]

    return [
        tokens.step(
            "|d_t|^2 sum_j a_tj^2 |f_j|^2 - sum_j a_tj^2 <d_t, f_j>^2 is a sum of squared minors",
            LENGTH * Sum(ATTENTION[t, j] ** 2 * GAP[j, b] ** 2, over(j, T), over(b, N)),
            Sum(ATTENTION[t, j] ** 2 * read**2, over(j, T)),
            Relation.AT_LEAST,
            _minors(free),
        ),
        tokens.step(
            "sum_j a_tj |f_j|^2 - sum_j a_tj^2 |f_j|^2 = sum_{j != r} a_tj a_tr |f_j|^2 >= 0",
            Sum(ATTENTION[t, j] * GAP[j, b] ** 2, over(j, T), over(b, N)),
            Sum(ATTENTION[t, j] ** 2 * GAP[j, b] ** 2, over(j, T), over(b, N)),
            Relation.AT_LEAST,
            _others(free),
        ),
        tokens.step(
            "sum_j a_tj |e_j|^2 - sum_j a_tj |e_j - sum_s a_ts e_s|^2 = |sum_s a_ts e_s|^2 >= 0",
            SPREAD,
            Sum(ATTENTION[t, j] * _gap(j) ** 2, over(j, T), over(b, N)),
            Relation.AT_LEAST,
            Sum(DRIFT**2, over(b, N)),
        ),
    ]


def _nearly_homogeneous(premises: Premises) -> list[Step]:
    """The bound on the score gradient for values vbar + e_j."""
    tokens = TokenSums(premises)
    radius = Symbol("R", real=True)
    scores = score_gradient(lambda token: COMMON[b] + DEVIATION[token, b])
    return [
        tokens.step(
            "V_j = vbar + e_j: dL/dS_tj = a_tj <d_t, e_j - sum_s a_ts e_s>",
            scores,
            ATTENTION[t, j] * Sum(COTANGENT[t, b] * DEVIATION[j, b], over(b, N))
            - ATTENTION[t, j] * Sum(COTANGENT[t, b] * DRIFT, over(b, N)),
        ),
        *_bounds(tokens),
        tokens.step(
            "V_j = vbar + e_j: |d_t|^2 sum_j a_tj |e_j|^2 - |dL/dS_t|^2 is the sum of these three",
            LENGTH * SPREAD,
            Sum(scores**2, over(j, T)),
            Relation.AT_LEAST,
            _minors(_gap) + LENGTH * (_others(_gap) + Sum(DRIFT**2, over(b, N))),
        ),
        tokens.step(
            "|e_j|^2 = R^2 - q_j with q_j >= 0: |d_t|^2 sum_j a_tj |e_j|^2 <= |d_t|^2 R^2",
            LENGTH * radius**2,
            LENGTH * Sum(ATTENTION[t, j] * (radius**2 - SLACK[j]), over(j, T)),
            Relation.AT_LEAST,
            LENGTH * Sum(ATTENTION[t, j] * SLACK[j], over(j, T)),
        ),
    ]


def _null_space(premises: Premises) -> list[Step]:
    return [*_homogeneous(premises), *_nearly_homogeneous(premises)]


def evaluate_null_space(
    attention: NDArray[Any], values: NDArray[Any], cotangent: NDArray[Any]
) -> dict[str, Sides]:
    """Both sides of S1 for attention [T, T], values [T, N] and cotangents of the attention output [T, N].

    `homogeneous` replaces the values by their mean; `bound` has left <= right.
    """
    common = values.sum(0) / len(values)
    deviation = values - common
    jacobians = [np.diag(row) - np.outer(row, row) for row in attention]

    def scores(read: NDArray[Any]) -> NDArray[Any]:
        return np.stack([jacobian @ row for jacobian, row in zip(jacobians, cotangent @ read.T, strict=True)])

    exact = scores(values)
    drift = attention @ deviation
    gaps = cotangent @ deviation.T - (cotangent * drift).sum(1)[:, None]
    spread = (attention * (deviation * deviation).sum(1)).sum(1)
    energy = (cotangent * cotangent).sum(1)
    output = attention @ np.stack([common] * len(values))
    coherent = len(values) * np.outer(cotangent.sum(0) / len(values), common)
    return {
        "homogeneous": (scores(np.stack([common] * len(values))), 0 * exact),
        "nearly_homogeneous": (exact, attention * gaps),
        "writer": (cotangent.T @ output, coherent),
        "bound": ((exact * exact).sum(1), energy * spread),
        "radius_bound": ((exact * exact).sum(1), energy * (deviation * deviation).sum(1).max()),
    }


NULL_SPACE = Law(
    tag="S1",
    title="homogeneous values give the scores no gradient and make that of W_O mean-coherent",
    clauses=(
        Clause(
            says="V_j = vbar for all j => dL/dS_t = 0 and grad W_O = T dbar vbar^T",
            steps=(
                "softmax Jacobian",
                "so dL = sum_j",
                "V_j = vbar: dL/dS_tj",
                "V_j = vbar: the gradient of W_O",
            ),
        ),
        Clause(
            says=(
                "|dL/dS_t|^2 <= |d_t|^2 sum_j a_tj |V_j - vbar|^2 <= |d_t|^2 max_j |V_j - vbar|^2 "
                "for any vbar"
            ),
            steps=("V_j = vbar + e_j: |d_t|^2", "|e_j|^2 = R^2 - q_j"),
        ),
    ),
    assumes=(
        "a_t = softmax(S_t), so a_tj >= 0 and sum_j a_tj = 1",
        "O_t = sum_j a_tj V_j and d_t = dL/dO_t",
        "W_O acts token by token",
        "J = 1 1^T / T",
        "P = I - J",
    ),
    source="arXiv:2605.06169 Lemma 1, Eq. 33-39; the bound is derived here",
    derive=_null_space,
    evaluate=evaluate_null_space,
)
