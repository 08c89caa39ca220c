"""Laws E1 to E3: token cosine, energy ratio and second moments determine each other; where the front lies."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sympy import Derivative, Expr, IndexedBase, Rational, Subs, Sum, Symbol

from meanmode.theory.proof.index_sums import off_diagonal, over
from meanmode.theory.proof.law import Clause, Law, Premises, Sides
from meanmode.theory.proof.step import Relation, Step, rational
from meanmode.theory.proof.symbols import WIDTH, T, b, s, t
from meanmode.theory.proof.token_sums import TokenSums, entry, square, token_projectors

STATE, DIRECTION = (IndexedBase(name, shape=(T, WIDTH), real=True) for name in "Xu")
COSINE = Symbol("c", real=True)
ODDS = Symbol("a", positive=True)
FRONT = Rational(9, 10)


def odds(cosine: Expr) -> Expr:
    """a = (1 + (T - 1) c) / (1 - c) = (T - 1) rho^2, the odds of a pair cosine c."""
    return (1 + (T - 1) * cosine) / (1 - cosine)


def cosine_of(value: Expr) -> Expr:
    """c = (a - 1) / (a + T - 1), the inverse of `odds`."""
    return (value - 1) / (value + T - 1)


def pair_mean(base: IndexedBase) -> Expr:
    """Mean of <x_t, x_s> over pairs of distinct tokens."""
    inner = Sum(base[t, b] * base[s, b], over(b, WIDTH))
    return Sum(off_diagonal(t, s) * inner, over(t, T), over(s, T)) / (T * (T - 1))


def _unit_energies(premises: Premises) -> list[Step]:
    tokens = TokenSums(premises, unit={DIRECTION: premises.unit_square})
    direction, cosine = entry(DIRECTION), pair_mean(DIRECTION)
    mean, centered = square(tokens.mean(direction, t)), square(tokens.centered(direction, t))
    return [
        tokens.step(
            "unit tokens: |J X|^2 = 1 + (T - 1) c, c the mean of cos over distinct pairs",
            mean,
            1 + (T - 1) * cosine,
        ),
        tokens.step("unit tokens: |P X|^2 = (T - 1)(1 - c)", centered, (T - 1) - (T - 1) * cosine),
        tokens.step(
            "rho^2 = |J X|^2 / |P X|^2: |J X|^2 (T - 1)(1 - c) = |P X|^2 (1 + (T - 1) c)",
            mean * (T - 1) * (1 - cosine),
            centered * (1 + (T - 1) * cosine),
        ),
    ]


def _front_odds(premises: Premises) -> list[Step]:
    more = Symbol("y", nonnegative=True)
    return [
        *_unit_energies(premises),
        rational("TCS = 0.9: a = 9 T + 1", Subs(odds(COSINE), COSINE, FRONT), 9 * T + 1),
        rational("c of a(c) is c", cosine_of(odds(COSINE)), COSINE),
        rational(
            "0.9 <= c < 1, so c = (0.9 + y) / (1 + y) with y >= 0: a - (9 T + 1) = 10 T y >= 0",
            Subs(odds(COSINE), COSINE, (FRONT + more) / (1 + more)),
            9 * T + 1,
            Relation.AT_LEAST,
            witness=10 * T * more,
        ),
        rational(
            "a >= 9 T + 1, so a = 9 T + 1 + y with y >= 0: c - 0.9 = y / (10 (10 T + y)) >= 0",
            Subs(cosine_of(ODDS), ODDS, 9 * T + 1 + more),
            FRONT,
            Relation.AT_LEAST,
            witness=more / (10 * (10 * T + more)),
        ),
    ]


def _moments(premises: Premises) -> list[Step]:
    tokens, state = TokenSums(premises), entry(STATE)
    own, pair, mean, centered = (Symbol(name, positive=True) for name in ("d", "o", "m", "p"))
    second = square(state(t)) / T
    of_moments = (own + (T - 1) * pair) / T
    return [
        tokens.step(
            "m = |J X|^2 / T = (d + (T - 1) o) / T",
            square(tokens.mean(state, t)) / T,
            second / T + (T - 1) / T * pair_mean(STATE),
        ),
        tokens.step(
            "p = |P X|^2 / T = d - m",
            square(tokens.centered(state, t)) / T,
            second - square(tokens.mean(state, t)) / T,
        ),
        rational(
            "c = o / d = (T m / (m + p) - 1) / (T - 1)",
            (T * of_moments / own - 1) / (T - 1),
            pair / own,
        ),
        rational(
            "c = (a - 1) / (a + T - 1) with a = (T - 1) m / p",
            cosine_of((T - 1) * mean / centered),
            (T * mean / (mean + centered) - 1) / (T - 1),
        ),
        rational("a of that c is a", odds(cosine_of(ODDS)), ODDS),
        rational("c of a(c) is c", cosine_of(odds(COSINE)), COSINE),
        rational("da/dc = T / (1 - c)^2 > 0", Derivative(odds(COSINE), COSINE), T / (1 - COSINE) ** 2),
    ]


def _cosine(x: NDArray[Any]) -> Any:
    """Mean pair cosine of x [T, D]."""
    unit = x / (x * x).sum(1, keepdims=True) ** 0.5
    gram, tokens = unit @ unit.T, len(x)
    return (gram.sum() - np.trace(gram)) / (tokens * (tokens - 1))


def energy_odds(x: NDArray[Any]) -> Any:
    """a = (T - 1) |J X|^2 / |P X|^2 of tokens x [T, D]."""
    mean, centered = token_projectors(x)
    return (len(x) - 1) * ((mean @ x) ** 2).sum() / ((centered @ x) ** 2).sum()


def unit_tokens(x: NDArray[Any]) -> NDArray[Any]:
    """Every token of x [T, D] scaled to norm 1."""
    scaled: NDArray[Any] = x / (x * x).sum(1, keepdims=True) ** 0.5
    return scaled


def evaluate_energy_ratio(x: NDArray[Any]) -> dict[str, Sides]:
    """Both sides of E1 for tokens [T, D], normalised first."""
    tokens, cosine = len(x), _cosine(x)
    return {
        "rho_squared": (
            energy_odds(unit_tokens(x)) / (tokens - 1),
            (1 + (tokens - 1) * cosine) / ((tokens - 1) * (1 - cosine)),
        )
    }


def evaluate_front_odds(x: NDArray[Any]) -> dict[str, Sides]:
    """Both sides of E2, a - (9 T + 1), for tokens [T, D], normalised first."""
    tokens, cosine = len(x), _cosine(x)
    return {
        "distance": (
            energy_odds(unit_tokens(x)) - (9 * tokens + 1),
            (10 * tokens * cosine - 9 * tokens) / (1 - cosine),
        )
    }


def evaluate_moments(x: NDArray[Any]) -> dict[str, Sides]:
    """Both sides of E3 for tokens [T, D] of any norms; o / d follows from m and p."""
    tokens, (mean, centered) = len(x), token_projectors(x)
    own, gram = (x * x).sum() / tokens, x @ x.T
    pair = (gram.sum() - np.trace(gram)) / (tokens * (tokens - 1))
    m, p = ((mean @ x) ** 2).sum() / tokens, ((centered @ x) ** 2).sum() / tokens
    value = (tokens - 1) * m / p
    return {
        "mean_energy": (m, (own + (tokens - 1) * pair) / tokens),
        "centered_energy": (p, own - m),
        "cosine": (pair / own, (tokens * m / (m + p) - 1) / (tokens - 1)),
        "odds": (pair / own, (value - 1) / (value + tokens - 1)),
    }


ENERGY_RATIO = Law(
    tag="E1",
    title="token cosine and energy ratio determine each other",
    clauses=(
        Clause(
            says="rho^2 = |J X|^2 / |P X|^2 = (1 + (T - 1) c) / ((T - 1)(1 - c)), c = TCS",
            steps=("rho^2",),
        ),
    ),
    assumes=("all tokens have one norm", "c < 1", "T > 1", "J = 1 1^T / T", "P = I - J"),
    source="derived here",
    derive=_unit_energies,
    evaluate=evaluate_energy_ratio,
)


FRONT_ODDS = Law(
    tag="E2",
    title="the collapse front TCS = 0.9 is a = 9 T + 1",
    clauses=(
        Clause(says="a = (T - 1) rho^2 = (1 + (T - 1) c) / (1 - c)", steps=("rho^2",)),
        Clause(says="c >= 0.9 <=> a >= 9 T + 1", steps=("0.9 <= c < 1", "c of a(c)", "a >= 9 T + 1")),
    ),
    assumes=("E1",),
    source="derived here",
    derive=_front_odds,
    evaluate=evaluate_front_odds,
)


MOMENTS = Law(
    tag="E3",
    title="mean and centered energy follow from the second and the cross moment, and vice versa",
    clauses=(
        Clause(says="m = (d + (T - 1) o) / T", steps=("m = |J X|^2",)),
        Clause(says="p = d - m", steps=("p = |P X|^2",)),
        Clause(
            says=("c = o / d = (T m / (m + p) - 1) / (T - 1) = (a - 1) / (a + T - 1), a = (T - 1) m / p"),
            steps=("p = |P X|^2", "c = o / d", "c = (a - 1)"),
        ),
    ),
    assumes=("d mean of |x_t|^2, o mean of <x_t, x_s> over s != t", "T > 1", "J = 1 1^T / T", "P = I - J"),
    source="derived here",
    derive=_moments,
    evaluate=evaluate_moments,
)
