"""Laws R1, R2 and R5: what the MV-Split merge does to the token mean and to the centered part.

Token operators act from the left on X and F, per-feature gains from the right as diagonal matrices, so gain
and projector commute by associativity alone. The words are over two segments, image and text.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sympy import Expr, Integer, S, Symbol

from meanmode.theory.proof.law import Clause, Law, Premises, Sides
from meanmode.theory.proof.letters import Letter
from meanmode.theory.proof.step import Algebra, Facts, Step
from meanmode.theory.proof.symbols import WIDTH, T
from meanmode.theory.proof.token_projectors import COLUMN, ROW, STATE

TRUNK, BRANCH = STATE, Letter("F", T, WIDTH)
MEAN_GAIN, CENTERED_GAIN = Letter("diag(alpha)", WIDTH, WIDTH), Letter("diag(beta)", WIDTH, WIDTH)
IMAGE, TEXT = Letter("1_I", T, 1), Letter("1_T", T, 1)
IMAGE_ROW, TEXT_ROW = Letter("1_I^T", 1, T), Letter("1_T^T", 1, T)
IMAGE_TOKENS = Symbol("T_I", integer=True, positive=True)


class MergeWords:
    """J, P, J_seg, P_seg of two segments as words, and the MV-Split merge under the given premises."""

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
        self.products: dict[tuple[Letter, Letter], Expr] = {
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
        """Step that claims an identity between words, decided by contraction."""
        return Step(
            name=name, left=left, right=right, algebra=Algebra.WORDS, facts=Facts(products=self.products)
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
    """J_seg for these segment lengths, in the arithmetic of `one`."""
    blocks = np.zeros((tokens, tokens), dtype=int) * one
    start = 0
    for length in segments:
        blocks[start : start + length, start : start + length] = one / length
        start += length
    return blocks


class MergedTokens:
    """Projectors of two segments and Z of MV-Split as arrays."""

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
    """Both sides of R1 for trunk and branch [T, D], gains [D] and the length of the image segment."""
    merged = MergedTokens(x, f, alpha, beta, image)
    mean, centered = merged.segment_mean, merged.segment_centered
    parts = centered @ x + beta * (centered @ f) + (1 - alpha) * (mean @ x) + alpha * (mean @ f)
    replaced = MergedTokens(x, f, alpha**0, beta**0, image).z
    return {"parts": (merged.z, parts), "full": (replaced, centered @ x + f)}


def evaluate_mean_leaks(
    x: NDArray[Any], f: NDArray[Any], alpha: NDArray[Any], beta: NDArray[Any], image: int
) -> dict[str, Sides]:
    """Both sides of R2, arguments as in R1."""
    merged = MergedTokens(x, f, alpha, beta, image)
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


def evaluate_global_mean(
    x: NDArray[Any], f: NDArray[Any], alpha: NDArray[Any], beta: NDArray[Any], image: int
) -> dict[str, Sides]:
    """Both sides of R5, arguments as in R1."""
    merged = MergedTokens(x, f, alpha, beta, image)
    mean = merged.mean
    return {
        "projectors": (mean @ merged.segment_mean, mean),
        "annihilated": (mean @ merged.segment_centered, 0 * mean),
        "leak": (mean @ merged.z, (1 - alpha) * (mean @ x) + alpha * (mean @ f)),
    }


MERGE_PARTS = Law(
    tag="R1",
    title="MV-Split writes the mean and the centered part with separate gains and leaks the mean",
    clauses=(
        Clause(
            says="Z = X + beta*(P F) + alpha*J(F - X) = (P X + beta*P F) + ((1 - alpha)*J X + alpha*J F)",
            steps=("Z = (P X",),
        ),
        Clause(says="alpha = beta = 1: Z = P X + F", steps=("alpha = beta = 1",)),
    ),
    assumes=("P = I - J, J and P segment-wise", "alpha, beta act per feature, projectors per token"),
    source="arXiv:2605.06169 Eq. 7-8",
    derive=_merge_parts,
    evaluate=evaluate_merge_parts,
)


MEAN_LEAKS = Law(
    tag="R2",
    title="under MV-Split the mean is a leaky integrator and the centered part a residual stream",
    clauses=(
        Clause(says="J_seg Z = (1 - alpha)*J_seg X + alpha*J_seg F", steps=("J_seg Z",)),
        Clause(says="P_seg Z = P_seg X + beta*P_seg F", steps=("P_seg Z",)),
        Clause(says="P Z = P X + beta*P_seg F + alpha*(J_seg - J)(F - X)", steps=("P Z",)),
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


GLOBAL_MEAN = Law(
    tag="R5",
    title="the segment-wise merge also leaks the global mean",
    clauses=(
        Clause(says="J_g J_seg = J_g", steps=("J_g J_seg",)),
        Clause(says="J_g P_seg = 0", steps=("J_g P_seg",)),
        Clause(says="J_g Z = (1 - alpha)*J_g X + alpha*J_g F", steps=("J_g Z",)),
    ),
    assumes=("MV-Split (R1)", "two segments, J_seg their means", "J_g = 1 1^T / T"),
    source="arXiv:2605.06169 Eq. 44-45",
    derive=_global_mean,
    evaluate=evaluate_global_mean,
)
