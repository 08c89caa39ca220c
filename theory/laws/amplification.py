"""Laws A1 to A5: how coherence between tokens amplifies the gradient of a writer."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sympy import Expr, IndexedBase, Integer, Rational, Sum, Symbol

from meanmode.theory.laws.gradient_split import ADJOINT, INPUT
from meanmode.theory.proof.index_sums import IndexSums, off_diagonal, over
from meanmode.theory.proof.law import Law, Premises, Relation, Sides, Step
from meanmode.theory.proof.symbols import M, N, T, a, b, s, t

ADJOINT_DIRECTION, INPUT_DIRECTION = IndexedBase("e", real=True), IndexedBase("u", real=True)
ADJOINT_NORM, INPUT_NORM = IndexedBase("p", nonnegative=True), IndexedBase("q", nonnegative=True)
WEIGHT = IndexedBase("w", nonnegative=True)
POSITIVE_PART, NEGATIVE_PART = IndexedBase("M_+", nonnegative=True), IndexedBase("M_-", nonnegative=True)
TEST_VECTOR = IndexedBase("x", real=True)
PAIRS = (over(t, T), over(s, T))


def _entries(
    first: IndexedBase, second: IndexedBase, token: Expr, other: Expr, index: Symbol, length: Expr
) -> Expr:
    return Sum(first[token, index] * second[other, index], over(index, length))


def _coherence(token: Expr, other: Expr) -> Expr:
    """M_ts = cos(y_t, y_s) cos(d_t, d_s), from unit directions."""
    return _entries(INPUT_DIRECTION, INPUT_DIRECTION, token, other, b, N) * _entries(
        ADJOINT_DIRECTION, ADJOINT_DIRECTION, token, other, a, M
    )


def _sums(premises: Premises) -> IndexSums:
    return IndexSums(unit={ADJOINT_DIRECTION: premises.unit_square, INPUT_DIRECTION: premises.unit_square})


def _weight(token: Expr) -> Expr:
    """w_t = |d_t| |y_t|."""
    return ADJOINT_NORM[token] * INPUT_NORM[token]


def _gradient_square() -> Expr:
    """|grad|_F^2 of sum_t d_t y_t^T with d_t = |d_t| e_t and y_t = |y_t| u_t."""
    entry = Sum(_weight(t) * ADJOINT_DIRECTION[t, a] * INPUT_DIRECTION[t, b], over(t, T))
    return Sum(entry**2, over(a, M), over(b, N))


def _pair_sum(premises: Premises) -> list[Step]:
    form = IndexSums().normal_form
    inner = Sum(INPUT[t, b] * INPUT[s, b], over(b, N)) * Sum(ADJOINT[t, a] * ADJOINT[s, a], over(a, M))
    square = Sum(Sum(ADJOINT[t, a] * INPUT[t, b], over(t, T)) ** 2, over(a, M), over(b, N))
    diagonal = Sum(Sum(INPUT[t, b] ** 2, over(b, N)) * Sum(ADJOINT[t, a] ** 2, over(a, M)), over(t, T))
    cross = Sum(off_diagonal(t, s) * inner, *PAIRS)
    return [
        Step(
            name="|grad|^2 = sum_t,s <y_t, y_s> <d_t, d_s>",
            left=square,
            right=Sum(inner, *PAIRS),
            normal_form=form,
        ),
        Step(name="|grad|^2 = S + C", left=square, right=diagonal + cross, normal_form=form),
    ]


def _rayleigh(premises: Premises) -> list[Step]:
    form = _sums(premises).normal_form
    weighted = Sum(_weight(t) * _weight(s) * _coherence(t, s), *PAIRS)
    weights = Sum(_weight(t) ** 2, over(t, T))
    cross = Sum(off_diagonal(t, s) * _weight(t) * _weight(s) * _coherence(t, s), *PAIRS)
    return [
        Step(name="M_tt = 1", left=_coherence(t, t), right=Integer(1), normal_form=form),
        Step(name="|grad|^2 = w^T M w", left=_gradient_square(), right=weighted, normal_form=form),
        Step(
            name="(A - 1) |w|^2 = sum_{s != t} w_t w_s M_ts, where A |w|^2 = |grad|^2",
            left=_gradient_square() - weights,
            right=cross,
            normal_form=form,
        ),
    ]


def _bounded(premises: Premises) -> list[Step]:
    form = _sums(premises).normal_form
    directions = ADJOINT_DIRECTION[t, a] * INPUT_DIRECTION[t, b]
    square = Sum(Sum(TEST_VECTOR[t] * directions, over(t, T)) ** 2, over(a, M), over(b, N))
    gap = WEIGHT[t] * directions - WEIGHT[s] * directions.subs(t, s)
    spread = Rational(1, 2) * Sum(gap**2, *PAIRS, over(a, M), over(b, N))
    rayleigh = Sum(WEIGHT[t] * WEIGHT[s] * _coherence(t, s), *PAIRS)
    return [
        Step(
            name="x^T M x = sum_a,b (sum_t x_t e_ta u_tb)^2 >= 0",
            left=Sum(TEST_VECTOR[t] * TEST_VECTOR[s] * _coherence(t, s), *PAIRS),
            right=Integer(0),
            relation=Relation.AT_LEAST,
            witness=square,
            normal_form=form,
        ),
        Step(
            name="T |w|^2 - w^T M w = (1/2) sum_t,s |w_t e_t u_t^T - w_s e_s u_s^T|^2 >= 0",
            left=T * Sum(WEIGHT[t] ** 2, over(t, T)),
            right=rayleigh,
            relation=Relation.AT_LEAST,
            witness=spread,
            normal_form=form,
        ),
    ]


def _equal_magnitudes(premises: Premises) -> list[Step]:
    form = _sums(premises).normal_form
    kappa, weight = Symbol("kappa", real=True), Symbol("w", positive=True)
    entry = Sum(weight * ADJOINT_DIRECTION[t, a] * INPUT_DIRECTION[t, b], over(t, T))
    square = Sum(entry**2, over(a, M), over(b, N))
    mean_coherence = Sum(off_diagonal(t, s) * _coherence(t, s), *PAIRS) / (T * (T - 1))
    limit = T * weight**2 * (1 + (T - 1) * kappa)
    return [
        Step(
            name="w_t = w: |grad|^2 = T w^2 (1 + (T - 1) kappa), kappa the mean of M_ts over s != t",
            left=square,
            right=limit.subs(kappa, mean_coherence),
            normal_form=form,
        ),
        Step(
            name="A - 1 = (T - 1) kappa, where A = |grad|^2 / (T w^2)",
            left=square / (T * weight**2) - 1,
            right=(T - 1) * mean_coherence,
            normal_form=form,
        ),
        Step(
            name="kappa = 0: |grad|^2 = T w^2",
            left=limit.subs(kappa, 0),
            right=T * weight**2,
            normal_form=form,
        ),
        Step(
            name="kappa = 1: |grad|^2 = T^2 w^2",
            left=limit.subs(kappa, 1),
            right=T**2 * weight**2,
            normal_form=form,
        ),
    ]


def _absolute_bound(premises: Premises) -> list[Step]:
    form = _sums(premises).normal_form
    pair = off_diagonal(t, s) * WEIGHT[t] * WEIGHT[s]
    positive, negative = POSITIVE_PART[t, s], NEGATIVE_PART[t, s]
    signed, absolute = Sum(pair * (positive - negative), *PAIRS), Sum(pair * (positive + negative), *PAIRS)
    weight = Symbol("w", positive=True)
    khat = Sum(off_diagonal(t, s) * (positive + negative), *PAIRS) / (T * (T - 1))
    equal = Sum(off_diagonal(t, s) * weight**2 * (positive + negative), *PAIRS)
    weights = Sum(_weight(t) ** 2, over(t, T))
    cross = Sum(off_diagonal(t, s) * _weight(t) * _weight(s) * _coherence(t, s), *PAIRS)
    return [
        Step(
            name="(A - 1) |w|^2 = sum_{s != t} w_t w_s M_ts, M_ts = M+_ts - M-_ts",
            left=_gradient_square() - weights,
            right=cross,
            normal_form=form,
        ),
        Step(
            name="sum w_t w_s |M_ts| - sum w_t w_s M_ts = 2 sum w_t w_s M-_ts >= 0",
            left=absolute,
            right=signed,
            relation=Relation.AT_LEAST,
            witness=2 * Sum(pair * negative, *PAIRS),
            normal_form=form,
        ),
        Step(
            name="sum w_t w_s |M_ts| + sum w_t w_s M_ts = 2 sum w_t w_s M+_ts >= 0",
            left=absolute,
            right=-signed,
            relation=Relation.AT_LEAST,
            witness=2 * Sum(pair * positive, *PAIRS),
            normal_form=form,
        ),
        Step(
            name="w_t = w: sum_{s != t} w_t w_s |M_ts| = |w|^2 (T - 1) khat",
            left=equal,
            right=T * weight**2 * (T - 1) * khat,
            normal_form=form,
        ),
    ]


class _Tokens:
    """Norms, directions and coherence of one sample's writer inputs y [T, N] and cotangents delta [T, M]."""

    def __init__(self, y: NDArray[Any], delta: NDArray[Any]) -> None:
        self.gradient_square = np.sum((delta.T @ y) ** 2)
        self.y_gram, self.delta_gram = y @ y.T, delta @ delta.T
        self.weight = (np.diag(self.y_gram) * np.diag(self.delta_gram)) ** 0.5
        self.weight_square = np.sum(self.weight**2)
        self.pairs = np.outer(self.weight, self.weight)
        self.coherence = self.y_gram * self.delta_gram / self.pairs
        self.tokens = len(y)
        self.distinct = ~np.eye(self.tokens, dtype=bool)
        self.amplification = self.gradient_square / self.weight_square


