"""Exact values of index expressions at one point, for counterexamples."""

from collections.abc import Mapping
from typing import Any

from sympy import Expr, IndexedBase, Integer, KroneckerDelta, Sum, Symbol, sympify
from sympy.tensor.indexed import Indexed

from meanmode.theory.proof.index_rules import IllFormed, declared_lengths
from meanmode.theory.proof.step import Facts

SIGNS = ("integer", "real", "nonnegative", "positive")


def value_at(expression: Expr, at: Mapping[Any, Any], facts: Facts) -> Expr:
    """Value of an index expression, term by term, where symbols and arrays have the given values.

    Args:
        expression: sums over entries, and functions of them.
        at: symbol -> number, base -> nested tuples of numbers.
        facts: what is given of the arrays; the point must satisfy it.

    Raises:
        IllFormed: a value that contradicts a declared sign, length or fact, or a name without a value.
    """
    point = _Point({key: sympify(value) for key, value in at.items()})
    for key, value in point.values.items():
        point.check(key, value)
    for products, power in ((facts.unit, 2), (facts.rows, 1)):
        for base, value in products.items():
            if base in point.values:
                point.check_rows(base, power, value)
    return point.value(expression, {})


class _Point:
    def __init__(self, values: Mapping[Any, Any]) -> None:
        self.values = values

    def check(self, key: Any, value: Any) -> None:
        """Whether a value has the declared signs and lengths."""
        lengths = declared_lengths(key) if isinstance(key, IndexedBase) else ()
        for entry in _entries(value, [self.value(length, {}) for length in lengths]):
            if not entry.is_number or entry.is_finite is False:
                raise IllFormed(f"{key} is a finite number at a point, got {entry}")
            for sign in SIGNS:
                if getattr(key, f"is_{sign}") and not getattr(entry, f"is_{sign}"):
                    raise IllFormed(f"{key} is {sign}, got {entry}")

    def check_rows(self, base: IndexedBase, power: int, value: Expr) -> None:
        """Whether every row of an array sums to what is given."""
        lengths = [self.value(length, {}) for length in declared_lengths(base)]
        rows = [self.values[base]]
        for _ in lengths[1:]:
            rows = [row for rows_ in rows for row in rows_]
        for row in rows:
            if sum(entry**power for entry in row) != self.value(value, {}):
                raise IllFormed(f"a row of {base} does not sum to {value}, got {row}")

    def value(self, node: Expr, indices: Mapping[Symbol, int]) -> Expr:
        """Value of a node below these bound indices."""
        if isinstance(node, Sum):
            return self._sum(node.function, list(node.limits), indices)
        if isinstance(node, Indexed):
            entry = self.values.get(node.base)
            if entry is None:
                raise IllFormed(f"{node.base} has no value at the point")
            for index in node.indices:
                position = int(self.value(index, indices))
                if not 1 <= position <= len(entry):
                    raise IllFormed(f"{node} has no entry {position}")
                entry = entry[position - 1]
            return entry
        if isinstance(node, Symbol):
            found = indices.get(node, self.values.get(node))
            if found is None:
                raise IllFormed(f"{node} has no value at the point")
            return sympify(found)
        if not node.args:
            return node
        arguments = [self.value(argument, indices) for argument in node.args]
        return KroneckerDelta(*arguments) if isinstance(node, KroneckerDelta) else node.func(*arguments)

    def _sum(self, body: Expr, limits: list[Any], indices: Mapping[Symbol, int]) -> Expr:
        if not limits:
            return self.value(body, indices)
        index, _, high = limits[-1]
        length = int(self.value(high, indices))
        total: Expr = Integer(0)
        for position in range(1, length + 1):
            total += self._sum(body, limits[:-1], {**indices, index: position})
        return total


def _entries(value: Any, lengths: list[Expr]) -> list[Expr]:
    """All numbers of nested tuples, whose lengths are checked."""
    if not lengths:
        return [value]
    if len(value) != lengths[0]:
        raise IllFormed(f"{lengths[0]} entries are declared, got {len(value)}")
    return [entry for part in value for entry in _entries(part, lengths[1:])]
