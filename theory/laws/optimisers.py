"""Laws C1 and C2: global-norm clipping and orthogonalised updates keep the mean-coherent direction."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sympy import Expr, IndexedBase, Integer, S, Sum, Symbol

from meanmode.theory.laws.gradient_split import ADJOINT, INPUT, WriterModes
from meanmode.theory.proof.index_sums import over
from meanmode.theory.proof.law import Clause, Law, Premises, Sides
from meanmode.theory.proof.letters import Letter
from meanmode.theory.proof.step import Algebra, Facts, Relation, Step, cited
from meanmode.theory.proof.symbols import M, N, T, a, b, k, t
from meanmode.theory.proof.token_sums import token_projectors

CLIP, BOUND, NORM = (Symbol(name, positive=True) for name in ("c", "tau", "n"))
COHERENT, CENTERED = (IndexedBase(name, shape=(M, N), real=True) for name in "UV")


def _clipping(premises: Premises) -> list[Step]:
    modes = WriterModes(premises)

    def norm(part: IndexedBase, scale: Expr) -> Expr:
        return Sum((scale * part[a, b]) ** 2, over(a, M), over(b, N))

    return [
        modes.step(
            "c grad = c T dbar ybar^T + c sum_t dtilde_t ytilde_t^T",
            Sum(CLIP * ADJOINT[k, t, a] * INPUT[k, t, b], over(t, T)),
            CLIP * modes.coherent(k) + CLIP * modes.remainder(k),
        ),
        modes.step(
            "|c U|^2 |V|^2 = |U|^2 |c V|^2 for the two parts U, V",
            norm(COHERENT, CLIP) * norm(CENTERED, S.One),
            norm(COHERENT, S.One) * norm(CENTERED, CLIP),
        ),
        modes.step(
            "c = tau / n: n^2 |c U|^2 = tau^2 |U|^2, so the clipped gradient has norm tau at n = |U|",
            norm(COHERENT, BOUND / NORM) * NORM**2,
            BOUND**2 * norm(COHERENT, S.One),
        ),
    ]


LEFT, LEFT_ROW = Letter("u", M, 1), Letter("u^T", 1, M)
RIGHT, RIGHT_ROW = Letter("v", N, 1), Letter("v^T", 1, N)
REST, REST_ROW = Letter("E", M, N), Letter("E^T", N, M)
LEFT_ENTRY, TEST_VECTOR = (IndexedBase(name, shape=(M,), real=True) for name in "ux")


def _orthogonalised(premises: Premises) -> list[Step]:
    sigma, first, third, fifth = (Symbol(name, positive=True) for name in ("sigma", "c_1", "c_3", "c_5"))
    products = {
        (LEFT_ROW, LEFT): premises.unit_square,
        (RIGHT_ROW, RIGHT): premises.unit_square,
        (REST, RIGHT): S.Zero,
        (RIGHT_ROW, REST_ROW): S.Zero,
        (LEFT_ROW, REST): S.Zero,
        (REST_ROW, LEFT): S.Zero,
    }
    momentum, transposed = sigma * LEFT * RIGHT_ROW, sigma * RIGHT * LEFT_ROW
    inverse_root = LEFT * LEFT_ROW / sigma

    def polynomial(matrix: Expr, adjoint: Expr) -> Expr:
        gram = matrix * adjoint
        return first * matrix + third * gram * matrix + fifth * gram * gram * matrix

    def step(name: str, left: Expr, right: Expr) -> Step:
        return Step(name=name, left=left, right=right, algebra=Algebra.WORDS, facts=Facts(products=products))

    projection = Sum(TEST_VECTOR[a] * LEFT_ENTRY[a], over(a, M))
    form = TEST_VECTOR[a] * LEFT_ENTRY[a] * LEFT_ENTRY[b] * TEST_VECTOR[b] / sigma

    scalar = first * sigma + third * sigma**3 + fifth * sigma**5
    return [
        step("M M^T = sigma^2 u u^T", momentum * transposed, sigma**2 * LEFT * LEFT_ROW),
        step(
            "R = u u^T / sigma is the inverse root of M M^T on its range: R (M M^T) R = u u^T",
            inverse_root * momentum * transposed * inverse_root,
            LEFT * LEFT_ROW,
        ),
        Step(
            name="R is positive semidefinite: x^T R x = <u, x>^2 / sigma >= 0",
            left=Sum(form, over(a, M), over(b, M)),
            right=Integer(0),
            relation=Relation.AT_LEAST,
            algebra=Algebra.SUMS,
            witness=projection**2 / sigma,
        ),
        cited(
            "so R = (M M^T)^(-1/2) on that range",
            theorem="a positive definite matrix has exactly one positive definite square root",
            conditions=(
                "on the range of M M^T, spanned by u: R is positive there by the step before (x = u), and "
                "R (M M^T) R = u u^T is its identity"
            ),
        ),
        step("polar factor: R M = u v^T, whatever sigma", inverse_root * momentum, LEFT * RIGHT_ROW),
        step(
            "Newton-Schulz, p odd of degree 5: p(sigma u v^T + E) = p(sigma) u v^T + p(E) if E v = 0 = E^T u",
            polynomial(momentum + REST, transposed + REST_ROW),
            scalar * LEFT * RIGHT_ROW + polynomial(REST, REST_ROW),
        ),
    ]


def evaluate_clipping(y: NDArray[Any], delta: NDArray[Any], bound: Any) -> dict[str, Sides]:
    """Both sides of C1 for one sample y [T, N], delta [T, M], with its gradient clipped to norm `bound`."""
    mean, centered = token_projectors(y)
    gradient = delta.T @ y
    scale = bound / (gradient * gradient).sum() ** 0.5
    coherent, rest = (mean @ delta).T @ (mean @ y), (centered @ delta).T @ (centered @ y)

    def ratio(left: NDArray[Any], right: NDArray[Any]) -> Any:
        return ((left * left).sum() / (right * right).sum()) ** 0.5

    return {
        "split": (scale * gradient, scale * coherent + scale * rest),
        "norm": (((scale * gradient) ** 2).sum() ** 0.5, bound),
        "ratio": (ratio(scale * coherent, scale * rest), ratio(coherent, rest)),
    }


def evaluate_orthogonalised(
    left: NDArray[Any], right: NDArray[Any], sigma: Any, rest: NDArray[Any]
) -> dict[str, Sides]:
    """Both sides of C2; `rest` [M, N] is first made orthogonal to u = left / |left|, v = right / |right|."""
    u, v = left / (left @ left) ** 0.5, right / (right @ right) ** 0.5
    rest = rest - np.outer(u, u @ rest)
    rest = rest - np.outer(rest @ v, v)
    momentum = sigma * np.outer(u, v)

    def newton_schulz(m: NDArray[Any]) -> NDArray[Any]:
        gram = m @ m.T
        out: NDArray[Any] = 15 * m / 8 - 10 * gram @ m / 8 + 3 * gram @ gram @ m / 8
        return out

    scalar = (15 * sigma - 10 * sigma**3 + 3 * sigma**5) / 8
    return {
        "polar": (np.outer(u, u) / sigma @ momentum, np.outer(u, v)),
        "newton_schulz": (newton_schulz(momentum + rest), scalar * np.outer(u, v) + newton_schulz(rest)),
    }


CLIPPING = Law(
    tag="C1",
    title="clipping by global norm rescales both parts of every gradient equally",
    clauses=(
        Clause(
            says="grad -> c grad: DW_mu -> c DW_mu, DW_c -> c DW_c, so G_mean / G_ctr is unchanged",
            steps=("c grad", "|c U|^2 |V|^2"),
        ),
    ),
    assumes=("c = tau / |grad| > 0 is one number for all parameters", "G_ctr > 0", "G1"),
    source="arXiv:2605.06169 App. J",
    derive=_clipping,
    evaluate=evaluate_clipping,
)


ORTHOGONALISED = Law(
    tag="C2",
    title="an orthogonalised update keeps the mean-coherent direction at full strength",
    clauses=(
        Clause(
            says="M = sigma u v^T: (M M^T)^(-1/2) M = u v^T on its range, whatever sigma",
            steps=("M M^T", "R = u u^T / sigma", "R is positive", "so R = (M M^T)", "polar factor"),
        ),
        Clause(says="p(sigma u v^T + E) = p(sigma) u v^T + p(E) for odd p", steps=("Newton-Schulz",)),
    ),
    assumes=(
        "T dbar ybar^T = sigma u v^T with |u| = |v| = 1, sigma > 0",
        "the rest E of the momentum has E v = 0 and E^T u = 0",
        "p of degree 5, as Newton-Schulz iterates it",
    ),
    source="arXiv:2605.06169 App. J (the rank-one case and Newton-Schulz derived here)",
    derive=_orthogonalised,
    evaluate=evaluate_orthogonalised,
)
