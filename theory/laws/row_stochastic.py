"""Laws P1 and P2: a row-stochastic mixer keeps the token mean and acts on the centered part through P A P."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from meanmode.theory.proof.law import Clause, Law, Premises, Sides, frobenius
from meanmode.theory.proof.step import Step, cited
from meanmode.theory.proof.token_projectors import MIXER, STATE, TokenProjectors
from meanmode.theory.proof.token_sums import token_projectors


def _mean_is_kept(premises: Premises) -> list[Step]:
    tokens = TokenProjectors(premises)
    mean, centered = tokens.mean, tokens.centered
    return [
        tokens.step("J^2 = J, from v^T v", mean * mean, mean),
        tokens.step("A J = J, from A 1 = 1", MIXER * mean, mean),
        tokens.step("A mu(X) = mu(X)", MIXER * mean * STATE, mean * STATE),
        tokens.step(
            "mu(A X) = J X + J A P X", mean * MIXER * STATE, mean * STATE + mean * MIXER * centered * STATE
        ),
    ]


def _centered_part(premises: Premises) -> list[Step]:
    tokens = TokenProjectors(premises)
    mean, centered = tokens.mean, tokens.centered
    return [
        tokens.step("P^2 = P", centered * centered, centered),
        tokens.step("P J = 0", centered * mean, 0 * mean),
        tokens.step("P A J = 0, from A 1 = r 1", centered * MIXER * mean, 0 * mean),
        tokens.step("P A X = P A P X", centered * MIXER * STATE, centered * MIXER * centered * STATE),
        tokens.step(
            "P A P X = (P A P)(P X)",
            centered * MIXER * centered * STATE,
            (centered * MIXER * centered) * (centered * STATE),
        ),
        cited(
            "|P A P X|_F <= |P A P|_2 |P X|_F",
            theorem="|M N|_F <= |M|_2 |N|_F, the definition of the spectral norm taken column by column",
            conditions="M = P A P and N = P X are real, and their product is P A P X by the step before",
        ),
    ]


def evaluate_mean_is_kept(attention: NDArray[Any], x: NDArray[Any]) -> dict[str, Sides]:
    """Both sides of P1 for an attention matrix [T, T] and a state [T, D]."""
    mean, centered = token_projectors(x)
    return {
        "mean_kept": (attention @ mean @ x, mean @ x),
        "leakage": (mean @ attention @ x, mean @ x + mean @ attention @ centered @ x),
    }


def evaluate_centered_part(attention: NDArray[Any], x: NDArray[Any]) -> dict[str, Sides]:
    """Both sides of P2 for an attention matrix [T, T] and a state [T, D]; the bound has left <= right."""
    _, centered = token_projectors(x)
    core = centered @ attention @ centered
    sides = {"centered": (centered @ attention @ x, core @ x)}
    if core.dtype != object:
        bound = np.linalg.norm(core, 2) * frobenius(centered @ x)
        sides["bound"] = (frobenius(centered @ attention @ x), bound)
    return sides


MEAN_IS_KEPT = Law(
    tag="P1",
    title="a row-stochastic mixer keeps the token mean",
    clauses=(
        Clause(says="A J X = J X", steps=("A mu(X)",)),
        Clause(says="J A X = J X + J A P X", steps=("mu(A X)",)),
    ),
    assumes=("A 1 = 1", "J = 1 1^T / T", "P = I - J"),
    source="arXiv:2605.06169 Prop. 1",
    derive=_mean_is_kept,
    evaluate=evaluate_mean_is_kept,
)


CENTERED_PART = Law(
    tag="P2",
    title="the mixer acts on the centered part through P A P only",
    clauses=(
        Clause(says="P A X = P A P X", steps=("P A X",)),
        Clause(
            says="|P A X|_F <= mu_eff(A) |P X|_F,  mu_eff(A) = |P A P|_2",
            steps=("P A X", "P A P X = (P A P)(P X)", "|P A P X|_F"),
        ),
    ),
    assumes=("A 1 = r 1 for some r", "J = 1 1^T / T", "P = I - J", "|M N|_F <= |M|_2 |N|_F"),
    source="arXiv:2605.06169 Prop. 2, Eq. 4",
    derive=_centered_part,
    evaluate=evaluate_centered_part,
)