def evaluate_pair_sum(y: NDArray[Any], delta: NDArray[Any]) -> dict[str, Sides]:
    """Both sides of A1 for writer inputs y [T, N] and cotangents delta [T, M], as in A2 to A5."""
    tokens = _Tokens(y, delta)
    product = tokens.y_gram * tokens.delta_gram
    return {
        "pairs": (tokens.gradient_square, product.sum()),
        "diagonal_and_cross": (
            tokens.gradient_square,
            np.diag(product).sum() + product[tokens.distinct].sum(),
        ),
    }


def evaluate_rayleigh(y: NDArray[Any], delta: NDArray[Any]) -> dict[str, Sides]:
    """Both sides of A2; no token of y or delta may be zero."""
    tokens = _Tokens(y, delta)
    cross = (tokens.pairs * tokens.coherence)[tokens.distinct].sum()
    return {
        "rayleigh": (tokens.gradient_square, tokens.weight @ tokens.coherence @ tokens.weight),
        "excess": (tokens.amplification - 1, cross / tokens.weight_square),
    }


def evaluate_bounded(y: NDArray[Any], delta: NDArray[Any]) -> dict[str, Sides]:
    """A3 as (left, right) pairs with left <= right: 0 <= A and A <= T."""
    tokens = _Tokens(y, delta)
    return {"positive": (0, tokens.amplification), "bounded": (tokens.amplification, tokens.tokens)}


