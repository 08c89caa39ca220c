"""Laws N1 to N4 and N7: what remains of the mean mode under each architectural negative control.

N5 (global-norm clipping) is law C1 and N6 (Muon) is law C2, in `meanmode.theory.laws.optimisers`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sympy import Expr, IndexedBase, Integer, Max, Sum, Symbol, sqrt

from meanmode.theory.laws.merge_cotangents import (
    ALPHA,
    BETA,
    BRANCH_ENTRY,
    GRADIENT,
    TANGENT,
    TRUNK_ENTRY,
    MergeSums,
)
from meanmode.theory.laws.merges import BRANCH, MEAN_GAIN, TRUNK, MergeWords
from meanmode.theory.proof.index_sums import over
from meanmode.theory.proof.law import Clause, Law, Premises, Sides
from meanmode.theory.proof.letters import Letter
from meanmode.theory.proof.step import Relation, Step, rational
from meanmode.theory.proof.symbols import WIDTH, T, a, b, s, t
from meanmode.theory.proof.token_projectors import COLUMN, MIXER, STATE, TokenProjectors
from meanmode.theory.proof.token_sums import (
    ATTENTION,
    TokenSums,
    average,
    entry,
    pairing,
    token_projectors,
)

WRITER = Letter("W", WIDTH, WIDTH)
GATES, OUTPUTS = (IndexedBase(name, shape=(T, WIDTH), real=True) for name in "go")


def _hard_centering(premises: Premises) -> list[Step]:
    words, sums = TokenProjectors(premises), TokenSums(premises)
    state, branch, gradient = entry(TRUNK_ENTRY), entry(BRANCH_ENTRY), entry(GRADIENT)
    # three centered tokens of width one: RMSNorm without eps maps them to 1, -1, -1
    point = {T: 3, WIDTH: 1, b: 1, TRUNK_ENTRY: ((2,), (-1,), (-1,))}
    first_only = {ATTENTION: ((1, 0, 0),) * 3}

    def centered(token: Expr) -> Expr:
        return sums.centered(state, token)

    def counterexample(name: str, left: Expr, at: Mapping[Any, Any]) -> Step:
        return sums.step(name, left, Integer(0), Relation.UNEQUAL, at=at)

    square = Sum(centered(s).subs(b, a) ** 2, over(a, WIDTH)) / WIDTH
    normed = Sum(centered(s) / sqrt(square), over(s, T)) / T
    rectified = Sum(Max(centered(s), 0), over(s, T)) / T
    mixed = Sum(ATTENTION[t, s] * centered(s), over(s, T), over(t, T)) / T

    def merged(token: Expr) -> Expr:
        return state(token) + branch(token)

    def projected(token: Expr) -> Expr:
        return sums.centered(gradient, token)

    tangent = sums.centered(entry(TANGENT), t)
    return [
        words.step("J P = 0: right after it the mean is gone", words.mean * words.centered, Integer(0)),
        sums.step(
            "centering the input of a branch leaves the mean of the trunk: J(X + f(P X)) = J X + J f",
            average(merged),
            sums.mean(state, t) + sums.mean(branch, t),
        ),
        sums.step(
            "centering the merge, Z = P(X + F): dL/dF = P G",
            pairing(gradient(t), tangent),
            pairing(gradient(t) - average(gradient), entry(TANGENT)(t)),
        ),
        sums.step("so that writer has no mean-coherent gradient: J P G = 0", average(projected), Integer(0)),
        counterexample("RMSNorm makes a mean again: (2, -1, -1) -> (1, -1, -1)", normed, point),
        counterexample("so does a token-wise map: relu(2, -1, -1) = (2, 0, 0)", rectified, point),
        counterexample(
            "so does attention, by J A P: every token attends to the first", mixed, {**point, **first_only}
        ),
    ]


def _difference_mixers(premises: Premises) -> list[Step]:
    words = TokenProjectors(premises)
    mean, centered = words.mean, words.centered
    low, high = MIXER - 1, 1 - MIXER
    leakage = mean * MIXER * centered * STATE
    return [
        words.step("(A - I) J = 0, from A 1 = 1", low * mean, Integer(0)),
        words.step("(I - A) J = 0", high * mean, Integer(0)),
        words.step(
            "J(X + (A - I) X W) = J X + J A P X W: the mean is kept at gain 1, not forgotten",
            mean * (STATE + low * STATE * WRITER),
            mean * STATE + leakage * WRITER,
        ),
        words.step(
            "J(X + (I - A) X W) = J X - J A P X W",
            mean * (STATE + high * STATE * WRITER),
            mean * STATE - leakage * WRITER,
        ),
        words.step(
            "W = I: P(X + (A - I) X) = P A P X, plain attention's centered part without its residual",
            centered * (STATE + low * STATE),
            centered * MIXER * centered * STATE,
        ),
        words.step(
            "W = I: P(X + (I - A) X) = 2 P X - P A P X",
            centered * (STATE + high * STATE),
            2 * centered * STATE - centered * MIXER * centered * STATE,
        ),
    ]


def _lazy_mixer(premises: Premises) -> list[Step]:
    words = TokenProjectors(premises)
    mean, centered = words.mean, words.centered
    share = Symbol("l", real=True)
    lazy = 1 - share + share * MIXER
    return [
        words.step("((1 - l) I + l A) J = J: it is row-stochastic", lazy * mean, mean),
        words.step(
            "J((1 - l) I + l A) X = J X + l J A P X: P1 with a scaled leakage",
            mean * lazy * STATE,
            mean * STATE + share * mean * MIXER * centered * STATE,
        ),
        words.step(
            "P((1 - l) I + l A) X = (1 - l) P X + l P A P X",
            centered * lazy * STATE,
            centered * STATE - share * centered * STATE + share * centered * MIXER * centered * STATE,
        ),
    ]


def _token_gates(premises: Premises) -> list[Step]:
    words, sums = TokenProjectors(premises), TokenSums(premises)
    token, gate = Letter("x^T", 1, WIDTH), Letter("diag(g(x))", WIDTH, WIDTH)
    gates, outputs = entry(GATES), entry(OUTPUTS)
    homogeneous = COLUMN * token

    def gated(index: Expr) -> Expr:
        return gates(index) * outputs(index)

    def fluctuation(index: Expr) -> Expr:
        return sums.centered(gates, index) * sums.centered(outputs, index)

    return [
        words.step(
            "identical tokens X = 1 x^T: A X W diag(g(x)) = 1 x^T W diag(g(x)), again identical",
            MIXER * homogeneous * WRITER * gate,
            homogeneous * WRITER * gate,
        ),
        words.step(
            "P of it is 0: the gate cannot tell the tokens apart",
            words.centered * MIXER * homogeneous * WRITER * gate,
            Integer(0),
        ),
        sums.step(
            "in general mean(g*o) = gbar*obar + mean(gtilde*otilde): the mean passes with gain gbar",
            average(gated),
            average(gates) * average(outputs) + Sum(fluctuation(s), over(s, T)) / T,
        ),
    ]


def _attention_only(premises: Premises) -> list[Step]:
    words, sums = MergeWords(premises), MergeSums(premises)
    mean = words.segment_mean
    attention, ffn = (Letter(name, T, WIDTH) for name in ("F_attn", "F_ffn"))
    gain = Symbol("r", positive=True)
    split = words.mv_split(branch=attention)
    tangent, gradient = entry(TANGENT), entry(GRADIENT)
    rate, write = Symbol("alpha", positive=True), Symbol("f", real=True)
    kept = 1 - premises.mean_leak * rate

    def split_tangent(token: Expr) -> Expr:
        return BETA[b] * sums.centered(tangent, token) + ALPHA[b] * sums.mean(tangent, token)

    return [
        words.step(
            "FFN merge: J(X + F) = J X + J F, the mean is neither forgotten nor scaled",
            mean * (TRUNK + BRANCH),
            mean * TRUNK + mean * BRANCH,
        ),
        words.step(
            "a block: J Z = r((1 - alpha)*J X + alpha*J F_attn) + J F_ffn, r the norm between",
            mean * (gain * split + ffn),
            gain * (mean * TRUNK - mean * TRUNK * MEAN_GAIN + mean * attention * MEAN_GAIN) + mean * ffn,
        ),
        sums.step(
            "the mean mode of F_ffn sees J G unscaled: <G, J dF> = <J G, dF>",
            pairing(gradient(t), sums.mean(tangent, t)),
            pairing(average(gradient), tangent(t)),
        ),
        sums.step(
            "the mean mode of F_attn sees alpha*J G: <G, J dZ> = <alpha*J G, dF>",
            pairing(gradient(t), sums.mean(split_tangent, t)),
            pairing(ALPHA[b] * average(gradient), tangent(t)),
        ),
        rational(
            "r = 1, F_attn = 0, constant mean write f: m = (1 - alpha) m + f at m = f / alpha",
            kept * write / rate + write,
            write / rate,
        ),
        rational(
            "with MV-Split on both: m = (1 - alpha)^2 m + alpha f at m = f / (2 - alpha)",
            kept**2 * write / (2 - rate) + rate * write,
            write / (2 - rate),
        ),
    ]


def evaluate_hard_centering(x: NDArray[Any], f: NDArray[Any]) -> dict[str, Sides]:
    """Both sides of N1 for trunk x and branch f [T, D]; f is also the cotangent of Z = P(X + F)."""
    mean, centered = token_projectors(x)
    return {
        "removed": (mean @ centered @ x, 0 * x),
        "trunk_kept": (mean @ (x + f), mean @ x + mean @ f),
        "cotangent": ((f * (centered @ x)).sum(), ((centered @ f) * x).sum()),
    }


def evaluate_difference_mixers(attention: NDArray[Any], x: NDArray[Any]) -> dict[str, Sides]:
    """Both sides of N2 for a row-stochastic matrix [T, T] and a state [T, D]."""
    mean, centered = token_projectors(x)
    leakage = mean @ attention @ centered @ x
    core = centered @ attention @ centered @ x
    low, high = attention @ x, 2 * x - attention @ x
    return {
        "a_minus_i": (mean @ low, mean @ x + leakage),
        "i_minus_a": (mean @ high, mean @ x - leakage),
        "a_minus_i_centered": (centered @ low, core),
        "i_minus_a_centered": (centered @ high, 2 * (centered @ x) - core),
    }


def evaluate_lazy_mixer(attention: NDArray[Any], x: NDArray[Any], share: Any) -> dict[str, Sides]:
    """Both sides of N3 for a row-stochastic matrix [T, T], a state [T, D] and l = share."""
    mean, centered = token_projectors(x)
    lazy = (1 - share) * np.eye(len(x), dtype=int) + share * attention
    return {
        "mean_kept": (lazy @ mean @ x, mean @ x),
        "mean": (mean @ lazy @ x, mean @ x + share * (mean @ attention @ centered @ x)),
        "centered": (
            centered @ lazy @ x,
            (1 - share) * (centered @ x) + share * (centered @ attention @ centered @ x),
        ),
    }


def evaluate_token_gates(
    attention: NDArray[Any], token: NDArray[Any], gates: NDArray[Any], x: NDArray[Any]
) -> dict[str, Sides]:
    """Both sides of N4 for copies of a token [D], attention [T, T], gates [T, D] and gated outputs x [T, D].

    The gate of the copies is the cube of the token, one nonlinear token-local map.
    """
    mean, centered = token_projectors(x)
    same = np.stack([token] * len(x))
    gated = same**3 * (attention @ same)
    return {
        "homogeneous": (centered @ gated, 0 * gated),
        "kept": (gated, np.stack([token**3 * token] * len(x))),
        "mean": (
            mean @ (gates * x),
            (mean @ gates) * (mean @ x) + mean @ ((centered @ gates) * (centered @ x)),
        ),
    }


def evaluate_attention_only(
    x: NDArray[Any], attention: NDArray[Any], ffn: NDArray[Any], alpha: NDArray[Any], beta: NDArray[Any]
) -> dict[str, Sides]:
    """Both sides of N7 for trunk and branch outputs [T, D] on one segment; r = 1 for the norm in between."""
    mean, centered = token_projectors(x)
    first = x + beta * (centered @ attention) + alpha * (mean @ (attention - x))
    kept = (1 - alpha) * (mean @ x) + alpha * (mean @ attention) + mean @ ffn
    tangent = mean @ (beta * (centered @ attention) + alpha * (mean @ attention))
    return {
        "block": (mean @ (first + ffn), kept),
        "ffn_cotangent": ((x * (mean @ ffn)).sum(), ((mean @ x) * ffn).sum()),
        "attention_cotangent": ((x * tangent).sum(), (alpha * (mean @ x) * attention).sum()),
    }


HARD_CENTERING = Law(
    tag="N1",
    title="hard centering removes the mean once; the norm, the branch and the mixer bring it back",
    clauses=(
        Clause(
            says="J P = 0, but J RMSNorm(P X) != 0, J f(P X) != 0, J A P X != 0 in general",
            steps=("J P = 0", "RMSNorm makes", "so does a token-wise map", "so does attention"),
        ),
        Clause(says="on a branch's input: J Z = J X + J f(P X)", steps=("centering the input",)),
        Clause(says="Z = P(X + F): J dL/dF = J P G = 0", steps=("centering the merge", "so that writer")),
    ),
    assumes=("J = 1 1^T / T", "P = I - J", "counterexamples at T = 3, D = 1, eps = 0"),
    source="arXiv:2605.06169 App. J (why, derived here)",
    derive=_hard_centering,
    evaluate=evaluate_hard_centering,
)


DIFFERENCE_MIXERS = Law(
    tag="N2",
    title="A - I and I - A do not see the mean and so cannot remove it from the trunk",
    clauses=(
        Clause(says="(A - I) J = (I - A) J = 0", steps=("(A - I) J", "(I - A) J")),
        Clause(says="J(X + (A - I) X W) = J X + J A P X W", steps=("J(X + (A - I) X W)",)),
        Clause(says="J(X + (I - A) X W) = J X - J A P X W", steps=("J(X + (I - A) X W)",)),
        Clause(
            says="W = I: P(X + (A - I) X) = P A P X, P(X + (I - A) X) = 2 P X - P A P X",
            steps=("W = I: P(X + (A - I) X)", "W = I: P(X + (I - A) X)"),
        ),
    ),
    assumes=(
        "A 1 = 1",
        "J = 1 1^T / T",
        "P = I - J",
        "a plain merge, before its norm",
        "W token-wise and linear",
    ),
    source="arXiv:2605.06169 App. J (why, derived here)",
    derive=_difference_mixers,
    evaluate=evaluate_difference_mixers,
)


LAZY_MIXER = Law(
    tag="N3",
    title="(1 - l) I + l A is row-stochastic and keeps the mean as A does",
    clauses=(
        Clause(says="B = (1 - l) I + l A: B J = J", steps=("((1 - l) I + l A) J",)),
        Clause(says="J B X = J X + l J A P X", steps=("J((1 - l) I + l A) X",)),
        Clause(says="P B X = (1 - l) P X + l P A P X", steps=("P((1 - l) I + l A) X",)),
    ),
    assumes=("A 1 = 1", "J = 1 1^T / T", "P = I - J"),
    source="arXiv:2605.06169 App. J (why, derived here)",
    derive=_lazy_mixer,
    evaluate=evaluate_lazy_mixer,
)


TOKEN_GATES = Law(
    tag="N4",
    title="a token-local gate gives identical tokens identical gates, so the collapsed state persists",
    clauses=(
        Clause(
            says="X = 1 x^T: g(X)*(A X W) = 1 (g(x)*W^T x)^T, P of it 0",
            steps=("identical tokens", "P of it is 0"),
        ),
        Clause(says="mean(g*o) = gbar*obar + mean(gtilde*otilde)", steps=("in general mean(g*o)",)),
    ),
    assumes=("A 1 = 1", "the gate of a token depends on that token only", "J = 1 1^T / T", "P = I - J"),
    source="arXiv:2605.06169 App. J (why, derived here)",
    derive=_token_gates,
    evaluate=evaluate_token_gates,
)


ATTENTION_ONLY = Law(
    tag="N7",
    title="MV-Split on the attention branch alone leaves the FFN's mean write and its gradient at gain 1",
    clauses=(
        Clause(says="J Z = r((1 - alpha)*J X + alpha*J F_attn) + J F_ffn", steps=("a block: J Z",)),
        Clause(
            says="the mean of dL/dF is J G for the FFN, alpha*J G for attention",
            steps=("the mean mode of F_ffn", "the mean mode of F_attn"),
        ),
        Clause(
            says="a constant mean write f settles at f / alpha instead of f / (2 - alpha)",
            steps=("r = 1, F_attn = 0", "with MV-Split on both"),
        ),
    ),
    assumes=(
        "MV-Split (R1) after attention, plain merge after the FFN",
        "the norm between scales all tokens by one r",
        "G the cotangent of the merge in question",
    ),
    source="arXiv:2605.06169 App. J (why, derived here)",
    derive=_attention_only,
    evaluate=evaluate_attention_only,
)
