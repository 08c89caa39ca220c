"""Entries of J X and P X as index sums under given premises, for laws about the entries of tokens."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sympy import Expr, IndexedBase, Integer, S, Sum, Symbol

from meanmode.theory.proof.index_sums import over
from meanmode.theory.proof.law import Premises
from meanmode.theory.proof.step import Algebra, Facts, Relation, Step
from meanmode.theory.proof.symbols import COLUMN, WIDTH, T, b, r, t

NESTED = Symbol("m", integer=True, positive=True)
ATTENTION = IndexedBase("a", shape=(T, T), nonnegative=True)

Entry = Callable[[Expr], Expr]
"""One feature of a token, as a function of the token's index."""


class TokenSums:
    """Token projectors applied to entries; the rows of attention a[i, j] sum to the premises' row sum.

    Args:
        premises: definitions of J, P and of a row-stochastic mixer.
        unit: additional unit vectors, base -> squared norm.
    """

    def __init__(self, premises: Premises, unit: dict[IndexedBase, Expr] | None = None) -> None:
        self.premises = premises
        self.ones = premises.mean_vector_is_ones
        self.facts = Facts(
            unit={**(unit or {}), **({} if self.ones else {COLUMN: S.One})},
            rows={} if premises.row_sum is None else {ATTENTION: premises.row_sum},
        )

    def mean(self, entry: Entry, token: Expr) -> Expr:
        """(J X)_t under the premises."""
        # a mean of a mean is a sum within a sum: the inner index must not be the outer one
        index = NESTED if token == r else r
        column = Integer(1) if self.ones else COLUMN[token] * COLUMN[index]
        return Sum(self.premises.mean_scale * column * entry(index), over(index, T))

    def centered(self, entry: Entry, token: Expr) -> Expr:
        """(P X)_t under the premises."""
        return entry(token) + self.premises.centering_sign * self.mean(entry, token)

    def step(
        self,
        name: str,
        left: Expr,
        right: Expr,
        relation: Relation = Relation.EQUAL,
        witness: Expr = S.Zero,
        at: Mapping[Any, Any] | None = None,
    ) -> Step:
        """Step that claims a relation between index sums."""
        return Step(
            name=name,
            left=left,
            right=right,
            relation=relation,
            witness=witness,
            at=at or {},
            algebra=Algebra.SUMS,
            facts=self.facts,
        )


def entry(base: IndexedBase) -> Entry:
    """Feature b of each token."""
    return lambda token: base[token, b]


def pairing(left: Expr, right: Expr) -> Expr:
    """<left, right>: the product of entries, summed over tokens and features."""
    return Sum(left * right, over(t, T), over(b, WIDTH))


def square(value: Expr) -> Expr:
    """Squared Frobenius norm of the matrix with this entry."""
    return Sum(value**2, over(t, T), over(b, WIDTH))


def average(entry: Entry) -> Expr:
    """Token average (1/T) sum_t."""
    return Sum(entry(r), over(r, T)) / T


def token_projectors(x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """J and P for the tokens of x [T, ...], in the arithmetic of x (floats or mpmath numbers)."""
    tokens = len(x)
    mean = np.full((tokens, tokens), x.flat[0] ** 0 / tokens)
    return mean, np.eye(tokens, dtype=int) - mean