def evaluate_equal_magnitudes(y: NDArray[Any], delta: NDArray[Any]) -> dict[str, Sides]:
    """Both sides of A4 for tokens with equal |d_t| |y_t|."""
    tokens = _Tokens(y, delta)
    kappa = tokens.coherence[tokens.distinct].sum() / (tokens.tokens * (tokens.tokens - 1))
    return {"kappa": (tokens.amplification - 1, (tokens.tokens - 1) * kappa)}


def evaluate_absolute_bound(y: NDArray[Any], delta: NDArray[Any]) -> dict[str, Sides]:
    """A5 as a (left, right) pair with left <= right."""
    tokens = _Tokens(y, delta)
    absolute = (tokens.pairs * abs(tokens.coherence))[tokens.distinct].sum() / tokens.weight_square
    return {"absolute": (abs(tokens.amplification - 1), absolute)}


PAIR_SUM = Law(
    tag="A1",
    title="the squared writer gradient is a sum over token pairs",
    statement="|grad|_F^2 = sum_t,s <y_t, y_s> <d_t, d_s> = S + C",
    assumes=("the writer acts token by token",),
    source="arXiv:2605.06169 Eq. 19-20",
    derive=_pair_sum,
    evaluate=evaluate_pair_sum,
)


RAYLEIGH = Law(
    tag="A2",
    title="the amplification is exactly the weighted coherence of distinct tokens",
    statement="|grad|_F^2 = w^T M w = A |w|^2;  A - 1 = sum_{s != t} w_t w_s M_ts / |w|^2",
    assumes=("w_t = |d_t| |y_t|", "M_ts = cos(y_t, y_s) cos(d_t, d_s)", "|w| > 0"),
    source="arXiv:2605.06169 Eq. 21-26",
    derive=_rayleigh,
    evaluate=evaluate_rayleigh,
)


BOUNDED = Law(
    tag="A3",
    title="the coherence matrix is positive semidefinite and the amplification is at most T",
    statement="x^T M x >= 0;  0 <= A <= T",
    assumes=("w_t = |d_t| |y_t|", "M_ts = cos(y_t, y_s) cos(d_t, d_s)", "|w| > 0"),
    source="arXiv:2605.06169 App. C.2 (proved here by sums of squares)",
    derive=_bounded,
    evaluate=evaluate_bounded,
)


EQUAL_MAGNITUDES = Law(
    tag="A4",
    title="at equal magnitudes, coherence raises the gradient norm from sqrt(T) w to T w",
    statement="A - 1 = (T - 1) kappa;  |grad|_F^2 = T w^2 (1 + (T - 1) kappa)",
    assumes=("w_t = w for all t", "kappa = mean of M_ts over s != t", "T > 1"),
    source="arXiv:2605.06169 Eq. 27-30",
    derive=_equal_magnitudes,
    evaluate=evaluate_equal_magnitudes,
)


ABSOLUTE_BOUND = Law(
    tag="A5",
    title="the absolute coherence bounds the amplification",
    statement="|A - 1| <= sum_{s != t} w_t w_s |M_ts| / |w|^2;  = (T - 1) khat at equal magnitudes",
    assumes=("M_ts = M+_ts - M-_ts and |M_ts| = M+_ts + M-_ts with M+_ts, M-_ts >= 0", "T > 1"),
    source="arXiv:2605.06169 Eq. 31-32",
    derive=_absolute_bound,
    evaluate=evaluate_absolute_bound,
)
