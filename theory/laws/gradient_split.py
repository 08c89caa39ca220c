"""Law G1: a writer's gradient splits into a mean-coherent and a centered part, not orthogonal in general."""

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sympy import Expr, IndexedBase, Integer, Sum

from meanmode.theory.proof.index_sums import over
from meanmode.theory.proof.law import Clause, Law, Premises, Sides
from meanmode.theory.proof.step import Algebra, Facts, Relation, Step
from meanmode.theory.proof.symbols import COLUMN, B, M, N, T, a, b, j, k, r, t

ADJOINT = IndexedBase("d", shape=(B, T, M), real=True)
INPUT = IndexedBase("y", shape=(B, T, N), real=True)


class WriterModes:
    """The split of sum_t d_t y_t^T over one sample k, as index sums under the given premises."""

    def __init__(self, premises: Premises) -> None:
        self.premises = premises
        self.ones = premises.mean_vector_is_ones
        self.facts = Facts(unit={} if self.ones else {COLUMN: Integer(1)})

    def _mean_entry(self, token: Expr, other: Expr) -> Expr:
        """J_ts under the premises."""
        column = Integer(1) if self.ones else COLUMN[token] * COLUMN[other]
        return self.premises.mean_scale * column

    def average(self, base: IndexedBase, sample: Expr, feature: Expr) -> Expr:
        """Token average (1/T) sum_t of one feature in one sample."""
        return Sum(base[sample, r, feature], over(r, T)) / T

    def centered(self, base: IndexedBase, sample: Expr, token: Expr, feature: Expr) -> Expr:
        """Entry of P X for one sample, token and feature."""
        projected = Sum(self._mean_entry(token, r) * base[sample, r, feature], over(r, T))
        return base[sample, token, feature] + self.premises.centering_sign * projected

    def gradient(self, sample: Expr) -> Expr:
        """Entry (a, b) of the writer's gradient."""
        return Sum(ADJOINT[sample, t, a] * INPUT[sample, t, b], over(t, T))

    def coherent(self, sample: Expr) -> Expr:
        """Entry (a, b) of T dbar ybar^T."""
        return T * self.average(ADJOINT, sample, a) * self.average(INPUT, sample, b)

    def remainder(self, sample: Expr) -> Expr:
        """Entry (a, b) of sum_t dtilde_t ytilde_t^T."""
        return Sum(self.centered(ADJOINT, sample, t, a) * self.centered(INPUT, sample, t, b), over(t, T))

    def step(self, name: str, left: Expr, right: Expr, relation: Relation = Relation.EQUAL) -> Step:
        """Step that claims a relation between index sums."""
        return Step(
            name=name, left=left, right=right, relation=relation, algebra=Algebra.SUMS, facts=self.facts
        )


def _inner(left: Expr, right: Expr) -> Expr:
    return Sum(left * right, over(a, M), over(b, N))


def _gradient_split(premises: Premises) -> list[Step]:
    modes = WriterModes(premises)
    gradient, coherent, remainder = modes.gradient(k), modes.coherent(k), modes.remainder(k)
    average, centered = modes.average, modes.centered
    mean_gram = Sum(average(ADJOINT, k, a) * average(ADJOINT, j, a), over(a, M)) * Sum(
        average(INPUT, k, b) * average(INPUT, j, b), over(b, N)
    )
    batch_coherent, batch_gradient = Sum(coherent, over(k, B)), Sum(gradient, over(k, B))
    batch_remainder = batch_gradient - batch_coherent
    squares = _inner(batch_coherent, batch_coherent) + _inner(batch_remainder, batch_remainder)
    return [
        modes.step("sum_t dtilde_t = 0", Sum(centered(ADJOINT, k, t, a), over(t, T)), Integer(0)),
        modes.step(
            "sum_t dbar ytilde_t^T = 0",
            Sum(average(ADJOINT, k, a) * centered(INPUT, k, t, b), over(t, T)),
            Integer(0),
        ),
        modes.step(
            "sum_t dtilde_t ybar^T = 0",
            Sum(centered(ADJOINT, k, t, a) * average(INPUT, k, b), over(t, T)),
            Integer(0),
        ),
        modes.step("grad = T dbar ybar^T + sum_t dtilde_t ytilde_t^T", gradient, coherent + remainder),
        modes.step(
            "over a batch, grad - sum_k T dbar_k ybar_k^T = sum_k,t dtilde ytilde^T",
            batch_remainder,
            Sum(remainder, over(k, B)),
        ),
        modes.step(
            "G_mean^2 = T^2 sum_k,j <dbar_k, dbar_j> <ybar_k, ybar_j>",
            _inner(batch_coherent, batch_coherent),
            T**2 * Sum(mean_gram, over(k, B), over(j, B)),
        ),
        modes.step(
            "|grad|^2 = G_mean^2 + 2 <DW_mu, DW_c> + G_ctr^2",
            _inner(batch_gradient, batch_gradient),
            squares + 2 * _inner(batch_coherent, batch_remainder),
        ),
        dataclasses.replace(
            modes.step(
                "not Pythagoras: one sample, T = 2, d = y = (1, 0) of width one has <DW_mu, DW_c> != 0",
                _inner(batch_coherent, batch_remainder),
                Integer(0),
                Relation.UNEQUAL,
            ),
            at={**dict.fromkeys((B, M, N), 1), T: 2, **dict.fromkeys((ADJOINT, INPUT), (((1,), (0,)),))},
        ),
    ]


def evaluate_gradient_split(y: NDArray[Any], delta: NDArray[Any]) -> dict[str, Sides]:
    """Both sides of G1 for writer inputs y [B, T, N] and cotangents delta [B, T, M]."""
    tokens = y.shape[1]
    y_mean, delta_mean = y.sum(1) / tokens, delta.sum(1) / tokens
    coherent = tokens * delta_mean.T @ y_mean
    centered = sum(d.T @ z for d, z in zip(delta - delta_mean[:, None], y - y_mean[:, None], strict=True))
    gradient = sum(d.T @ z for d, z in zip(delta, y, strict=True))
    gram = (delta_mean @ delta_mean.T) * (y_mean @ y_mean.T)
    squares = np.sum(coherent**2) + 2 * np.sum(coherent * centered) + np.sum(centered**2)
    return {
        "split": (gradient, coherent + centered),
        "g_mean_squared": (np.sum(coherent**2), tokens**2 * gram.sum()),
        "norm": (np.sum(gradient**2), squares),
    }


GRADIENT_SPLIT = Law(
    tag="G1",
    title="the writer gradient splits into a mean-coherent and a centered part",
    clauses=(
        Clause(says="sum_t d_t y_t^T = T dbar ybar^T + sum_t dtilde_t ytilde_t^T", steps=("grad = T dbar",)),
        Clause(
            says="|grad|^2 = G_mean^2 + 2 <DW_mu, DW_c> + G_ctr^2",
            steps=("over a batch", "|grad|^2 = G_mean^2", "not Pythagoras"),
        ),
    ),
    assumes=("the writer acts token by token", "J = 1 1^T / T", "P = I - J"),
    source="arXiv:2605.06169 Eq. 5, 11-17",
    derive=_gradient_split,
    evaluate=evaluate_gradient_split,
)
