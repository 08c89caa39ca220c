"""Laws R3 and R4: how MV-Split rescales the gradient of its branch, and why no scalar gate does the same.

Entries stand for feature b of token t on one segment; the segments add up.
"""

from typing import Any

from numpy.typing import NDArray
from sympy import Expr, IndexedBase, Integer, Rational, S, Sum, Symbol

from meanmode.theory.laws.merges import BRANCH, MEAN_GAIN, TRUNK, MergedTokens, MergeWords
from meanmode.theory.proof.index_sums import over
from meanmode.theory.proof.law import Clause, Law, Premises, Sides
from meanmode.theory.proof.step import Relation, Step
from meanmode.theory.proof.symbols import WIDTH, T, b, s, t
from meanmode.theory.proof.token_sums import TokenSums, average, entry, pairing, square

LAYER_GAIN = Symbol("lambda", real=True)
GRADIENT, TANGENT, TRUNK_ENTRY, BRANCH_ENTRY = (
    IndexedBase(name, shape=(T, WIDTH), real=True) for name in "GHXF"
)
ALPHA, BETA = (IndexedBase(name, shape=(WIDTH,), real=True) for name in ("alpha", "beta"))

NO_BRANCH = {
    **{T: 2, WIDTH: 1, b: 1, LAYER_GAIN: 3, ALPHA: (Rational(1, 2),), BETA: (1,)},
    **{TRUNK_ENTRY: ((1,), (1,)), BRANCH_ENTRY: ((0,), (0,))},
}
"""A point at which the branch is 0."""


class MergeSums(TokenSums):
    """Tangents of the MV-Split merge on one segment, for feature b of token t."""

    def branch_tangent(self, alpha: Expr = ALPHA[b], beta: Expr = BETA[b]) -> Expr:
        """dZ along dF = H."""
        return beta * self.centered(entry(TANGENT), t) + alpha * self.mean(entry(TANGENT), t)

    def trunk_tangent(self) -> Expr:
        """dZ along dX = H."""
        return TANGENT[t, b] - ALPHA[b] * self.premises.mean_leak * self.mean(entry(TANGENT), t)


def _branch_cotangent(premises: Premises) -> list[Step]:
    sums = MergeSums(premises)
    gradient = entry(GRADIENT)
    return [
        sums.step(
            "<G, dZ> = <beta*P G + alpha*J G, dF> for every dF",
            pairing(GRADIENT[t, b], sums.branch_tangent()),
            pairing(BETA[b] * (GRADIENT[t, b] - Sum(GRADIENT[s, b], over(s, T)) / T), TANGENT[t, b])
            + pairing(ALPHA[b] * Sum(GRADIENT[s, b], over(s, T)) / T, TANGENT[t, b]),
        ),
        sums.step("J(P G) = 0", sums.mean(lambda token: sums.centered(gradient, token), t), Integer(0)),
    ]


def _not_a_gate(premises: Premises) -> list[Step]:
    words, sums = MergeWords(premises), MergeSums(premises)
    mean = words.segment_mean
    gated = TRUNK + LAYER_GAIN * BRANCH
    no_branch = words.mv_split(branch=S.Zero)
    alpha, beta = Symbol("alpha", real=True), Symbol("beta", real=True)
    gradient = entry(GRADIENT)
    coherent, centered = sums.mean(gradient, t), sums.centered(gradient, t)

    def cotangent(token: Expr) -> Expr:
        return beta * sums.centered(gradient, token) + alpha * sums.mean(gradient, token)

    trunk, branch = entry(TRUNK_ENTRY), entry(BRANCH_ENTRY)

    def split(token: Expr) -> Expr:
        written = sums.mean(branch, token) - premises.mean_leak * sums.mean(trunk, token)
        return trunk(token) + BETA[b] * sums.centered(branch, token) + ALPHA[b] * written

    def scaled(token: Expr) -> Expr:
        return trunk(token) + LAYER_GAIN * branch(token)

    return [
        words.step(
            "LayerScale: J Z = J X + lambda J F",
            mean * gated,
            mean * TRUNK + LAYER_GAIN * mean * BRANCH,
        ),
        words.step(
            "F = 0: J Z of MV-Split less J Z of LayerScale is -alpha*J X, whatever lambda",
            mean * (no_branch - gated.subs(BRANCH, 0)),
            -mean * TRUNK * MEAN_GAIN,
        ),
        sums.step(
            "not equal for any lambda: alpha = 1/2, F = 0, X = 1 has J Z = 1/2 against 1",
            Sum(split(s), over(s, T)) / T,
            average(scaled),
            Relation.UNEQUAL,
            at=NO_BRANCH,
        ),
        sums.step(
            "MV-Split, scalar gains: |J dL/dF|^2 = alpha^2 |J G|^2",
            square(sums.mean(cotangent, t)),
            alpha**2 * square(coherent),
        ),
        sums.step(
            "MV-Split, scalar gains: |P dL/dF|^2 = beta^2 |P G|^2",
            square(sums.centered(cotangent, t)),
            beta**2 * square(centered),
        ),
        sums.step(
            "scalar gate: |J lambda G|^2 = lambda^2 |J G|^2",
            square(sums.mean(lambda token: LAYER_GAIN * gradient(token), t)),
            LAYER_GAIN**2 * square(coherent),
        ),
        sums.step(
            "scalar gate: |P lambda G|^2 = lambda^2 |P G|^2, so the ratio is that of G",
            square(sums.centered(lambda token: LAYER_GAIN * gradient(token), t)),
            LAYER_GAIN**2 * square(centered),
        ),
    ]


