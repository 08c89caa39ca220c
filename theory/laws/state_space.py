"""Law N10: by how much a gated state space violates P1, P2 and S1."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sympy import Expr, IndexedBase, Integer, Rational, Sum, Symbol, cancel, diff, exp, expand

from meanmode.theory.laws.softmax_null_space import COMMON, READER
from meanmode.theory.proof.index_sums import over
from meanmode.theory.proof.law import Law, Premises, Relation, Sides, Step
from meanmode.theory.proof.symbols import T, a, b, t
from meanmode.theory.proof.token_sums import TokenSums, average, entry, token_projectors

DEFECT = IndexedBase("p", real=True)


def _defect(token: Expr) -> Expr:
    return DEFECT[token]


def _row_sums(premises: Premises) -> list[Step]:
    """The row sums 1 - p_t and their effect on the mean."""
    sums = TokenSums(premises)
    decay, product = Symbol("a", positive=True), Symbol("p", positive=True)
    state = entry(IndexedBase("X", real=True))
    half = Rational(1, 2)
    # three tokens, all decays 1/2: products from the left, averaged with those from the right
    left_products = [half, half**2, half**3]
    defects = [(one + other) / 2 for one, other in zip(left_products, left_products[::-1], strict=True)]

    def mixed_mean(token: Expr) -> Expr:
        return (1 - DEFECT[token]) * sums.mean(state, token)

    return [
        Step(
            name="row sums, r_{t-1} = 1 - p_{t-1}: a_t r_{t-1} + (1 - a_t) = 1 - a_t p_{t-1} = 1 - p_t",
            left=decay * (1 - product) + premises.state_write - decay,
            right=1 - decay * product,
            normal_form=expand,
        ),
        Step(
            name="no token: r_0 = 0 = 1 - p_0, p_0 the empty product",
            left=Integer(0),
            right=1 - Integer(1),
            normal_form=expand,
        ),
        sums.step(
            "r_t = 1 - p_t, p_t the mean of both directions: J A J X = (1 - pbar) J X",
            sums.mean(mixed_mean, t),
            sums.mean(state, t) - average(_defect) * sums.mean(state, t),
        ),
        sums.step(
            "P A J X = -(p - pbar 1) xbar^T: the mean leaks into the centered part",
            sums.centered(mixed_mean, t),
            (average(_defect) - DEFECT[t]) * sums.mean(state, t),
        ),
        Step(
            name="three tokens, a = 1/2: p_1 = 5/16 and p_2 = 1/4 differ",
            left=defects[0],
            right=defects[1],
            relation=Relation.UNEQUAL,
            normal_form=lambda form: form,
        ),
    ]


def _gradients(premises: Premises) -> list[Step]:
    """The gradients of the decays and of W_O if all values are equal."""
    sums = TokenSums(premises)
    rest, inverse = Symbol("c", positive=True), Symbol("x", positive=True)
    logit = Symbol("z", real=True)
    sigmoid = 1 / (1 + inverse)

    def read(token: Expr) -> Expr:
        return READER[token, a]

    return [
        Step(
            name="a_k = sigma(z_k): a product with a_k moves by itself times 1 - a_k",
            left=diff(rest / (1 + exp(-logit)), logit).subs(exp(-logit), inverse),
            right=rest * sigmoid - rest * sigmoid**2,
            normal_form=cancel,
        ),
        sums.step(
            "V_j = vbar: O_t = (1 - p_t) vbar, and W_O's gradient is not mean-coherent",
            Sum(read(t) * (1 - DEFECT[t]) * COMMON[b], over(t, T)),
            T * average(read) * (1 - average(_defect)) * COMMON[b]
            - Sum(sums.centered(read, t) * sums.centered(_defect, t), over(t, T)) * COMMON[b],
        ),
        Step(
            name="V = vbar = 1, d = 1, one token, a = 1/2: dL/dz = -a (1 - a) = -1/4, not silent",
            left=diff(1 - 1 / (1 + exp(-logit)), logit).subs(logit, 0),
            right=Integer(0),
            relation=Relation.UNEQUAL,
            normal_form=lambda form: form,
        ),
    ]


def _state_space(premises: Premises) -> list[Step]:
    return [*_row_sums(premises), *_gradients(premises)]


def state_space_matrix(decay: NDArray[Any]) -> NDArray[Any]:
    """Mixing matrix [T, T] of decays [T]: the mean of the scan from the left and the scan from the right."""
    tokens = len(decay)
    return np.array(
        [
            [
                (1 - decay[k])
                * (np.prod(decay[k + 1 : i + 1]) * (k <= i) + np.prod(decay[i:k]) * (k >= i))
                / 2
                for k in range(tokens)
            ]
            for i in range(tokens)
        ]
    )


def row_defects(decay: NDArray[Any]) -> NDArray[Any]:
    """1 minus the row sums of a state space [T]: the mean of prod_{s <= t} a_s and prod_{s >= t} a_s."""
    return (np.cumprod(decay) + np.cumprod(decay[::-1])[::-1]) / 2


def decay_gradient(decay: NDArray[Any], value: NDArray[Any], cotangent: NDArray[Any]) -> NDArray[Any]:
    """dL/dz [T] of the decays' logits if every value is `value` [N]; d [T, N] is the cotangent of the output.

    -(1 - a_k) / 2 (sum_{t >= k} prod_{s <= t} a_s <d_t, vbar> + sum_{t <= k} prod_{s >= t} a_s <d_t, vbar>).
    """
    left, right = np.cumprod(decay), np.cumprod(decay[::-1])[::-1]
    read = cotangent @ value
    after, before = np.cumsum((left * read)[::-1])[::-1], np.cumsum(right * read)
    return -(1 - decay) * (after + before) / 2


def evaluate_state_space(
    decay: NDArray[Any], x: NDArray[Any], value: NDArray[Any], cotangent: NDArray[Any]
) -> dict[str, Sides]:
    """Both sides of N10 for decays [T], a state x [T, D], a value [N] and cotangents [T, N].

    The left side of the gradient differentiates every entry of the matrix: a factor a_k contributes 1 - a_k,
    a factor 1 - a_k contributes -a_k.
    """
    matrix, defect = state_space_matrix(decay), row_defects(decay)
    tokens, one = len(decay), decay.flat[0] ** 0
    mean, centered = token_projectors(x)
    token_mean, average_defect = x.sum(0) / len(x), defect.sum() / len(x)
    read = cotangent @ value
    gradient = []
    for k in range(tokens):
        moved = matrix * one
        for i in range(tokens):
            for source in range(tokens):
                between = source < k <= i or i <= k < source
                moved[i, source] *= (1 - decay[k]) * between - decay[k] * (source == k)
        gradient.append((read * moved.sum(1)).sum())
    values = np.stack([value] * tokens)
    writer_mean = cotangent.sum(0) / tokens
    part = (cotangent - writer_mean).T @ (defect - average_defect)
    return {
        "row_sums": (matrix.sum(1), 1 - defect),
        "mean": (mean @ matrix @ mean @ x, (1 - average_defect) * (mean @ x)),
        "centered": (centered @ matrix @ mean @ x, -np.outer(defect - average_defect, token_mean)),
        "decays": (np.array(gradient), decay_gradient(decay, value, cotangent)),
        "writer": (
            cotangent.T @ (matrix @ values),
            tokens * (1 - average_defect) * np.outer(writer_mean, value) - np.outer(part, value),
        ),
    }


STATE_SPACE = Law(
    tag="N10",
    title="a gated state space shrinks and leaks the mean, and homogeneous values leave it a gradient",
    statement=(
        "h_t = a_t h_{t-1} + (1 - a_t) v_t, both directions averaged: (A 1)_t = 1 - p_t, "
        "p_t = (prod_{s <= t} a_s + prod_{s >= t} a_s) / 2;  "
        "J A J X = (1 - pbar) J X, P A J X = -(p - pbar 1) xbar^T;  "
        "V_j = vbar, a_k = sigma(z_k): dL/dz_k = -(1 - a_k)/2 (sum_{t >= k} prod_{s <= t} a_s <d_t, vbar> "
        "+ sum_{t <= k} prod_{s >= t} a_s <d_t, vbar>)"
    ),
    assumes=(
        "0 < a_t < 1, one per head, the same in both directions",
        "no state before the first token",
        "d_t the cotangent of the output",
        "J = 1 1^T / T",
        "P = I - J",
    ),
    source="derived here",
    derive=_state_space,
    evaluate=evaluate_state_space,
)
