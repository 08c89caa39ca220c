"""Laws E1 to E3: token cosine, energy ratio and second moments determine each other; where the front lies."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sympy import Expr, IndexedBase, Rational, Sum, Symbol, cancel, diff

from meanmode.theory.proof.index_sums import off_diagonal, over
from meanmode.theory.proof.law import Law, Premises, Sides, Step
from meanmode.theory.proof.symbols import T, b, s, t
from meanmode.theory.proof.token_sums import WIDTH, TokenSums, entry, square, token_projectors

STATE, DIRECTION = IndexedBase("X", real=True), IndexedBase("u", real=True)
COSINE = Symbol("c", real=True)
ODDS = Symbol("a", positive=True)
FRONT = Rational(9, 10)


def odds(cosine: Expr) -> Expr:
    """a = (1 + (T - 1) c) / (1 - c) = (T - 1) rho^2, the odds of a pair cosine c."""
    return (1 + (T - 1) * cosine) / (1 - cosine)


def cosine_of(value: Expr) -> Expr:
    """c = (a - 1) / (a + T - 1), the inverse of `odds`."""
    return (value - 1) / (value + T - 1)


def algebra(name: str, left: Expr, right: Expr) -> Step:
    """An identity between rational functions."""
    return Step(name=name, left=left, right=right, normal_form=cancel)


def _pair_mean(base: IndexedBase) -> Expr:
    """Mean of <x_t, x_s> over pairs of distinct tokens."""
    inner = Sum(base[t, b] * base[s, b], over(b, WIDTH))
    return Sum(off_diagonal(t, s) * inner, over(t, T), over(s, T)) / (T * (T - 1))


def _unit_energies(premises: Premises) -> list[Step]:
    tokens = TokenSums(premises, unit={DIRECTION: premises.unit_square})
    direction, cosine = entry(DIRECTION), _pair_mean(DIRECTION)
    return [
        tokens.step(
            "unit tokens: |J X|^2 = 1 + (T - 1) c, c the mean of cos over distinct pairs",
            square(tokens.mean(direction, t)),
            1 + (T - 1) * cosine,
        ),
        tokens.step(
            "unit tokens: |P X|^2 = (T - 1)(1 - c)",
            square(tokens.centered(direction, t)),
            (T - 1) - (T - 1) * cosine,
        ),
    ]


def _energy_ratio(premises: Premises) -> list[Step]:
    ratio = (1 + (T - 1) * COSINE) / ((T - 1) * (1 - COSINE))
    return [
        *_unit_energies(premises),
        algebra("(T - 1) rho^2 = (1 + (T - 1) c) / (1 - c)", (T - 1) * ratio, odds(COSINE)),
    ]


def _front_odds(premises: Premises) -> list[Step]:
    distance = 10 * T * (COSINE - FRONT) / (1 - COSINE)
    return [
        *_unit_energies(premises),
        algebra("TCS = 0.9: a = 9 T + 1", odds(FRONT), 9 * T + 1),
        algebra("a = 9 T + 1: TCS = 0.9", cosine_of(9 * T + 1), FRONT),
        algebra(
            "a - (9 T + 1) = 10 T (c - 0.9) / (1 - c): the same sign for c < 1",
            odds(COSINE) - (9 * T + 1),
            distance,
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
            second / T + (T - 1) / T * _pair_mean(STATE),
        ),
        tokens.step(
            "p = |P X|^2 / T = d - m",
            square(tokens.centered(state, t)) / T,
            second - square(tokens.mean(state, t)) / T,
        ),
        algebra(
            "c = o / d = (T m / (m + p) - 1) / (T - 1)",
            (T * of_moments / own - 1) / (T - 1),
            pair / own,
        ),
        algebra(
            "c = (a - 1) / (a + T - 1) with a = (T - 1) m / p",
            cosine_of((T - 1) * mean / centered),
            (T * mean / (mean + centered) - 1) / (T - 1),
        ),
        algebra("a of that c is a", odds(cosine_of(ODDS)), ODDS),
        algebra("c of a(c) is c", cosine_of(odds(COSINE)), COSINE),
        algebra("da/dc = T / (1 - c)^2 > 0", diff(odds(COSINE), COSINE), T / (1 - COSINE) ** 2),
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
    statement="rho^2 = |J X|^2 / |P X|^2 = (1 + (T - 1) c) / ((T - 1)(1 - c)), c = TCS",
    assumes=("all tokens have one norm", "c < 1", "T > 1", "J = 1 1^T / T", "P = I - J"),
    source="derived here",
    derive=_energy_ratio,
    evaluate=evaluate_energy_ratio,
)


FRONT_ODDS = Law(
    tag="E2",
    title="the collapse front TCS = 0.9 is a = 9 T + 1",
    statement="a = (T - 1) rho^2 = (1 + (T - 1) c) / (1 - c);  c >= 0.9 <=> a >= 9 T + 1",
    assumes=("E1",),
    source="derived here",
    derive=_front_odds,
    evaluate=evaluate_front_odds,
)


MOMENTS = Law(
    tag="E3",
    title="mean and centered energy follow from the second and the cross moment, and vice versa",
    statement=(
        "m = (d + (T - 1) o) / T;  p = d - m;  c = o / d = (T m / (m + p) - 1) / (T - 1)"
        " = (a - 1) / (a + T - 1), a = (T - 1) m / p"
    ),
    assumes=("d mean of |x_t|^2, o mean of <x_t, x_s> over s != t", "T > 1", "J = 1 1^T / T", "P = I - J"),
    source="derived here",
    derive=_moments,
    evaluate=evaluate_moments,
)