def evaluate_branch_cotangent(
    x: NDArray[Any], f: NDArray[Any], alpha: NDArray[Any], beta: NDArray[Any], image: int
) -> dict[str, Sides]:
    """Both sides of R3: <x, dZ> along dF = f, where x is the cotangent of Z; other arguments as in R1."""
    merged = MergedTokens(0 * x, f, alpha, beta, image)
    closed = beta * (merged.segment_centered @ x) + alpha * (merged.segment_mean @ x)
    return {"pairing": ((x * merged.z).sum(), (closed * f).sum())}


def evaluate_not_a_gate(
    x: NDArray[Any], f: NDArray[Any], alpha: NDArray[Any], beta: NDArray[Any], image: int
) -> dict[str, Sides]:
    """Both sides of R4: J Z at F = 0, and the mean-to-centered ratio of dL/dF for the cotangent f.

    The ratio takes the first entries of alpha and beta as scalar gains; other arguments as in R1.
    """
    merged = MergedTokens(x, 0 * f, alpha, beta, image)
    mean, centered = merged.segment_mean, merged.segment_centered
    cotangent = beta[0] * (centered @ f) + alpha[0] * (mean @ f)

    def ratio(g: NDArray[Any]) -> Any:
        return (((mean @ g) ** 2).sum() / ((centered @ g) ** 2).sum()) ** 0.5

    return {
        "no_branch": (mean @ merged.z - mean @ x, -alpha * (mean @ x)),
        "mv_split_ratio": (ratio(cotangent), abs(alpha[0] / beta[0]) * ratio(f)),
        "gate_ratio": (ratio(alpha[0] * f), ratio(f)),
    }


BRANCH_COTANGENT = Law(
    tag="R3",
    title="MV-Split scales the mean of the branch's cotangent by alpha and its centered part by beta",
    clauses=(Clause(says="dL/dF = beta*(P G) + alpha*(J G), G = dL/dZ", steps=("<G, dZ>",)),),
    assumes=("MV-Split (R1)", "J and P of the segment; segments add"),
    source="arXiv:2605.06169 Eq. 10",
    derive=_branch_cotangent,
    evaluate=evaluate_branch_cotangent,
)


NOT_A_GATE = Law(
    tag="R4",
    title="no scalar gate equals MV-Split: it neither leaks the mean nor changes the gradient ratio",
    clauses=(
        Clause(
            says=(
                "LayerScale: J Z = J X + lambda J F; at F = 0 MV-Split differs by -alpha*J X for every lambda"
            ),
            steps=("LayerScale", "F = 0", "not equal"),
        ),
        Clause(
            says="|J dL/dF| / |P dL/dF| = |alpha / beta| |J G| / |P G|, for a gate |J G| / |P G|",
            steps=(
                "MV-Split, scalar gains: |J dL/dF|",
                "MV-Split, scalar gains: |P dL/dF|",
                "scalar gate: |J lambda G|",
                "scalar gate: |P lambda G|",
            ),
        ),
    ),
    assumes=(
        "MV-Split (R1)",
        "alpha not 0; scalar gains in the ratios, beta and lambda not 0",
        "P G not 0",
        "J = 1 1^T / T",
    ),
    source="arXiv:2605.06169 Eq. 40-42",
    derive=_not_a_gate,
    evaluate=evaluate_not_a_gate,
)
