"""Law X1: repeating every token k times changes no output and no gradient, but multiplies the amplification.

Replica q of token s has the index (s, q); sums over the replicated sequence run over s = 1..T and q = 1..k.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sympy import Expr, IndexedBase, Integer, Sum, Symbol

from meanmode.theory.laws.amplification import (
    ADJOINT,
    ADJOINT_DIRECTION,
    INPUT,
    INPUT_DIRECTION,
    coherence,
    evaluate_equal_magnitudes,
    evaluate_rayleigh,
)
from meanmode.theory.proof.index_sums import off_diagonal, over
from meanmode.theory.proof.law import Clause, Law, Premises, Sides
from meanmode.theory.proof.step import Algebra, Facts, Relation, Step, rational
from meanmode.theory.proof.symbols import M, N, T, a, b, j, r, s, t
from meanmode.theory.proof.token_sums import ATTENTION, TokenSums

COPIES = Symbol("k", integer=True, positive=True)
q, p = (Symbol(name, integer=True, positive=True) for name in "qp")
EXPONENTIAL = IndexedBase("w", shape=(T, T), positive=True)
VALUE, COTANGENT, KEY, QUERY, MOVE, TOKEN_SLOPE = (
    IndexedBase(name, shape=(T, N), real=True) for name in ("V", "d", "K", "Q", "H", "dl/dX")
)
TOKEN_LOSS, SCORE = IndexedBase("l", shape=(T,), real=True), IndexedBase("S", shape=(T, T), real=True)
JACOBIAN = IndexedBase("f'", shape=(T, M, N), real=True)


def everywhere(body: Expr, token: Expr, copy: Expr) -> Expr:
    """Sum over the replicated sequence."""
    return Sum(body, over(token, T), over(copy, COPIES))


def _score_cotangent(token: Expr, source: Expr, share: Expr, copies: bool) -> Expr:
    """dL/dS through softmax, with attention and cotangent `share` times the original ones.

    `copies` sums over all replicas of the source tokens.
    """
    read = Sum(COTANGENT[token, b] * VALUE[source, b], over(b, N))
    back = Sum(COTANGENT[token, b] * VALUE[j, b], over(b, N))
    mixed = share * ATTENTION[token, j] * share * back
    total = everywhere(mixed, j, p) if copies else Sum(mixed, over(j, T))
    return share * ATTENTION[token, source] * (share * read - total)


def _forward(premises: Premises) -> list[Step]:
    tokens = TokenSums(premises)
    single, replicated = Sum(EXPONENTIAL[t, s], over(s, T)), everywhere(EXPONENTIAL[t, s], s, q)
    exponent = premises.softmax_exponent
    lengths = T**-premises.loss_exponent, (COPIES * T) ** -premises.loss_exponent
    return [
        tokens.step("the softmax's sum over replicas is k times the sum", replicated, COPIES * single),
        tokens.step(
            "so every replica gets the weight a_ts / k: (a_ts / k) sum_r,q w_tr = a_ts sum_r w_tr = w_ts",
            ATTENTION[t, s] / COPIES * everywhere(EXPONENTIAL[t, r], r, q) ** exponent,
            ATTENTION[t, s] * Sum(EXPONENTIAL[t, r], over(r, T)),
        ),
        tokens.step(
            "attention output: sum_s,q (a_ts / k) V_s = sum_s a_ts V_s",
            everywhere(ATTENTION[t, s] / COPIES * VALUE[s, b], s, q),
            Sum(ATTENTION[t, s] * VALUE[s, b], over(s, T)),
        ),
        tokens.step(
            "a token mean, as MV-Split takes it: sum_s,q V_s / (k T) = sum_s V_s / T",
            everywhere(VALUE[s, b], s, q) / (COPIES * T),
            Sum(VALUE[s, b], over(s, T)) / T,
        ),
        tokens.step(
            "mean loss over k T tokens = mean loss over T tokens",
            lengths[1] * everywhere(TOKEN_LOSS[t], t, q),
            lengths[0] * Sum(TOKEN_LOSS[t], over(t, T)),
        ),
        tokens.step(
            "so moving all replicas of a token alike changes it as moving the token did: d' = d / k for each",
            lengths[1] * Sum(everywhere(TOKEN_SLOPE[t, b] * MOVE[t, b], t, q), over(b, N)),
            lengths[0] * Sum(TOKEN_SLOPE[t, b] * MOVE[t, b], over(t, T), over(b, N)),
        ),
    ]


def _backward(premises: Premises) -> list[Step]:
    """If d' = d / k at the output of a layer, then also at its input, through values, queries and keys."""
    tokens = TokenSums(premises)
    share = 1 / COPIES
    replica, single = _score_cotangent(t, s, share, True), _score_cotangent(t, s, Integer(1), False)
    return [
        tokens.step(
            "cotangent of a replica's value: sum_t,q (a_ts / k)(d_t / k) = (1/k) sum_t a_ts d_t",
            everywhere(ATTENTION[t, s] * share * COTANGENT[t, b] * share, t, q),
            share * Sum(ATTENTION[t, s] * COTANGENT[t, b], over(t, T)),
        ),
        tokens.step(
            "cotangent through a token mean: sum_t,q (d_t / k) / (k T) = (1/k) sum_t d_t / T",
            everywhere(share * COTANGENT[t, b], t, q) / (COPIES * T),
            share * Sum(COTANGENT[t, b], over(t, T)) / T,
        ),
        tokens.step("cotangent of a score: dL'/dS'_ts = (1/k^2) dL/dS_ts", replica, share**2 * single),
        tokens.step(
            "cotangent of a replica's query: sum_s,q dS'_ts K_s = (1/k) sum_s dS_ts K_s",
            everywhere(share**2 * SCORE[t, s] * KEY[s, b], s, q),
            share * Sum(SCORE[t, s] * KEY[s, b], over(s, T)),
        ),
        tokens.step(
            "cotangent of a replica's key: sum_t,q dS'_ts Q_t = (1/k) sum_t dS_ts Q_t",
            everywhere(share**2 * SCORE[t, s] * QUERY[t, b], t, q),
            share * Sum(SCORE[t, s] * QUERY[t, b], over(t, T)),
        ),
        tokens.step(
            "cotangent through a token-local map (norm, FFN): sum_a f'_tab d_ta / k = (f'^T d)_tb / k",
            Sum(JACOBIAN[t, a, b] * (share * ADJOINT[t, a]), over(a, M)),
            share * Sum(JACOBIAN[t, a, b] * ADJOINT[t, a], over(a, M)),
        ),
        tokens.step(
            "gradient of such a map's weights: sum_t,q <f'_t, d_t / k> = sum_t <f'_t, d_t>",
            Sum(everywhere(JACOBIAN[t, a, b] * share * ADJOINT[t, a], t, q), over(a, M)),
            Sum(JACOBIAN[t, a, b] * ADJOINT[t, a], over(t, T), over(a, M)),
        ),
    ]


