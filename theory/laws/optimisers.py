"""Laws C1 and C2: global-norm clipping and orthogonalised updates keep the mean-coherent direction."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sympy import Expr, IndexedBase, S, Sum, Symbol, cancel

from meanmode.theory.laws.gradient_split import ADJOINT, INPUT, WriterModes
from meanmode.theory.proof.index_sums import over
from meanmode.theory.proof.law import Law, Premises, Sides, Step
from meanmode.theory.proof.matrix_words import letter, word_normal_form
from meanmode.theory.proof.symbols import M, N, T, a, b, k, t
from meanmode.theory.proof.token_sums import token_projectors

CLIP, BOUND, NORM = (Symbol(name, positive=True) for name in ("c", "tau", "n"))
COHERENT, CENTERED = IndexedBase("U", real=True), IndexedBase("V", real=True)


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
        Step(
            name="the clipped gradient c grad has norm tau for c = tau / |grad|",
            left=(BOUND / NORM) * NORM,
            right=BOUND,
            normal_form=cancel,
        ),
    ]


LEFT, LEFT_ROW, RIGHT, RIGHT_ROW = letter("u"), letter("u^T"), letter("v"), letter("v^T")
REST, REST_ROW = letter("E"), letter("E^T")


def _orthogonalised(premises: Premises) -> list[Step]:
    sigma, first, third, fifth = (Symbol(name, positive=True) for name in ("sigma", "c_1", "c_3", "c_5"))
    rules = {
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

    def form(words: Expr) -> Expr:
        return word_normal_form(words, rules)

    def step(name: str, left: Expr, right: Expr) -> Step:
        return Step(name=name, left=left, right=right, normal_form=form)

    scalar = first * sigma + third * sigma**3 + fifth * sigma**5
    return [
        step("M M^T = sigma^2 u u^T", momentum * transposed, sigma**2 * LEFT * LEFT_ROW),
        step(
            "R = u u^T / sigma is the inverse root of M M^T on its range: R (M M^T) R = u u^T",
            inverse_root * momentum * transposed * inverse_root,
            LEFT * LEFT_ROW,
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
    statement="grad -> c grad: DW_mu -> c DW_mu, DW_c -> c DW_c, so G_mean / G_ctr is unchanged",
    assumes=("c = tau / |grad| > 0 is one number for all parameters", "G_ctr > 0", "G1"),
    source="arXiv:2605.06169 App. J",
    derive=_clipping,
    evaluate=evaluate_clipping,
)


ORTHOGONALISED = Law(
    tag="C2",
    title="an orthogonalised update keeps the mean-coherent direction at full strength",
    statement=(
        "M = sigma u v^T: (M M^T)^(-1/2) M = u v^T on its range, whatever sigma;  "
        "p(sigma u v^T + E) = p(sigma) u v^T + p(E) for odd p"
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
