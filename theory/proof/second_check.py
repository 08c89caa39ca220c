"""The second checker: evaluates both sides of a step on random instances of several sizes and compares them.

It shares no rule with the kernel: sums are added up term by term, words multiplied as matrices, derivatives
differenced, limits approached, all with mpmath, and the two sides must agree to 50 digits.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from random import Random
from typing import Any

import mpmath
import numpy as np
from numpy.typing import NDArray
from sympy import Abs, Add, Derivative, Expr, KroneckerDelta, Limit, Max, Mul, Pow, Subs, Sum, Symbol, oo
from sympy import exp as Exponential
from sympy import log as Logarithm
from sympy.core.function import AppliedUndef
from sympy.tensor.indexed import Indexed

from meanmode.theory.proof.instance import DIGITS, Instance, Undefined
from meanmode.theory.proof.letters import Letter
from meanmode.theory.proof.step import Relation, Step

AGREE = mpmath.mpf(10) ** -50
DIFFER = mpmath.mpf(10) ** -30
LENGTHS = ((2, 3), (3, 4), (2, 5))
"""Sizes to choose from, one round each."""

ASSIGNMENTS = 4
CLOSE, CLOSE_DIGITS = 300, 1000
"""A limit is taken 10^-CLOSE from its point, with CLOSE_DIGITS."""

PLAIN = {Exponential: mpmath.exp, Logarithm: mpmath.log, Abs: abs, Max: max}


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Whether the second checker agrees with a step, on how many instances, and if not, why."""

    agrees: bool
    instances: int
    reason: str = ""


def compare(step: Step, lengths: Sequence[tuple[int, ...]] = LENGTHS) -> Comparison:
    """Compare both sides of a step on random instances; a citation has none and is not compared."""
    if step.relation is Relation.THEOREM:
        return Comparison(agrees=True, instances=0)
    random = Random(zlib.crc32(step.name.encode()))
    free: dict[Expr, tuple[Symbol, ...]] = {}
    instances = 0
    with mpmath.workdps(DIGITS):
        try:
            for choice in lengths[:1] if step.relation is Relation.UNEQUAL else lengths:
                instance = Instance(step, random, choice)
                for indices in instance.assignments(ASSIGNMENTS):
                    instances += 1
                    reason = _differs(step, _Evaluation(instance, free), indices)
                    if reason:
                        return Comparison(agrees=False, instances=instances, reason=reason)
        except (ValueError, ArithmeticError, TypeError, KeyError) as undefined:
            return Comparison(agrees=False, instances=instances, reason=f"no value: {undefined}")
    return Comparison(agrees=instances > 0, instances=instances)


def _differs(step: Step, evaluation: "_Evaluation", indices: Mapping[Symbol, Any]) -> str:
    """Why the sides of a step do not relate as claimed at one instance; empty if they do."""
    left, right, witness = (evaluation.value(side, indices) for side in (step.left, step.right, step.witness))
    left, right, witness = _alike(left, right, witness)
    size = max(1, _largest(left), _largest(right))
    if step.relation is Relation.UNEQUAL:
        return "" if _largest(left - right) > DIFFER else "the sides are equal"
    gap = _largest(left - right - witness) / size
    if not gap < AGREE:
        return f"the sides differ by {mpmath.nstr(gap, 5)}"
    if step.relation is Relation.AT_LEAST and np.min(left - right) < -AGREE * size:
        return f"the left side is smaller, by {mpmath.nstr(np.min(right - left), 5)}"
    return ""


def _largest(value: Any) -> Any:
    return np.max(np.abs(value))


def _alike(*values: Any) -> list[Any]:
    """Numbers as multiples of the identity where other values are matrices."""
    shapes = {value.shape for value in values if isinstance(value, np.ndarray)}
    if not shapes:
        return list(values)
    if len(shapes) > 1:
        raise Undefined(f"matrices of shapes {shapes} are added")
    (shape,) = shapes
    if any(not isinstance(value, np.ndarray) and value != 0 for value in values) and shape[0] != shape[1]:
        raise Undefined(f"a number is added to a matrix of shape {shape}")
    unit: NDArray[Any] = np.eye(*shape).astype(int)
    return [value if isinstance(value, np.ndarray) else value * unit for value in values]