def _statistics(premises: Premises) -> list[Step]:
    facts = Facts(unit=dict.fromkeys((ADJOINT_DIRECTION, INPUT_DIRECTION), premises.unit_square))
    share = 1 / COPIES
    gradient = Sum(ADJOINT[t, a] * INPUT[t, b], over(t, T))
    replicated = everywhere(share * ADJOINT[t, a] * INPUT[t, b], t, q)
    weights = Sum(ADJOINT[t, a] ** 2 * INPUT[t, b] ** 2, over(t, T), over(a, M), over(b, N))
    shared = Sum(everywhere((share * ADJOINT[t, a]) ** 2 * INPUT[t, b] ** 2, t, q), over(a, M), over(b, N))
    coherent = Sum(ADJOINT[t, a], over(t, T)) * Sum(INPUT[s, b], over(s, T)) / T
    kappa = Symbol("kappa", real=True)
    # k^2 copies of every ordered pair of tokens, minus the k T pairs of a replica with itself
    pairs = COPIES**2 * (T + T * (T - 1) * kappa) - COPIES * T
    replicated_kappa = pairs / (COPIES * T * (COPIES * T - 1))
    mean = Sum(off_diagonal(t, s) * coherence(t, s), over(t, T), over(s, T)) / (T * (T - 1))
    distinct = 1 - (1 - off_diagonal(t, s)) * (1 - off_diagonal(q, p))

    def step(name: str, left: Expr, right: Expr) -> Step:
        return Step(name=name, left=left, right=right, algebra=Algebra.SUMS, facts=facts)

    def square(entry: Expr) -> Expr:
        return Sum(entry**2, over(a, M), over(b, N))

    return [
        step("every weight's gradient: sum_t,q (d_t / k) y_t^T = sum_t d_t y_t^T", replicated, gradient),
        step(
            "T dbar ybar^T is unchanged, hence G_mean, G_ctr and their ratio",
            everywhere(share * ADJOINT[t, a], t, q) * everywhere(INPUT[s, b], s, p) / (COPIES * T),
            coherent,
        ),
        step("|w'|^2 = sum_t,q |d_t / k|^2 |y_t|^2 = |w|^2 / k", shared, weights / COPIES),
        step(
            "A' = |grad'|^2 / |w'|^2 = k A: |grad'|^2 |w|^2 = k |grad|^2 |w'|^2",
            square(replicated) * weights,
            COPIES * square(gradient) * shared,
        ),
        step(
            "kappa' is the mean over the k T (k T - 1) pairs of distinct replicas",
            everywhere(everywhere(distinct * coherence(t, s), t, q), s, p) / (COPIES * T * (COPIES * T - 1)),
            replicated_kappa.subs(kappa, mean),
        ),
        rational(
            "kappa' - kappa = (k - 1)(1 - kappa) / (k T - 1)",
            replicated_kappa - kappa,
            (COPIES - 1) * (1 - kappa) / (COPIES * T - 1),
        ),
        rational(
            "1 + (k T - 1) kappa' = k (1 + (T - 1) kappa): what stays is the mean over all pairs",
            1 + (COPIES * T - 1) * replicated_kappa,
            COPIES * (1 + (T - 1) * kappa),
        ),
        Step(
            name="kappa itself is not kept: T = k = 2, kappa = 0 has kappa' = 1/3",
            left=replicated_kappa,
            right=kappa,
            relation=Relation.UNEQUAL,
            algebra=Algebra.RATIONAL,
            at={COPIES: 2, T: 2, kappa: 0},
        ),
    ]


