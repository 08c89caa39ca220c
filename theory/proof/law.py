"""`Law`: a claim stated once, with its premises, its machine-checked proof and a numeric form."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sympy import Expr, S, Symbol

from meanmode.theory.proof.kernel import Decision, Verdict, decide
from meanmode.theory.proof.second_check import Comparison, compare
from meanmode.theory.proof.step import Step

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Clause:
    """One claim of a law's statement, and what shows it.

    Attributes:
        says: the claim as a formula that a reader can check.
        steps: how the names of the steps that prove it begin, each beginning that of one step.
        prose: what the steps do not contain: how they are composed, in words. Empty if they are the claim.
    """

    says: str
    steps: tuple[str, ...]
    prose: str = ""

    def numbers(self, steps: Sequence[Step]) -> list[int]:
        """Numbers, from 1, of the steps that it names.

        Raises:
            ValueError: a beginning fits no step, or several.
        """
        found = []
        for begin in self.steps:
            fit = [number for number, step in enumerate(steps, start=1) if step.name.startswith(begin)]
            exact = [number for number in fit if steps[number - 1].name == begin]
            if len(exact or fit) != 1:
                raise ValueError(f"clause {self.says!r} names {begin!r}, which begins {len(fit)} steps")
            found += exact or fit
        return sorted(set(found))


@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """Outcome of proving one law: its steps, and what the kernel says of each."""

    tag: str
    steps: tuple[Step, ...]
    decisions: tuple[Decision, ...]
    clauses: tuple[Clause, ...]

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the steps that the kernel refuses."""
        pairs = zip(self.steps, self.decisions, strict=True)
        return tuple(step.name for step, decision in pairs if decision.verdict is Verdict.REFUSED)

    @property
    def proved(self) -> bool:
        """Whether steps are proved, none is refused, and every clause names steps or is said to be prose."""
        verdicts = [decision.verdict for decision in self.decisions]
        return (
            Verdict.PROVED in verdicts
            and Verdict.REFUSED not in verdicts
            and all(clause.numbers(self.steps) or clause.prose for clause in self.clauses)
        )

    @property
    def proved_steps(self) -> int:
        """Number of steps that are proved; a citation is none."""
        return sum(decision.verdict is Verdict.PROVED for decision in self.decisions)

    @property
    def cited(self) -> tuple[str, ...]:
        """The classical theorems that the steps cite without proving them."""
        return tuple(step.theorem for step in self.steps if step.theorem)

    @property
    def prose(self) -> tuple[str, ...]:
        """Clauses that the steps prove only in parts, which words compose."""
        return tuple(clause.says for clause in self.clauses if clause.prose)

    def shows(self, clause: Clause) -> str:
        """How a clause is shown: the numbers of its steps, citations, and what is left to words."""
        numbers = clause.numbers(self.steps)
        cited = [n for n in numbers if self.decisions[n - 1].verdict is Verdict.CITED]
        proved = [n for n in numbers if n not in cited]
        parts = [f"step{'s' if len(proved) > 1 else ''} {', '.join(map(str, proved))}"] if proved else []
        parts += [f"cited in {', '.join(map(str, cited))}"] if cited else []
        parts += [f"in words: {clause.prose}"] if clause.prose else []
        return "; ".join(parts)


Sides = tuple[Any, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Law:
    """A claim about token means, stated once.

    Attributes:
        tag: short name used in tests, captions, docstrings and on the command line.
        title: the claim in a few words.
        clauses: the claims of its statement, each with the steps that prove it.
        assumes: the assumptions under which it holds.
        source: paper and equation numbers, or "derived here".
        derive: returns the steps of the proof for given premises.
        evaluate: returns both sides of every numeric claim, from float arrays or object arrays of mpmath
            numbers.
    """

    tag: str
    title: str
    clauses: tuple[Clause, ...]
    assumes: tuple[str, ...]
    source: str
    derive: Callable[[Premises], Sequence[Step]] = field(repr=False)
    evaluate: Callable[..., Mapping[str, Sides]] = field(repr=False)

    @property
    def statement(self) -> str:
        """All claims, separated by ";  "."""
        return ";  ".join(clause.says for clause in self.clauses)

    def prove(self, premises: Premises = PREMISES) -> Proof:
        """Let the kernel decide every step; other premises show which of them the law depends on."""
        return _proof(self, premises)

    def compare(self) -> tuple[Comparison, ...]:
        """Let the second checker evaluate every step on random instances."""
        return _comparisons(self)


@cache
def _proof(law: Law, premises: Premises) -> Proof:
    steps = tuple(law.derive(premises))
    decisions = tuple(map(decide, steps))
    return Proof(
        tag=law.tag,
        steps=steps,
        decisions=decisions,
        clauses=law.clauses if steps else (),
    )


@cache
def _comparisons(law: Law) -> tuple[Comparison, ...]:
    return tuple(map(compare, law.derive(PREMISES)))


def frobenius(matrix: NDArray[Any]) -> Any:
    """Frobenius norm; also accepts object arrays of multiprecision numbers."""
    return np.sum(matrix * matrix) ** 0.5
