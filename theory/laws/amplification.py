"""Laws A1 to A5: how coherence between tokens amplifies the gradient of a writer."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sympy import Expr, IndexedBase, Integer, Rational, S, Subs, Sum, Symbol

from meanmode.theory.proof.index_sums import off_diagonal, over
from meanmode.theory.proof.law import Clause, Law, Premises, Sides
from meanmode.theory.proof.step import Algebra, Facts, Relation, Step, rational
from meanmode.theory.proof.symbols import M, N, T, a, b, s, t

ADJOINT, INPUT = IndexedBase("d", shape=(T, M), real=True), IndexedBase("y", shape=(T, N), real=True)
ADJOINT_DIRECTION = IndexedBase("e", shape=(T, M), real=True)
INPUT_DIRECTION = IndexedBase("u", shape=(T, N), real=True)
ADJOINT_NORM, INPUT_NORM, WEIGHT = (IndexedBase(name, shape=(T,), nonnegative=True) for name in "pqw")
POSITIVE_PART, NEGATIVE_PART = (IndexedBase(name, shape=(T, T), nonnegative=True) for name in ("M_+", "M_-"))
TEST_VECTOR = IndexedBase("x", shape=(T,), real=True)
PAIRS = (over(t, T), over(s, T))


def _entries(
    first: IndexedBase, second: IndexedBase, token: Expr, other: Expr, index: Symbol, length: Expr
) -> Expr:
    return Sum(first[token, index] * second[other, index], over(index, length))


def coherence(token: Expr, other: Expr) -> Expr:
    """M_ts = cos(y_t, y_s) cos(d_t, d_s), from unit directions."""
    return _entries(INPUT_DIRECTION, INPUT_DIRECTION, token, other, b, N) * _entries(
        ADJOINT_DIRECTION, ADJOINT_DIRECTION, token, other, a, M
    )


class _Directions:
    """Steps about index sums in which the directions of tokens are unit vectors."""

    def __init__(self, premises: Premises) -> None:
        unit = dict.fromkeys((ADJOINT_DIRECTION, INPUT_DIRECTION), premises.unit_square)
        self.facts = Facts(unit=unit)

    def step(
        self,
        name: str,
        left: Expr,
        right: Expr,
        relation: Relation = Relation.EQUAL,
        witness: Expr = S.Zero,
    ) -> Step:
        """Step that claims a relation between index sums."""
        return Step(
            name=name,
            left=left,
            right=right,
            relation=relation,
            witness=witness,
            algebra=Algebra.SUMS,
            facts=self.facts,
        )


def _weight(token: Expr) -> Expr:
    """w_t = |d_t| |y_t|."""
    return ADJOINT_NORM[token] * INPUT_NORM[token]


def _gradient_square() -> Expr:
    """|grad|_F^2 of sum_t d_t y_t^T with d_t = |d_t| e_t and y_t = |y_t| u_t."""
    entry = Sum(_weight(t) * ADJOINT_DIRECTION[t, a] * INPUT_DIRECTION[t, b], over(t, T))
    return Sum(entry**2, over(a, M), over(b, N))


def _pair_sum(premises: Premises) -> list[Step]:
    inner = Sum(INPUT[t, b] * INPUT[s, b], over(b, N)) * Sum(ADJOINT[t, a] * ADJOINT[s, a], over(a, M))
    square = Sum(Sum(ADJOINT[t, a] * INPUT[t, b], over(t, T)) ** 2, over(a, M), over(b, N))
    diagonal = Sum(Sum(INPUT[t, b] ** 2, over(b, N)) * Sum(ADJOINT[t, a] ** 2, over(a, M)), over(t, T))
    cross = Sum(off_diagonal(t, s) * inner, *PAIRS)
    return [
        Step(
            name="|grad|^2 = sum_t,s <y_t, y_s> <d_t, d_s>",
            left=square,
            right=Sum(inner, *PAIRS),
            algebra=Algebra.SUMS,
        ),
        Step(name="|grad|^2 = S + C", left=square, right=diagonal + cross, algebra=Algebra.SUMS),
    ]


def _weighted_pairs() -> Expr:
    """sum_{s != t} w_t w_s M_ts."""
    return Sum(off_diagonal(t, s) * _weight(t) * _weight(s) * coherence(t, s), *PAIRS)


def _excess() -> Expr:
    """(A - 1) |w|^2 = |grad|^2 - |w|^2."""
    return _gradient_square() - Sum(_weight(t) ** 2, over(t, T))


def _rayleigh(premises: Premises) -> list[Step]:
    tokens = _Directions(premises)
    weighted = Sum(_weight(t) * _weight(s) * coherence(t, s), *PAIRS)
    return [
        tokens.step("M_tt = 1", coherence(t, t), Integer(1)),
        tokens.step("|grad|^2 = w^T M w", _gradient_square(), weighted),
        tokens.step(
            "(A - 1) |w|^2 = sum_{s != t} w_t w_s M_ts, where A |w|^2 = |grad|^2",
            _excess(),
            _weighted_pairs(),
        ),
    ]


def _bounded(premises: Premises) -> list[Step]:
    tokens = _Directions(premises)
    directions = ADJOINT_DIRECTION[t, a] * INPUT_DIRECTION[t, b]
    square = Sum(Sum(TEST_VECTOR[t] * directions, over(t, T)) ** 2, over(a, M), over(b, N))
    gap = WEIGHT[t] * directions - WEIGHT[s] * directions.subs(t, s)
    spread = Rational(1, 2) * Sum(gap**2, *PAIRS, over(a, M), over(b, N))
    return [
        tokens.step(
            "x^T M x = sum_a,b (sum_t x_t e_ta u_tb)^2 >= 0",
            Sum(TEST_VECTOR[t] * TEST_VECTOR[s] * coherence(t, s), *PAIRS),
            Integer(0),
            Relation.AT_LEAST,
            square,
        ),
        tokens.step(
            "T |w|^2 - w^T M w = (1/2) sum_t,s |w_t e_t u_t^T - w_s e_s u_s^T|^2 >= 0",
            T * Sum(WEIGHT[t] ** 2, over(t, T)),
            Sum(WEIGHT[t] * WEIGHT[s] * coherence(t, s), *PAIRS),
            Relation.AT_LEAST,
            spread,
        ),
    ]


def _equal_magnitudes(premises: Premises) -> list[Step]:
    tokens = _Directions(premises)
    kappa, weight = Symbol("kappa", real=True), Symbol("w", positive=True)
    entry = Sum(weight * ADJOINT_DIRECTION[t, a] * INPUT_DIRECTION[t, b], over(t, T))
    square = Sum(entry**2, over(a, M), over(b, N))
    mean_coherence = Sum(off_diagonal(t, s) * coherence(t, s), *PAIRS) / (T * (T - 1))
    limit = T * weight**2 * (1 + (T - 1) * kappa)
    return [
        tokens.step(
            "w_t = w: |grad|^2 = T w^2 (1 + (T - 1) kappa), kappa the mean of M_ts over s != t",
            square,
            limit.subs(kappa, mean_coherence),
        ),
        tokens.step(
            "A - 1 = (T - 1) kappa, where A = |grad|^2 / (T w^2)",
            square / (T * weight**2) - 1,
            (T - 1) * mean_coherence,
        ),
        rational("kappa = 0: |grad|^2 = T w^2", Subs(limit, kappa, 0), T * weight**2),
        rational("kappa = 1: |grad|^2 = T^2 w^2", Subs(limit, kappa, 1), T**2 * weight**2),
    ]


def _absolute_bound(premises: Premises) -> list[Step]:
    tokens = _Directions(premises)
    positive, negative = POSITIVE_PART[t, s], NEGATIVE_PART[t, s]
    pair = off_diagonal(t, s) * _weight(t) * _weight(s)
    weight = Symbol("w", positive=True)
    khat = Sum(off_diagonal(t, s) * (positive + negative), *PAIRS) / (T * (T - 1))
    equal = Sum(off_diagonal(t, s) * weight**2 * (positive + negative), *PAIRS)
    return [
        tokens.step(
            "(A - 1) |w|^2 = sum_{s != t} w_t w_s M_ts",
            _excess(),
            _weighted_pairs(),
        ),
        tokens.step(
            "|M_ts| = M_ts + 2 M-_ts: sum w_t w_s |M_ts| - (A - 1) |w|^2 = 2 sum w_t w_s M-_ts >= 0",
            Sum(pair * (coherence(t, s) + 2 * negative), *PAIRS),
            _excess(),
            Relation.AT_LEAST,
            2 * Sum(pair * negative, *PAIRS),
        ),
        tokens.step(
            "|M_ts| = 2 M+_ts - M_ts: sum w_t w_s |M_ts| + (A - 1) |w|^2 = 2 sum w_t w_s M+_ts >= 0",
            Sum(pair * (2 * positive - coherence(t, s)), *PAIRS),
            -_excess(),
            Relation.AT_LEAST,
            2 * Sum(pair * positive, *PAIRS),
        ),
        tokens.step(
            "w_t = w: sum_{s != t} w_t w_s |M_ts| = |w|^2 (T - 1) khat",
            equal,
            T * weight**2 * (T - 1) * khat,
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
    clauses=(
        Clause(
            says="|grad|_F^2 = sum_t,s <y_t, y_s> <d_t, d_s> = S + C",
            steps=("|grad|^2 = sum_t,s", "|grad|^2 = S + C"),
        ),
    ),
    assumes=("the writer acts token by token",),
    source="arXiv:2605.06169 Eq. 19-20",
    derive=_pair_sum,
    evaluate=evaluate_pair_sum,
)


RAYLEIGH = Law(
    tag="A2",
    title="the amplification is exactly the weighted coherence of distinct tokens",
    clauses=(
        Clause(says="|grad|_F^2 = w^T M w = A |w|^2", steps=("|grad|^2 = w^T M w",)),
        Clause(says="A - 1 = sum_{s != t} w_t w_s M_ts / |w|^2", steps=("(A - 1) |w|^2",)),
    ),
    assumes=("w_t = |d_t| |y_t|", "M_ts = cos(y_t, y_s) cos(d_t, d_s)", "|w| > 0"),
    source="arXiv:2605.06169 Eq. 21-26",
    derive=_rayleigh,
    evaluate=evaluate_rayleigh,
)


BOUNDED = Law(
    tag="A3",
    title="the coherence matrix is positive semidefinite and the amplification is at most T",
    clauses=(
        Clause(says="x^T M x >= 0", steps=("x^T M x",)),
        Clause(says="0 <= A <= T", steps=("x^T M x", "T |w|^2 - w^T M w")),
    ),
    assumes=("w_t = |d_t| |y_t|", "M_ts = cos(y_t, y_s) cos(d_t, d_s)", "|w| > 0"),
    source="arXiv:2605.06169 App. C.2 (proved here by sums of squares)",
    derive=_bounded,
    evaluate=evaluate_bounded,
)


EQUAL_MAGNITUDES = Law(
    tag="A4",
    title="at equal magnitudes, coherence raises the gradient norm from sqrt(T) w to T w",
    clauses=(
        Clause(says="A - 1 = (T - 1) kappa", steps=("A - 1",)),
        Clause(says="|grad|_F^2 = T w^2 (1 + (T - 1) kappa)", steps=("w_t = w:",)),
    ),
    assumes=("w_t = w for all t", "kappa = mean of M_ts over s != t", "T > 1"),
    source="arXiv:2605.06169 Eq. 27-30",
    derive=_equal_magnitudes,
    evaluate=evaluate_equal_magnitudes,
)


ABSOLUTE_BOUND = Law(
    tag="A5",
    title="the absolute coherence bounds the amplification",
    clauses=(
        Clause(
            says="|A - 1| <= sum_{s != t} w_t w_s |M_ts| / |w|^2",
            steps=("|M_ts| = M_ts + 2 M-_ts", "|M_ts| = 2 M+_ts - M_ts"),
        ),
        Clause(says="= (T - 1) khat at equal magnitudes", steps=("w_t = w:",)),
    ),
    assumes=("M_ts = M+_ts - M-_ts and |M_ts| = M+_ts + M-_ts with M+_ts, M-_ts >= 0", "T > 1"),
    source="arXiv:2605.06169 Eq. 31-32",
    derive=_absolute_bound,
    evaluate=evaluate_absolute_bound,
)