def _replication(premises: Premises) -> list[Step]:
    return [*_forward(premises), *_backward(premises), *_statistics(premises)]


def evaluate_replication(
    weights: NDArray[Any], values: NDArray[Any], y: NDArray[Any], delta: NDArray[Any], copies: int
) -> dict[str, Sides]:
    """Both sides of X1 for softmax exponentials [T, T], values [T, N] and a writer's y [T, N], delta [T, M].

    The replicated cotangents are delta / copies; `kappa` normalises y and delta first, as A4 requires.
    """
    tokens = len(y)

    def repeat(x: NDArray[Any]) -> NDArray[Any]:
        return np.repeat(x, copies, axis=0)

    def attend(w: NDArray[Any], v: NDArray[Any]) -> NDArray[Any]:
        return (w / w.sum(1, keepdims=True)) @ v

    def amplification(y: NDArray[Any], delta: NDArray[Any]) -> Any:
        return evaluate_rayleigh(y, delta)["excess"][0] + 1

    def kappa(y: NDArray[Any], delta: NDArray[Any]) -> Any:
        units = (x / (x * x).sum(1, keepdims=True) ** 0.5 for x in (y, delta))
        return evaluate_equal_magnitudes(*units)["kappa"][0] / (len(y) - 1)

    def coherent(y: NDArray[Any], delta: NDArray[Any]) -> NDArray[Any]:
        return np.outer(delta.sum(0), y.sum(0)) / len(y)

    y_all, delta_all = repeat(y), repeat(delta) / copies
    single = kappa(y, delta)
    shift = (copies - 1) * (1 - single) / (copies * tokens - 1)
    return {
        "attention": (
            attend(np.repeat(repeat(weights), copies, axis=1), repeat(values)),
            repeat(attend(weights, values)),
        ),
        "gradient": (delta_all.T @ y_all, delta.T @ y),
        "mean_coherent": (coherent(y_all, delta_all), coherent(y, delta)),
        "amplification": (amplification(y_all, delta_all), copies * amplification(y, delta)),
        "kappa": (kappa(y_all, delta_all), single + shift),
    }


REPLICATION = Law(
    tag="X1",
    title="replicating every token k times changes no gradient and multiplies the amplification by k",
    clauses=(
        Clause(
            says=("every token k times: states, mean loss, all parameter gradients unchanged, d' = d / k"),
            steps=(
                "so every replica gets",
                "attention output",
                "a token mean",
                "mean loss",
                "so moving all replicas",
                "cotangent of a replica's value",
                "cotangent through a token mean",
                "cotangent of a score",
                "cotangent of a replica's query",
                "cotangent of a replica's key",
                "cotangent through a token-local map",
                "gradient of such a map's weights",
                "every weight's gradient",
            ),
            prose=(
                "induction over the layers, up for the states and down for the cotangents, where sums of "
                "branches add what the steps say of each"
            ),
        ),
        Clause(says="A' = k A", steps=("A' = |grad'|^2",)),
        Clause(says="G_mean' = G_mean, G_ctr' = G_ctr", steps=("every weight's gradient", "T dbar ybar^T")),
        Clause(
            says="kappa' = kappa + (k - 1)(1 - kappa) / (k T - 1)",
            steps=("kappa' is the mean", "kappa' - kappa"),
        ),
        Clause(
            says="invariant: A / T and, at equal magnitudes, (1 + (T - 1) kappa) / T, but not kappa",
            steps=("A' = |grad'|^2", "1 + (k T - 1) kappa'", "kappa itself"),
        ),
    ),
    assumes=(
        "positions are repeated with their tokens",
        "tokens interact through softmax attention and token means only",
        "the loss is the mean over tokens",
        "kappa at equal magnitudes (A4)",
    ),
    source="derived here",
    derive=_replication,
    evaluate=evaluate_replication,
)
