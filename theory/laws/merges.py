"""Laws R1 to R5: what the MV-Split merge does to the token mean and to the centered part, forward and back.

Token operators act on the left of X and F, the gains per feature on the right as diagonal matrices, so gain
and projector commute by associativity alone. R1, R2 and R5 are words over two segments, image and text.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sympy import Expr, IndexedBase, Integer, Rational, S, Sum, Symbol

from meanmode.theory.proof.index_sums import over
from meanmode.theory.proof.law import Law, Premises, Relation, Sides, Step
from meanmode.theory.proof.matrix_words import letter, word_normal_form
from meanmode.theory.proof.symbols import T, b, s, t
from meanmode.theory.proof.token_sums import WIDTH, Entry, TokenSums

TRUNK, BRANCH = letter("X"), letter("F")


MEAN_GAIN, CENTERED_GAIN = letter("diag(alpha)"), letter("diag(beta)")


COLUMN, ROW = letter("v"), letter("v^T")


IMAGE, IMAGE_ROW, TEXT, TEXT_ROW = letter("1_I"), letter("1_I^T"), letter("1_T"), letter("1_T^T")


IMAGE_TOKENS = Symbol("T_I", integer=True, positive=True)


LAYER_GAIN = Symbol("lambda", real=True)


class MergeWords:
    """J, P, J_seg, P_seg of two segments as words, and the merges under the given premises."""

    def __init__(self, premises: Premises) -> None:
        text_tokens = T - IMAGE_TOKENS
        ones = premises.mean_vector_is_ones
        column, row = (IMAGE + TEXT, IMAGE_ROW + TEXT_ROW) if ones else (COLUMN, ROW)
        self.mean = premises.mean_scale * column * row
        self.segment_mean = premises.segment_scale * (
            IMAGE * IMAGE_ROW / IMAGE_TOKENS + TEXT * TEXT_ROW / text_tokens
        )
        self.centered = 1 + premises.centering_sign * self.mean
        self.segment_centered = 1 + premises.centering_sign * self.segment_mean
        self.leak = premises.mean_leak
        self.rules: dict[tuple[Expr, Expr], Expr] = {
            (ROW, COLUMN): S.One,
            (IMAGE_ROW, IMAGE): IMAGE_TOKENS,
            (TEXT_ROW, TEXT): text_tokens,
            (IMAGE_ROW, TEXT): S.Zero,
            (TEXT_ROW, IMAGE): S.Zero,
        }

    def mv_split(
        self,
        trunk: Expr = TRUNK,
        branch: Expr = BRANCH,
        alpha: Expr = MEAN_GAIN,
        beta: Expr = CENTERED_GAIN,
    ) -> Expr:
        """Z = X + beta*(P_seg F) + alpha*J_seg(F - X)."""
        written = self.segment_mean * (branch - self.leak * trunk) * alpha
        return trunk + self.segment_centered * branch * beta + written

    def step(self, name: str, left: Expr, right: Expr) -> Step:
        """An identity between words, decided by contraction."""
        return Step(
            name=name, left=left, right=right, normal_form=lambda words: word_normal_form(words, self.rules)
        )


def _merge_parts(premises: Premises) -> list[Step]:
    words = MergeWords(premises)
    mean, centered, z = words.segment_mean, words.segment_centered, words.mv_split()
    return [
        words.step(
            "Z = (P X + beta*P F) + ((1 - alpha)*J X + alpha*J F)",
            z,
            centered * TRUNK
            + centered * BRANCH * CENTERED_GAIN
            + mean * TRUNK
            - mean * TRUNK * MEAN_GAIN
            + mean * BRANCH * MEAN_GAIN,
        ),
        words.step(
            "alpha = beta = 1: Z = P X + F, the mean of the trunk is replaced, not added to",
            words.mv_split(alpha=S.One, beta=S.One),
            TRUNK - mean * TRUNK + BRANCH,
        ),
        words.step("alpha = beta = 0: Z = X", words.mv_split(alpha=S.Zero, beta=S.Zero), TRUNK),
    ]


def _mean_leaks(premises: Premises) -> list[Step]:
    words = MergeWords(premises)
    mean, centered, z = words.segment_mean, words.segment_centered, words.mv_split()
    difference = (mean - words.mean) * (BRANCH - TRUNK) * MEAN_GAIN
    return [
        words.step("J_seg J_seg = J_seg", mean * mean, mean),
        words.step("J_seg P_seg = 0", mean * centered, Integer(0)),
        words.step(
            "J_seg Z = (1 - alpha)*J_seg X + alpha*J_seg F",
            mean * z,
            mean * TRUNK - mean * TRUNK * MEAN_GAIN + mean * BRANCH * MEAN_GAIN,
        ),
        words.step(
            "P_seg Z = P_seg X + beta*P_seg F",
            centered * z,
            centered * TRUNK + centered * BRANCH * CENTERED_GAIN,
        ),
        words.step(
            "P Z = P X + beta*P_seg F + alpha*(J_seg - J)(F - X) for the global projector",
            words.centered * z,
            words.centered * TRUNK + centered * BRANCH * CENTERED_GAIN + difference,
        ),
    ]


GRADIENT, TRUNK_ENTRY, BRANCH_ENTRY = (IndexedBase(name, real=True) for name in "GXF")


TANGENT = IndexedBase("H", real=True)


ALPHA, BETA = IndexedBase("alpha", real=True), IndexedBase("beta", real=True)


def entry(base: IndexedBase) -> Entry:
    """Feature b of a token."""
    return lambda token: base[token, b]


class MergeSums(TokenSums):
    """The tangents of the MV-Split merge on one segment, feature b of token t; segments add."""

    def branch_tangent(self, alpha: Expr = ALPHA[b], beta: Expr = BETA[b]) -> Expr:
        """dZ along dF = H."""
        return beta * self.centered(entry(TANGENT), t) + alpha * self.mean(entry(TANGENT), t)

    def trunk_tangent(self) -> Expr:
        """dZ along dX = H."""
        return TANGENT[t, b] - ALPHA[b] * self.premises.mean_leak * self.mean(entry(TANGENT), t)


def pairing(left: Expr, right: Expr) -> Expr:
    """<left, right>, summed over tokens and features."""
    return Sum(left * right, over(t, T), over(b, WIDTH))


def square(value: Expr) -> Expr:
    """Squared Frobenius norm of an entry."""
    return Sum(value**2, over(t, T), over(b, WIDTH))


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

    half, one = Rational(1, 2), Integer(1)
    split_mean = one + half * (0 - premises.mean_leak * one)
    gate_mean = one + LAYER_GAIN * 0
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
            split_mean,
            gate_mean,
            Relation.UNEQUAL,
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


def _global_mean(premises: Premises) -> list[Step]:
    words = MergeWords(premises)
    mean, z = words.mean, words.mv_split()
    return [
        words.step("J_g J_seg = J_g", mean * words.segment_mean, mean),
        words.step("J_g P_seg = 0", mean * words.segment_centered, Integer(0)),
        words.step(
            "J_g Z = (1 - alpha)*J_g X + alpha*J_g F",
            mean * z,
            mean * TRUNK - mean * TRUNK * MEAN_GAIN + mean * BRANCH * MEAN_GAIN,
        ),
    ]


def _projector(tokens: int, segments: tuple[int, ...], one: Any) -> NDArray[Any]:
    """J_seg of the given segment lengths, in the arithmetic of `one`."""
    blocks = np.zeros((tokens, tokens), dtype=int) * one
    start = 0
    for length in segments:
        blocks[start : start + length, start : start + length] = one / length
        start += length
    return blocks


class _Merged:
    """Projectors of two segments and Z of MV-Split, numerically."""

    def __init__(
        self, x: NDArray[Any], f: NDArray[Any], alpha: NDArray[Any], beta: NDArray[Any], image: int
    ) -> None:
        tokens, one = len(x), x.flat[0] ** 0
        identity = np.eye(tokens, dtype=int)
        self.mean = _projector(tokens, (tokens,), one)
        self.segment_mean = _projector(tokens, (image, tokens - image), one)
        self.centered, self.segment_centered = identity - self.mean, identity - self.segment_mean
        self.z = x + beta * (self.segment_centered @ f) + alpha * (self.segment_mean @ (f - x))


def evaluate_merge_parts(
    x: NDArray[Any], f: NDArray[Any], alpha: NDArray[Any], beta: NDArray[Any], image: int
) -> dict[str, Sides]:
    """Both sides of R1 for trunk and branch [T, D], gains [D] and the length of the first segment."""
    merged = _Merged(x, f, alpha, beta, image)
    mean, centered = merged.segment_mean, merged.segment_centered
    parts = centered @ x + beta * (centered @ f) + (1 - alpha) * (mean @ x) + alpha * (mean @ f)
    replaced = _Merged(x, f, alpha**0, beta**0, image).z
    return {"parts": (merged.z, parts), "full": (replaced, centered @ x + f)}


def evaluate_mean_leaks(
    x: NDArray[Any], f: NDArray[Any], alpha: NDArray[Any], beta: NDArray[Any], image: int
) -> dict[str, Sides]:
    """Both sides of R2, arguments as in R1."""
    merged = _Merged(x, f, alpha, beta, image)
    mean, centered = merged.segment_mean, merged.segment_centered
    leak = alpha * ((mean - merged.mean) @ (f - x))
    return {
        "mean": (mean @ merged.z, (1 - alpha) * (mean @ x) + alpha * (mean @ f)),
        "centered": (centered @ merged.z, centered @ x + beta * (centered @ f)),
        "global_centered": (
            merged.centered @ merged.z,
            merged.centered @ x + beta * (centered @ f) + leak,
        ),
    }


def evaluate_branch_cotangent(
    x: NDArray[Any], f: NDArray[Any], alpha: NDArray[Any], beta: NDArray[Any], image: int
) -> dict[str, Sides]:
    """Both sides of R3: <x, dZ> along dF = f, against the closed form with x as the cotangent of Z."""
    merged = _Merged(0 * x, f, alpha, beta, image)
    closed = beta * (merged.segment_centered @ x) + alpha * (merged.segment_mean @ x)
    return {"pairing": ((x * merged.z).sum(), (closed * f).sum())}


def evaluate_not_a_gate(
    x: NDArray[Any], f: NDArray[Any], alpha: NDArray[Any], beta: NDArray[Any], image: int
) -> dict[str, Sides]:
    """Both sides of R4 with F = 0, and the mean to centered ratio of dL/dF for the cotangent f.

    The gains of the ratio are the first entries of alpha and beta, taken as scalars.
    """
    merged = _Merged(x, 0 * f, alpha, beta, image)
    mean, centered = merged.segment_mean, merged.segment_centered
    cotangent = beta[0] * (centered @ f) + alpha[0] * (mean @ f)

    def ratio(g: NDArray[Any]) -> Any:
        return (((mean @ g) ** 2).sum() / ((centered @ g) ** 2).sum()) ** 0.5

    return {
        "no_branch": (mean @ merged.z - mean @ x, -alpha * (mean @ x)),
        "mv_split_ratio": (ratio(cotangent), abs(alpha[0] / beta[0]) * ratio(f)),
        "gate_ratio": (ratio(alpha[0] * f), ratio(f)),
    }


def evaluate_global_mean(
    x: NDArray[Any], f: NDArray[Any], alpha: NDArray[Any], beta: NDArray[Any], image: int
) -> dict[str, Sides]:
    """Both sides of R5, arguments as in R1."""
    merged = _Merged(x, f, alpha, beta, image)
    mean = merged.mean
    return {
        "projectors": (mean @ merged.segment_mean, mean),
        "annihilated": (mean @ merged.segment_centered, 0 * mean),
        "leak": (mean @ merged.z, (1 - alpha) * (mean @ x) + alpha * (mean @ f)),
    }


MERGE_PARTS = Law(
    tag="R1",
    title="MV-Split writes mean and centered part with separate gains and leaks the mean",
    statement=(
        "Z = X + beta*(P F) + alpha*J(F - X) = (P X + beta*P F) + ((1 - alpha)*J X + alpha*J F);  "
        "alpha = beta = 1: Z = P X + F"
    ),
    assumes=("P = I - J, J and P segment-wise", "alpha, beta act per feature, projectors per token"),
    source="arXiv:2605.06169 Eq. 7-8",
    derive=_merge_parts,
    evaluate=evaluate_merge_parts,
)


MEAN_LEAKS = Law(
    tag="R2",
    title="under MV-Split the mean is a leaky integrator and the centered part a residual stream",
    statement=(
        "J_seg Z = (1 - alpha)*J_seg X + alpha*J_seg F;  P_seg Z = P_seg X + beta*P_seg F;  "
        "P Z = P X + beta*P_seg F + alpha*(J_seg - J)(F - X)"
    ),
    assumes=(
        "MV-Split (R1) before the norm",
        "two segments, J_seg their means, P_seg = I - J_seg",
        "J = 1 1^T / T",
    ),
    source="arXiv:2605.06169 Eq. 9; the global projector is derived here",
    derive=_mean_leaks,
    evaluate=evaluate_mean_leaks,
)


BRANCH_COTANGENT = Law(
    tag="R3",
    title="MV-Split scales the mean of the branch's cotangent by alpha, the rest by beta",
    statement="dL/dF = beta*(P G) + alpha*(J G), G = dL/dZ",
    assumes=("MV-Split (R1)", "J and P of the segment; segments add"),
    source="arXiv:2605.06169 Eq. 10",
    derive=_branch_cotangent,
    evaluate=evaluate_branch_cotangent,
)


NOT_A_GATE = Law(
    tag="R4",
    title="no scalar gate is MV-Split: a gate neither forgets the mean nor changes the gradient ratio",
    statement=(
        "LayerScale: J Z = J X + lambda J F; at F = 0 MV-Split differs by -alpha*J X for every lambda;  "
        "|J dL/dF| / |P dL/dF| = |alpha / beta| |J G| / |P G|, for a gate |J G| / |P G|"
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


GLOBAL_MEAN = Law(
    tag="R5",
    title="the segment-wise merge leaks the global mean too",
    statement="J_g J_seg = J_g;  J_g P_seg = 0;  J_g Z = (1 - alpha)*J_g X + alpha*J_g F",
    assumes=("MV-Split (R1)", "two segments, J_seg their means", "J_g = 1 1^T / T"),
    source="arXiv:2605.06169 Eq. 44-45",
    derive=_global_mean,
    evaluate=evaluate_global_mean,
)
