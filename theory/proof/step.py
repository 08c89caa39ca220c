"""`Step`: one claim of a proof as data, without the rules that decide it: two checkers read it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from sympy import Eq, Expr, Ge, IndexedBase, Ne, S

from meanmode.theory.proof.letters import Letter


class Relation(Enum):
    """How a step relates its two sides."""

    EQUAL = "="
    AT_LEAST = ">="
    UNEQUAL = "!="
    THEOREM = "by"


class Algebra(Enum):
    """What the two sides are made of, hence which rules may decide them.

    SUMS: finite sums over entries of arrays of declared lengths. WORDS: products of matrices of declared
    shapes. RATIONAL: rational functions of symbols. CALCULUS: powers, logarithms, derivatives, limits and
    finite sums of symbols.
    """

    SUMS = "sums"
    WORDS = "words"
    RATIONAL = "rational"
    CALCULUS = "calculus"


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What a step may use of the arrays and matrices in it, beyond the signs that they declare.

    Attributes:
        unit: base -> value of sum_b u[t, b]^2 over its last index.
        rows: base -> value of sum_j a[i, j] over its last index.
        products: neighbouring matrices -> what their product is.
    """

    unit: Mapping[IndexedBase, Expr] = field(default_factory=dict)
    rows: Mapping[IndexedBase, Expr] = field(default_factory=dict)
    products: Mapping[tuple[Letter, Letter], Expr] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One named proof step: two sides, their relation, and what may be used to decide it.

    EQUAL holds if both sides have one normal form. AT_LEAST holds if left - right has the normal form of
    `witness`, an expression that is nonnegative as written. UNEQUAL holds if the sides differ by a number
    other than 0 at the point `at`, a counterexample. THEOREM is not proved but cited: it names a classical
    theorem and says where its conditions are met.

    Attributes:
        at: for UNEQUAL, symbol -> number and base -> nested tuples of numbers.
        theorem: for THEOREM, the theorem that is cited.
        conditions: for THEOREM, why its conditions are met.
    """

    name: str
    left: Expr = S.Zero
    right: Expr = S.Zero
    relation: Relation = Relation.EQUAL
    algebra: Algebra
    facts: Facts = field(default=Facts(), repr=False)
    witness: Expr = S.Zero
    at: Mapping[Any, Any] = field(default_factory=dict)
    theorem: str = ""
    conditions: str = ""

    def formula(self) -> Expr:
        """The step as a sympy relation, for printing; a citation has none."""
        kinds = {Relation.EQUAL: Eq, Relation.AT_LEAST: Ge, Relation.UNEQUAL: Ne}
        return kinds[self.relation](self.left, self.right, evaluate=False)


def rational(
    name: str, left: Expr, right: Expr, relation: Relation = Relation.EQUAL, *, witness: Expr = S.Zero
) -> Step:
    """A claim about rational functions."""
    return Step(
        name=name, left=left, right=right, relation=relation, algebra=Algebra.RATIONAL, witness=witness
    )


def calculus(name: str, left: Expr, right: Expr, relation: Relation = Relation.EQUAL) -> Step:
    """A claim about powers, logarithms, derivatives, limits and finite sums."""
    return Step(name=name, left=left, right=right, relation=relation, algebra=Algebra.CALCULUS)


def cited(name: str, *, theorem: str, conditions: str) -> Step:
    """A classical theorem that is not proved here, and where its conditions are met."""
    return Step(
        name=name,
        relation=Relation.THEOREM,
        algebra=Algebra.RATIONAL,
        theorem=theorem,
        conditions=conditions,
    )
