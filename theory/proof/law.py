"""`Law`: a claim stated once, with its premises, its machine-checked proof and a numeric form."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sympy import Eq, Expr, Ge, Le, Ne, S, Symbol

from meanmode.theory.proof.index_sums import is_nonnegative

TOKENS = Symbol("T", integer=True, positive=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Premises:
    """The definitions that all proofs start from; replacing one shows which laws depend on it.

    Attributes:
        row_sum: A 1 = row_sum 1; 1 for a row-stochastic mixer, None if the rows have different sums.
        mean_scale: J = mean_scale v v^T.
        mean_vector_is_ones: whether v is the column of ones (v^T v = T) or another column with v^T v = 1.
        centering_sign: P = I + centering_sign J.
        unit_square: squared norm of a token's direction.
        softmax_exponent: attention is exp(S_ij) / (sum_k exp(S_ik))^softmax_exponent; 0 leaves it
            unnormalised.
        state_write: a state space is h_t = a_t h_{t-1} + (state_write - a_t) v_t.
        mean_leak: MV-Split is Z = X + beta*(P F) + alpha*J(F - mean_leak X).
        segment_scale: J_seg averages over each segment, times segment_scale.
        norm_exponent: RMSNorm is Z_i (|Z_i|^2 / D + eps)^norm_exponent.
        loss_exponent: the loss is the sum over T tokens divided by T^loss_exponent; 0 gives the plain sum.
    """

    row_sum: Expr | None = S.One
    mean_scale: Expr = 1 / TOKENS
    mean_vector_is_ones: bool = True
    centering_sign: Expr = S.NegativeOne
    unit_square: Expr = S.One
    softmax_exponent: Expr = S.One
    state_write: Expr = S.One
    mean_leak: Expr = S.One
    segment_scale: Expr = S.One
    norm_exponent: Expr = -S.Half
    loss_exponent: Expr = S.One


PREMISES = Premises()


class Relation(Enum):
    """How a step relates its two sides."""

    EQUAL = "="
    AT_LEAST = ">="
    UNEQUAL = "!="
    THEOREM = "by"


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One named proof step: two sides, their relation, and the normal form that decides it.

    EQUAL holds if left - right reduces to 0. AT_LEAST holds if left - right reduces to `witness`, an
    expression that is nonnegative as written. UNEQUAL holds if left - right reduces to a nonzero number, a
    counterexample. THEOREM cites a classical theorem by name.
    """

    name: str
    left: Expr
    right: Expr
    relation: Relation = Relation.EQUAL
    normal_form: Callable[[Expr], Expr] = field(repr=False)
    witness: Expr = S.Zero
    theorem: str = ""

    def residual(self) -> Expr:
        """Normal form of left - right - witness; 0 if the step is an identity or a bound that holds."""
        return self.normal_form(self.left - self.right - self.witness)

    def holds(self) -> bool:
        """Whether the step is proved."""
        if self.relation is Relation.THEOREM:
            return bool(self.theorem)
        residual = self.residual()
        if self.relation is Relation.UNEQUAL:
            return bool(residual.is_number and residual != 0)
        if self.relation is Relation.EQUAL and self.witness != 0:
            return False
        return bool(residual == 0) and is_nonnegative(self.witness)

    def formula(self) -> Expr:
        """The step as a sympy relation, for printing."""
        kinds = {Relation.EQUAL: Eq, Relation.AT_LEAST: Ge, Relation.UNEQUAL: Ne, Relation.THEOREM: Le}
        return kinds[self.relation](self.left, self.right, evaluate=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """Outcome of proving one law: its steps, the names of those that failed, and the seconds it took."""

    tag: str
    steps: tuple[Step, ...]
    failed: tuple[str, ...]
    seconds: float

    @property
    def proved(self) -> bool:
        """Whether the law has steps and all of them hold."""
        return bool(self.steps) and not self.failed

    @property
    def cited(self) -> tuple[str, ...]:
        """The classical theorems that the steps cite without proving them."""
        return tuple(step.theorem for step in self.steps if step.theorem)


Sides = tuple[Any, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Law:
    """A claim about token means, stated once.

    Attributes:
        tag: short name used in tests, captions, docstrings and on the command line.
        title: the claim in a few words.
        statement: the claim as formulas that a reader can check; claims are separated by ";  ".
        assumes: the assumptions under which it holds.
        source: paper and equation numbers, or "derived here".
        derive: returns the steps of the proof for given premises.
        evaluate: returns both sides of every numeric claim, from float arrays or object arrays of mpmath
            numbers.
    """

    tag: str
    title: str
    statement: str
    assumes: tuple[str, ...]
    source: str
    derive: Callable[[Premises], Sequence[Step]] = field(repr=False)
    evaluate: Callable[..., Mapping[str, Sides]] = field(repr=False)

    def prove(self, premises: Premises = PREMISES) -> Proof:
        """Check every step; other premises show whether the law depends on the replaced ones."""
        start = time.perf_counter()
        steps = tuple(self.derive(premises))
        failed = tuple(step.name for step in steps if not step.holds())
        return Proof(tag=self.tag, steps=steps, failed=failed, seconds=time.perf_counter() - start)


def frobenius(matrix: NDArray[Any]) -> Any:
    """Frobenius norm; also accepts object arrays of multiprecision numbers."""
    return np.sum(matrix * matrix) ** 0.5
