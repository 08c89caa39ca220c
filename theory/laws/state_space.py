"""Law N10: by how much a gated state space violates P1, P2 and S1."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sympy import Derivative, Expr, IndexedBase, Integer, Rational, Subs, Sum, Symbol, exp, log

from meanmode.theory.laws.softmax_null_space import COMMON, COTANGENT, READER
from meanmode.theory.proof.index_sums import over
from meanmode.theory.proof.law import Clause, Law, Premises, Sides
from meanmode.theory.proof.step import Relation, Step, calculus, rational
from meanmode.theory.proof.symbols import WIDTH, N, T, a, b, j, s, t
from meanmode.theory.proof.token_sums import TokenSums, average, entry, token_projectors

DEFECT = IndexedBase("p", shape=(T,), real=True)
DECAY, LEFT, RIGHT = (IndexedBase(name, shape=(T,), positive=True) for name in ("a", "l", "r"))
MOVE, STATE = IndexedBase("h", shape=(T,), real=True), IndexedBase("X", shape=(T, WIDTH), real=True)
UP_TO = IndexedBase("u", shape=(T, T), nonnegative=True)


def _defect(token: Expr) -> Expr:
    return DEFECT[token]


def _row_sums(premises: Premises) -> list[Step]:
    """The row sums 1 - p_t and their effect on the mean."""
    sums = TokenSums(premises)
    decay, product = Symbol("a", positive=True), Symbol("p", positive=True)
    state = entry(STATE)
    half = Rational(1, 2)
    scanned = decay * (1 - product) + premises.state_write - decay
    # three tokens, all decays 1/2: products from the left, averaged with those from the right
    products = (half, half**2, half**3)

    def mixed_mean(token: Expr) -> Expr:
        return (1 - DEFECT[token]) * sums.mean(state, token)

    def defect(token: Expr) -> Expr:
        return (LEFT[token] + RIGHT[token]) / 2

    return [
        rational(
            "row sums, r_{t-1} = 1 - p_{t-1}: a_t r_{t-1} + (1 - a_t) = 1 - a_t p_{t-1} = 1 - p_t",
            scanned,
            1 - decay * product,
        ),
        rational(
            "the first token, p_0 = 1 as r_0 = 0: r_1 = 1 - a_1 = 1 - p_1",
            Subs(scanned, product, 1),
            1 - decay,
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
        sums.step(
            "three tokens, a = 1/2: p_1 = 5/16 and p_2 = 1/4 differ",
            defect(t),
            defect(s),
            Relation.UNEQUAL,
            at={T: 3, t: 1, s: 2, LEFT: products, RIGHT: products[::-1]},
        ),
    ]


def _gradients(premises: Premises) -> list[Step]:
    """The gradients of the decays and of W_O if all values are equal.

    l_t = prod_{s <= t} a_s and r_t = prod_{s >= t} a_s; u_st is 1 for s <= t and 0 otherwise. Along dz = h,
    dl_t = l_t sum_s u_st (1 - a_s) h_s, as d ln a_s = (1 - a_s) h_s, and O_t = (1 - (l_t + r_t) / 2) vbar.
    """
    sums = TokenSums(premises)
    rest = Symbol("c", positive=True)
    logit = Symbol("z", real=True)
    sigmoid = 1 / (1 + exp(-logit))
    below = Sum(UP_TO[s, t] * (1 - DECAY[s]) * MOVE[s], over(s, T))
    above = Sum(UP_TO[t, s] * (1 - DECAY[s]) * MOVE[s], over(s, T))
    output_moves = -(LEFT[t] * below + RIGHT[t] * above) / 2 * COMMON[b]
    read = Sum(COTANGENT[t, b] * COMMON[b], over(b, N))
    after = Sum(UP_TO[j, t] * LEFT[t] * read, over(t, T))
    before = Sum(UP_TO[t, j] * RIGHT[t] * read, over(t, T))

    def written(token: Expr) -> Expr:
        return READER[token, a]

    return [
        calculus(
            "a_k = sigma(z_k): a product with a_k moves by itself times 1 - a_k",
            Derivative(rest * sigmoid, logit),
            rest * sigmoid * (1 - sigmoid),
        ),
        calculus("that is, d ln a_k / dz_k = 1 - a_k", Derivative(log(sigmoid), logit), 1 - sigmoid),
        sums.step(
            "V_j = vbar: sum_t <d_t, dO_t> = sum_k (dL/dz_k) h_k for every dz = h",
            Sum(COTANGENT[t, b] * output_moves, over(t, T), over(b, N)),
            Sum(-(1 - DECAY[j]) / 2 * (after + before) * MOVE[j], over(j, T)),
        ),
        sums.step(
            "V_j = vbar: O_t = (1 - p_t) vbar, and W_O's gradient is not mean-coherent",
            Sum(written(t) * (1 - DEFECT[t]) * COMMON[b], over(t, T)),
            T * average(written) * (1 - average(_defect)) * COMMON[b]
            - Sum(sums.centered(written, t) * sums.centered(_defect, t), over(t, T)) * COMMON[b],
        ),
        calculus(
            "V = vbar = 1, d = 1, one token, a = 1/2: dL/dz = -a (1 - a) = -1/4, not silent",
            Subs(Derivative(1 - sigmoid, logit), logit, 0),
            Integer(0),
            Relation.UNEQUAL,
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
    clauses=(
        Clause(
            says=(
                "h_t = a_t h_{t-1} + (1 - a_t) v_t, both directions averaged: (A 1)_t = 1 - p_t, "
                "p_t = (prod_{s <= t} a_s + prod_{s >= t} a_s) / 2"
            ),
            steps=("row sums", "the first token"),
            prose="induction over the tokens, from either end; p_t averages both directions",
        ),
        Clause(
            says="J A J X = (1 - pbar) J X, P A J X = -(p - pbar 1) xbar^T",
            steps=("r_t = 1 - p_t", "P A J X", "three tokens"),
        ),
        Clause(
            says=(
                "V_j = vbar, a_k = sigma(z_k): "
                "dL/dz_k = -(1 - a_k)/2 (sum_{t >= k} prod_{s <= t} a_s <d_t, vbar> "
                "+ sum_{t <= k} prod_{s >= t} a_s <d_t, vbar>)"
            ),
            steps=("that is, d ln a_k", "V_j = vbar: sum_t <d_t, dO_t>", "V = vbar = 1"),
            prose="the product l_t moves by l_t sum_{s <= t} d ln a_s, and r_t likewise",
        ),
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
