"""The kernel: decides a step by the rules of its algebra, and refuses what has no meaning.

Every refusal is a value or an exception, never an `assert`, so that verdicts do not depend on `python -O`.
"""

from dataclasses import dataclass
from enum import Enum

from sympy import (
    Expr,
    KroneckerDelta,
    Limit,
    Pow,
    Rational,
    Sum,
    cancel,
    expand_log,
    expand_power_base,
    log,
    nan,
    oo,
    powdenest,
    powsimp,
    preorder_traversal,
    simplify,
    zoo,
)
from sympy.tensor.indexed import Indexed

from meanmode.theory.proof.exact_point import value_at
from meanmode.theory.proof.index_rules import IllFormed, free_index_lengths
from meanmode.theory.proof.index_sums import IndexSums
from meanmode.theory.proof.matrix_words import check_shapes, word_normal_form
from meanmode.theory.proof.nonnegative import is_nonnegative
from meanmode.theory.proof.step import Algebra, Relation, Step

DIGITS = 50
SMALLEST = Rational(1, 10**30)
"""Numbers that agree to DIGITS must differ by more than this to be called unequal."""


class Verdict(Enum):
    """What the kernel says of a step."""

    PROVED = "proved"
    CITED = "cited"
    REFUSED = "refused"


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """Verdict on one step, and why it is refused."""

    verdict: Verdict
    reason: str = ""


def decide(step: Step) -> Decision:
    """Decide one step; whatever it cannot decide is refused."""
    try:
        reason = _DECIDE[step.relation](step)
    except IllFormed as refusal:
        reason = str(refusal)
    if reason:
        return Decision(verdict=Verdict.REFUSED, reason=reason)
    return Decision(verdict=Verdict.CITED if step.relation is Relation.THEOREM else Verdict.PROVED)


def holds(step: Step) -> bool:
    """Whether the step is proved; a citation is not."""
    return decide(step).verdict is Verdict.PROVED


def residual(step: Step) -> Expr:
    """Normal form of left - right - witness; 0 if both sides agree.

    Raises:
        IllFormed: a side has no meaning.
    """
    difference = step.left - step.right - step.witness
    for side in (step.left, step.right, step.witness):
        _check_finite(side)
        _check_domain(side)
        # each side on its own: what would cancel between them must mean something too
        if step.algebra is Algebra.SUMS:
            free_index_lengths(side)
        elif step.algebra is Algebra.WORDS:
            check_shapes(side)
        else:
            _check_scalar(side)
        letters = [symbol for symbol in side.free_symbols if not symbol.is_commutative]
        if step.algebra is not Algebra.WORDS and letters:
            raise IllFormed(f"matrices make words, not {step.algebra.value}, got {side}")
    if step.algebra is Algebra.SUMS:
        return IndexSums(step.facts).normal_form(difference)
    if step.algebra is Algebra.WORDS:
        return word_normal_form(difference, step.facts.products)
    found = cancel(difference.doit())
    # what differs at one point need not be simplified
    if found == 0 or step.algebra is Algebra.RATIONAL or is_nonzero(_at_probe(found, 3)):
        return found
    found = simplify(powdenest(found))
    return found if found == 0 else simplify(powsimp(expand_log(expand_power_base(found))))


def is_nonzero(value: Expr) -> bool:
    """Whether a number differs from 0 at 50 digits; false if it is no number or too small to tell."""
    if not value.is_number or value.has(nan, oo, -oo, zoo):
        return False
    digits = value.evalf(DIGITS + 10, maxn=4 * DIGITS)
    return bool(digits.is_number and digits.is_finite and abs(digits) > SMALLEST)


def _equal(step: Step) -> str:
    if step.witness != 0:
        return "an equality has no witness"
    found = residual(step)
    return "" if found == 0 else f"the sides differ by {found}"


def _at_least(step: Step) -> str:
    if step.algebra is Algebra.WORDS:
        return "a bound is about numbers, not matrices"
    found = residual(step)
    if found != 0:
        return f"the sides differ from the witness by {found}"
    return "" if is_nonnegative(step.witness) else f"{step.witness} may be negative"


def _unequal(step: Step) -> str:
    if step.algebra is Algebra.WORDS:
        return "a counterexample is a number, not a matrix"
    if step.witness != 0:
        return "an inequality of numbers has no witness but its point"
    for side in (step.left, step.right):
        _check_finite(side)
        free_index_lengths(side)
    sides = [step.left, step.right]
    if step.algebra is not Algebra.SUMS:
        sides = [side.doit() for side in sides]
    difference = value_at(sides[0], step.at, step.facts) - value_at(sides[1], step.at, step.facts)
    return "" if is_nonzero(difference) else f"the sides differ by {difference}, which may be 0"


def _theorem(step: Step) -> str:
    if not step.theorem:
        return "a citation names its theorem"
    return "" if step.conditions else "a citation says where the conditions of its theorem are met"


_DECIDE = {
    Relation.EQUAL: _equal,
    Relation.AT_LEAST: _at_least,
    Relation.UNEQUAL: _unequal,
    Relation.THEOREM: _theorem,
}


def _check_finite(node: Expr) -> None:
    """Refuse infinite values; only the point of a limit may lie at infinity."""
    if node in (nan, oo, -oo, zoo):
        raise IllFormed(f"a side must be finite, got {node}")
    for argument in node.args[:1] if isinstance(node, Limit) else node.args:
        _check_finite(argument)


def _check_scalar(expression: Expr) -> None:
    """Refuse entries outside index sums, and sums whose length may be negative."""
    if expression.has(Indexed, KroneckerDelta):
        raise IllFormed(f"entries belong into index sums, got {expression}")
    for total in expression.atoms(Sum):
        for limits in total.limits:
            low, high = limits[1:] if len(limits) == 3 else (nan, nan)
            if not (low.is_integer and (high - low + 1).is_integer and (high - low + 1).is_nonnegative):
                raise IllFormed(f"a sum runs over a number of integers that is not negative, got {limits}")


def _check_domain(expression: Expr) -> None:
    """Refuse denominators that are 0 though not written as 0, and roots and logarithms that are not real.

    What sympy cannot tell is evaluated at two points; a root of a difference is real at one of them only.
    """
    for node in preorder_traversal(expression):
        base = node.base if isinstance(node, Pow) else node.args[0] if isinstance(node, log) else None
        if base is None or base.is_positive:
            continue
        values = [value for value in (_at_probe(base, 3), _at_probe(base, -19)) if value.is_number]
        inverted = isinstance(node, Pow) and node.exp.could_extract_minus_sign()
        if inverted and values and not any(map(is_nonzero, values)):
            raise IllFormed(f"a denominator must not be 0, got {base}")
        if not (isinstance(node, Pow) and node.exp.is_integer) and any(value.is_negative for value in values):
            raise IllFormed(f"a root and a logarithm must be real, got those of {base}")


def _at_probe(expression: Expr, start: int) -> Expr:
    """Value where the free symbols, sorted by name, are |start|, |start + 1|, and so on."""
    symbols = sorted(expression.free_symbols, key=str)
    return expression.subs({symbol: abs(start + place) for place, symbol in enumerate(symbols)})
