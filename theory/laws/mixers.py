"""Laws N8 and N9: which of P1, P2 and S1 hold for mixers other than softmax attention."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sympy import Derivative, Expr, Function, IndexedBase, Integer, Subs, Sum, Symbol, diff, exp

from meanmode.theory.laws.softmax_null_space import COMMON, COTANGENT, READER, score_gradient
from meanmode.theory.proof.index_sums import over
from meanmode.theory.proof.law import TOKENS, Clause, Law, Premises, Sides
from meanmode.theory.proof.letters import Letter
from meanmode.theory.proof.step import Algebra, Facts, Relation, Step, calculus
from meanmode.theory.proof.symbols import N, T, a, b, j, s, t
from meanmode.theory.proof.token_projectors import COLUMN, MIXER, ROW, STATE, TokenProjectors
from meanmode.theory.proof.token_sums import ATTENTION, TokenSums, average, entry, token_projectors

BLEND, ROW_SUMS = Letter("B", T, T), Letter("r", T, 1)
IDENTITY, SHARE = Symbol("e", real=True), Symbol("l", real=True)
WEIGHTS, WEIGHT = IndexedBase("w", shape=(T, T), positive=True), IndexedBase("w", shape=(T,), positive=True)
CHANGE, GATE = IndexedBase("h", shape=(T,), real=True), IndexedBase("g", shape=(T, N), real=True)
TOTAL = Symbol("z", positive=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class MixerClaims:
    """Which laws of row-stochastic attention hold for a mixer, for scores that are not homogeneous.

    Attributes:
        mean_kept: P1 holds: all row sums are 1.
        no_leakage: P2 holds: the row sums are equal, so the mean does not leak into the centered part.
        silent_scores: S1 holds: homogeneous values give no gradient to anything the matrix is computed from.
        silent_gates: they give none to the gates either; True for a mixer without gates.
        laws: tags of the laws that show it.
    """

    mean_kept: bool
    no_leakage: bool
    silent_scores: bool
    silent_gates: bool = True
    laws: tuple[str, ...]


MIXER_CLAIMS = {
    "softmax": MixerClaims(mean_kept=True, no_leakage=True, silent_scores=True, laws=("P1", "P2", "S1")),
    "uniform": MixerClaims(mean_kept=True, no_leakage=True, silent_scores=True, laws=("N8",)),
    "linear": MixerClaims(mean_kept=True, no_leakage=True, silent_scores=True, laws=("N8", "N9")),
    "lazy": MixerClaims(mean_kept=True, no_leakage=True, silent_scores=True, laws=("N3", "N8", "N9")),
    "a_minus_i": MixerClaims(mean_kept=False, no_leakage=True, silent_scores=True, laws=("N2", "N8", "N9")),
    "i_minus_a": MixerClaims(mean_kept=False, no_leakage=True, silent_scores=True, laws=("N2", "N8", "N9")),
    "gated": MixerClaims(
        mean_kept=False, no_leakage=False, silent_scores=True, silent_gates=False, laws=("N4", "N8", "N9")
    ),
    "state_space": MixerClaims(mean_kept=False, no_leakage=False, silent_scores=False, laws=("N8", "N10")),
}
"""Mixer -> the laws that hold for it; measured in `tests/sim/observe/test_mixer_laws.py`."""


def _row_sums(premises: Premises) -> list[Step]:
    tokens, sums = TokenProjectors(premises), TokenSums(premises)
    mean, centered = tokens.mean, tokens.centered
    average_sum = Symbol("rbar", real=True)
    products: dict[tuple[Letter, Letter], Expr] = dict(tokens.products)
    if premises.mean_vector_is_ones:
        products |= {(BLEND, COLUMN): ROW_SUMS, (ROW, ROW_SUMS): TOKENS * average_sum}
    token_mean = ROW * STATE / TOKENS

    def step(name: str, left: Expr, right: Expr) -> Step:
        return Step(name=name, left=left, right=right, algebra=Algebra.WORDS, facts=Facts(products=products))

    return [
        step("B J X = r xbar^T, from B 1 = r", BLEND * mean * STATE, ROW_SUMS * token_mean),
        step(
            "J B J X = rbar J X: P1 holds where the row sums are 1 on average",
            mean * BLEND * mean * STATE,
            average_sum * mean * STATE,
        ),
        step(
            "P B J X = (r - rbar 1) xbar^T: P2 holds where they are equal",
            centered * BLEND * mean * STATE,
            (ROW_SUMS - average_sum * COLUMN) * token_mean,
        ),
        Step(
            name="weights over their sum, as in softmax and linear attention: r = 1",
            left=Sum(WEIGHTS[t, j] / TOTAL**premises.softmax_exponent, over(j, T)),
            right=Integer(1),
            algebra=Algebra.SUMS,
            facts=Facts(rows={WEIGHTS: TOTAL}),
        ),
        tokens.step("uniform attention, A = J: r = 1", mean * COLUMN, COLUMN),
        tokens.step(
            "e I + l A: r = e + l, which is 1 for (1 - l) I + l A and 0 for A - I and I - A",
            (IDENTITY + SHARE * MIXER) * COLUMN,
            IDENTITY * COLUMN + SHARE * COLUMN,
        ),
        sums.step(
            "gates g_tb, feature by feature: r_t = g_tb",
            Sum(GATE[t, b] * ATTENTION[t, j], over(j, T)),
            GATE[t, b],
        ),
    ]


def normalised_derivative(premises: Premises, token: Expr) -> Expr:
    """da_j along dw = h by the quotient rule, from a_j = w_j / z with z = sum_k w_k."""
    along = Symbol("x", real=True)
    weight, total = Function("w")(along), Function("z")(along)
    derivative = diff(weight / total**premises.softmax_exponent, along)
    return (
        derivative.subs(diff(weight, along), CHANGE[token])
        .subs(diff(total, along), Sum(CHANGE[s], over(s, T)))
        .subs({weight: WEIGHT[token], total: TOTAL})
    )


def _read(token: Expr) -> Expr:
    return READER[token, a]


def _blends(premises: Premises) -> list[Step]:
    """Weights over their sum, and e I + l A."""
    tokens = TokenSums(premises)
    along = Symbol("x", real=True)
    weight, total = Function("w", positive=True)(along), Function("z", positive=True)(along)

    def blended(token: Expr) -> Expr:
        return IDENTITY * COMMON[b] + SHARE * Sum(ATTENTION[token, j] * COMMON[b], over(j, T))

    return [
        calculus(
            "weights over their sum, w / z: d(w / z) = dw / z - w dz / z^2",
            Derivative(weight / total**premises.softmax_exponent, along),
            Derivative(weight, along) / total - weight * Derivative(total, along) / total**2,
        ),
        Step(
            name="V_j = vbar: dO = sum_j da_j vbar = 0, however the weights move (linear attention)",
            left=Sum(normalised_derivative(premises, j) * COMMON[b], over(j, T)),
            right=Integer(0),
            algebra=Algebra.SUMS,
            facts=Facts(rows={WEIGHT: TOTAL}),
        ),
        tokens.step("e I + l A, V_j = vbar: O_t = (e + l) vbar", blended(t), (IDENTITY + SHARE) * COMMON[b]),
        tokens.step(
            "e I + l A, V_j = vbar: dL/dS_tj = 0", SHARE * score_gradient(lambda token: COMMON[b]), Integer(0)
        ),
        tokens.step(
            "e I + l A, V_j = vbar: grad W_O = (e + l) T dbar vbar^T, nothing for A - I and I - A",
            Sum(_read(t) * blended(t), over(t, T)),
            (IDENTITY + SHARE) * T * average(_read) * COMMON[b],
        ),
    ]


def _gates(premises: Premises) -> list[Step]:
    """A gate between the heads and W_O."""
    tokens, gate = TokenSums(premises), entry(GATE)
    logit, cotangent, value = (Symbol(name, real=True) for name in ("z", "d", "vbar"))
    sigmoid = 1 / (1 + exp(-logit))

    def gated(token: Expr) -> Expr:
        return gate(token) * COMMON[b]

    through_gate = Sum(COTANGENT[t, b] * GATE[t, b] * COMMON[b], over(b, N))
    return [
        tokens.step(
            "a gate, V_j = vbar: dL/dS_tj = 0 still",
            ATTENTION[t, j] * through_gate
            - ATTENTION[t, j] * Sum(ATTENTION[t, s] * through_gate, over(s, T)),
            Integer(0),
        ),
        tokens.step(
            "a gate, V_j = vbar: grad W_O = T dbar (gbar*vbar)^T + sum_t dtilde_t (gtilde_t*vbar)^T",
            Sum(_read(t) * gated(t), over(t, T)),
            T * average(_read) * average(gate) * COMMON[b]
            + Sum(tokens.centered(_read, t) * tokens.centered(gated, t), over(t, T)),
        ),
        calculus(
            "a gate, V_j = vbar, entry by entry: dL/dz = sigma'(z) vbar d, sigma' = sigma (1 - sigma)",
            Derivative(cotangent * sigmoid * value, logit),
            sigmoid * (1 - sigmoid) * value * cotangent,
        ),
        calculus(
            "a gate, V_j = vbar = 1, d_t = 1, logit 0: dL/dz = sigma'(0) = 1/4, the gate is not silent",
            Subs(Derivative(sigmoid, logit), logit, 0),
            Integer(0),
            Relation.UNEQUAL,
        ),
    ]


def _homogeneous_values(premises: Premises) -> list[Step]:
    return [*_blends(premises), *_gates(premises)]


def evaluate_row_sums(
    attention: NDArray[Any],
    weights: NDArray[Any],
    gates: NDArray[Any],
    x: NDArray[Any],
    blend: tuple[Any, Any],
) -> dict[str, Sides]:
    """Both sides of N8 for attention and positive weights [T, T], gates and state x [T, D], blend (e, l)."""
    mean, centered = token_projectors(x)
    rows, token_mean = weights.sum(1), x.sum(0) / len(x)
    average_sum = rows.sum() / len(x)
    identity, share = blend
    ones = np.ones(len(x), dtype=int)
    mixer = identity * np.eye(len(x), dtype=int) + share * attention
    return {
        "weighted": (weights @ mean @ x, np.outer(rows, token_mean)),
        "mean": (mean @ weights @ mean @ x, average_sum * (mean @ x)),
        "centered": (centered @ weights @ mean @ x, np.outer(rows - average_sum, token_mean)),
        "normalised": ((weights / rows[:, None]) @ ones, ones),
        "uniform": (mean @ ones, ones),
        "blend": (mixer @ ones, (identity + share) * ones),
        "gate": (gates * (attention @ np.ones_like(gates)), gates),
    }


def evaluate_homogeneous_values(
    weights: NDArray[Any],
    value: NDArray[Any],
    cotangent: NDArray[Any],
    gates: NDArray[Any],
    change: NDArray[Any],
    blend: tuple[Any, Any],
) -> dict[str, Sides]:
    """Both sides of N9 for positive weights and their change [T, T], a value [N], cotangents, gates [T, N].

    `cotangent` is that of the input of W_O; in the gradient of W_O it stands for that of its output.
    """
    tokens = len(weights)
    values, totals = np.stack([value] * tokens), weights.sum(1)[:, None]
    attention = weights / totals
    moved = change / totals - weights * change.sum(1)[:, None] / totals**2
    identity, share = blend
    blended = identity * values + share * (attention @ values)

    def scores(cotangents: NDArray[Any]) -> NDArray[Any]:
        read = cotangents @ values.T
        return attention * (read - (attention * read).sum(1)[:, None])

    mean = cotangent.sum(0) / tokens
    part, gate_part = cotangent - mean, gates - gates.sum(0) / tokens
    coherent = tokens * np.outer(mean, gates.sum(0) / tokens * value)
    return {
        "normalised": (moved @ values, 0 * values),
        "blend": (blended, (identity + share) * values),
        "blend_scores": (share * scores(cotangent), 0 * weights),
        "blend_writer": (cotangent.T @ blended, (identity + share) * tokens * np.outer(mean, value)),
        "gate_scores": (scores(cotangent * gates), 0 * weights),
        "gate_writer": (cotangent.T @ (gates * values), coherent + part.T @ (gate_part * value)),
    }


ROW_SUM_TABLE = Law(
    tag="N8",
    title="the row sums of a mixer decide what it does to the mean: P1 needs them to be 1, P2 to be equal",
    clauses=(
        Clause(
            says="B 1 = r: B J X = r xbar^T, J B J X = rbar J X, P B J X = (r - rbar 1) xbar^T",
            steps=("B J X", "J B J X", "P B J X"),
        ),
        Clause(
            says="r = 1: softmax, linear and uniform attention, (1 - l) I + l A",
            steps=("weights over their sum", "uniform attention", "e I + l A"),
        ),
        Clause(says="r = 0: A - I and I - A", steps=("e I + l A",)),
        Clause(says="r_t = g_t, feature by feature: a token-local gate", steps=("gates g_tb",)),
        Clause(says="r_t = 1 - p_t: a gated state space (N10)", steps=(), prose="proved as law N10"),
    ),
    assumes=("A 1 = 1", "weights are divided by their sum", "J = 1 1^T / T", "P = I - J"),
    source="derived here, for the controls of arXiv:2605.06169 App. J",
    derive=_row_sums,
    evaluate=evaluate_row_sums,
)


HOMOGENEOUS_VALUES = Law(
    tag="N9",
    title="homogeneous values give the scores of a normalised mixer no gradient; a gate after it gets one",
    clauses=(
        Clause(
            says="V_j = vbar for all j, A = w / sum w: dO = 0 for every dw",
            steps=("weights over their sum", "V_j = vbar: dO"),
        ),
        Clause(
            says="B = e I + l A: O_t = (e + l) vbar, dL/dS = 0, grad W_O = (e + l) T dbar vbar^T",
            steps=(
                "e I + l A, V_j = vbar: O_t",
                "e I + l A, V_j = vbar: dL/dS_tj",
                "e I + l A, V_j = vbar: grad W_O",
            ),
        ),
        Clause(
            says=(
                "a gate: dL/dS = 0, but dL/dz_t = sigma'(z_t)*vbar*d_t and "
                "grad W_O = T dbar (gbar*vbar)^T + sum_t dtilde_t (gtilde_t*vbar)^T"
            ),
            steps=(
                "a gate, V_j = vbar: dL/dS_tj",
                "a gate, V_j = vbar, entry by entry",
                "a gate, V_j = vbar: grad W_O",
                "a gate, V_j = vbar = 1",
            ),
        ),
    ),
    assumes=(
        "A 1 = 1",
        "weights are divided by their sum",
        "d_t the cotangent of what W_O reads in dL/dz, of what it writes in grad W_O",
        "g_t = sigma(z_t), between the heads and W_O",
        "J = 1 1^T / T",
        "P = I - J",
    ),
    source="derived here, for the controls of arXiv:2605.06169 App. J",
    derive=_homogeneous_values,
    evaluate=evaluate_homogeneous_values,
)