class _Evaluation:
    """Values of expressions at one instance, remembered by what they depend on.

    Args:
        instance: the values of symbols, arrays and matrices.
        free: free symbols of expressions, filled as they are met.
    """

    def __init__(self, instance: Instance, free: dict[Expr, tuple[Symbol, ...]]) -> None:
        self.instance, self.free = instance, free
        self.known: dict[tuple[Any, ...], Any] = {}

    def value(self, node: Expr, names: Mapping[Symbol, Any]) -> Any:
        """Value of a node where indices and local variables have these values."""
        if isinstance(node, Letter):
            return self.instance.matrix(node)
        if isinstance(node, Symbol):
            return names[node] if node in names else self.instance.numbers[node]
        if node.is_Integer:
            return int(node)
        if node.is_Rational:
            return mpmath.mpf(node.p) / node.q
        if isinstance(node, Indexed):
            at = tuple(int(self.value(index, names)) for index in node.indices)
            return self.instance.arrays[node.base][at]
        if node not in self.free:
            self.free[node] = tuple(node.free_symbols)
        local = tuple(names.get(name) for name in self.free[node])
        key = (node, local, mpmath.mp.prec)
        if key not in self.known:
            self.known[key] = self._composed(node, names)
        return self.known[key]

    def _composed(self, node: Expr, names: Mapping[Symbol, Any]) -> Any:
        if isinstance(node, Sum):
            return self._sum(node, names)
        if isinstance(node, Derivative):
            return self._derivative(node, names)
        if isinstance(node, Limit):
            return self._limit(node, names)
        if isinstance(node, Subs):
            points = [self.value(point, names) for point in node.point]
            return self.value(node.expr, {**names, **dict(zip(node.variables, points, strict=True))})
        values = [self.value(argument, names) for argument in node.args]
        if isinstance(node, Add):
            return sum(_alike(*values)[1:], start=_alike(*values)[0])
        if isinstance(node, Mul):
            return _product(values)
        if isinstance(node, Pow):
            return _power(*values)
        if isinstance(node, KroneckerDelta):
            return int(values[0] == values[1])
        if isinstance(node, AppliedUndef):
            return _some_function(node.func.__name__, values[0])
        for kind, function in PLAIN.items():
            if isinstance(node, kind):
                return function(*values)
        if not node.args:
            return mpmath.mpf(node.evalf(DIGITS + 20))
        raise Undefined(f"no value for {type(node).__name__}")

    def _sum(self, node: Sum, names: Mapping[Symbol, Any]) -> Any:
        inner, total = dict(names), mpmath.mpf(0)
        # the last limits are the outermost, but lengths do not depend on indices
        ranges = [
            range(int(self.value(low, names)), int(self.value(high, names)) + 1)
            for _, low, high in node.limits
        ]
        for choice in product(*ranges):
            inner.update(zip((limits[0] for limits in node.limits), choice, strict=True))
            total += self.value(node.function, inner)
        return total

    def _derivative(self, node: Derivative, names: Mapping[Symbol, Any]) -> Any:
        ((variable, order),) = node.variable_count
        return mpmath.diff(
            lambda moved: self.value(node.expr, {**names, variable: moved}),
            self.value(variable, names),
            int(order),
        )

    def _limit(self, node: Limit, names: Mapping[Symbol, Any]) -> Any:
        body, variable, point, direction = node.args
        with mpmath.workdps(CLOSE_DIGITS):
            near = mpmath.mpf(10) ** -CLOSE
            if point == oo:
                at = 1 / near
            else:
                at = self.value(point, names) + (near if str(direction) == "+" else -near)
            return self.value(body, {**names, variable: at})


def _product(values: Sequence[Any]) -> Any:
    total = values[0]
    for value in values[1:]:
        both = isinstance(total, np.ndarray) and isinstance(value, np.ndarray)
        total = total @ value if both else total * value
    return total


def _power(base: Any, exponent: Any) -> Any:
    if isinstance(base, np.ndarray):
        return _product([base] * int(exponent))
    if isinstance(exponent, int):
        return mpmath.mpf(base) ** exponent if exponent < 0 else base**exponent
    found = mpmath.power(base, exponent)
    if isinstance(found, mpmath.mpc):
        raise Undefined(f"{base} to the power {exponent} is not real")
    return found


def _some_function(name: str, argument: Any) -> Any:
    """One positive smooth function per name, in place of an unspecified one."""
    random = Random(zlib.crc32(name.encode()))
    first, second = (mpmath.mpf(random.getrandbits(200)) / 2**200 for _ in range(2))
    return mpmath.exp(first * argument + second * mpmath.sin(argument))
