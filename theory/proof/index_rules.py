"""Which index expressions mean anything: indices in the declared ranges of their bases, each bound once."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sympy import Expr, IndexedBase, KroneckerDelta, Sum, Symbol, expand, nan, oo, zoo
from sympy.tensor.indexed import Indexed


class IllFormed(ValueError):
    """A side of a step that has no meaning for the kernel, so nothing is claimed."""


def same_length(first: Expr, second: Expr) -> bool:
    """Whether two lengths are equal for all sizes."""
    return bool(first == second or expand(first - second) == 0)


def free_index_lengths(expression: Expr) -> dict[Symbol, Expr]:
    """Lengths of the free indices of an index expression, as its entries declare them.

    Raises:
        IllFormed: a base without declared lengths, an index that is no plain symbol, is used twice by one
            entry, is bound twice, is bound and free, counts as a number, or has another length than the
            entry declares; a sum that does not run from 1 to an integer length; a value that is not finite.
    """
    walk = _Walk()
    walk.visit(expression, {})
    both = set(walk.free) & walk.bound
    if both:
        raise IllFormed(f"index {_names(both)} is both bound and free: rename one")
    used = (set(walk.free) | walk.bound | walk.in_deltas) & walk.numbers
    if used:
        raise IllFormed(f"an index may occur in entries only, got {_names(used)} as a number")
    return walk.free


def _names(symbols: set[Symbol]) -> str:
    return ", ".join(sorted(map(str, symbols)))


@dataclass
class _Walk:
    """What a walk through an expression has met."""

    free: dict[Symbol, Expr] = field(default_factory=dict)
    bound: set[Symbol] = field(default_factory=set)
    in_deltas: set[Symbol] = field(default_factory=set)
    numbers: set[Symbol] = field(default_factory=set)

    def visit(self, node: Expr, bound: Mapping[Symbol, Expr]) -> None:
        """Check a node below these bound indices."""
        if node in (nan, oo, -oo, zoo):
            raise IllFormed(f"a side must be finite, got {node}")
        if isinstance(node, Sum):
            self._sum(node, bound)
        elif isinstance(node, Indexed):
            self._entry(node, bound)
        elif isinstance(node, KroneckerDelta):
            for index in node.args:
                if not isinstance(index, Symbol):
                    raise IllFormed(f"a delta relates two indices, got {node}")
                self.in_deltas.add(index)
        elif isinstance(node, Symbol):
            self.numbers.add(node)
        else:
            for argument in node.args:
                self.visit(argument, bound)

    def _sum(self, node: Sum, bound: Mapping[Symbol, Expr]) -> None:
        inner = dict(bound)
        for limits in node.limits:
            if len(limits) != 3 or limits[1] != 1:
                raise IllFormed(f"a sum runs from 1 to a length, got {limits}")
            index, _, length = limits
            if index in inner:
                raise IllFormed(f"index {index} is bound twice in {node}")
            if length.has(Indexed, Sum) or not (length.is_integer and length.is_nonnegative):
                raise IllFormed(f"a length is an integer of at least 0, got {length}")
            inner[index] = length
            self.bound.add(index)
            self.numbers |= length.free_symbols
        self.visit(node.function, inner)

    def _entry(self, node: Indexed, bound: Mapping[Symbol, Expr]) -> None:
        lengths = declared_lengths(node.base)
        if len(lengths) != len(node.indices):
            raise IllFormed(f"{node.base} has {len(lengths)} indices, got {node}")
        if len(set(node.indices)) < len(node.indices):
            raise IllFormed(f"an entry uses an index once, got {node}")
        for index, declared in zip(node.indices, lengths, strict=True):
            if not isinstance(index, Symbol):
                raise IllFormed(f"an index is a plain symbol, got {index} in {node}")
            length = bound[index] if index in bound else self.free.setdefault(index, declared)
            if not same_length(length, declared):
                raise IllFormed(f"index {index} of {node} runs to {length}, its base has {declared}")
            self.numbers |= declared.free_symbols


def declared_lengths(base: IndexedBase) -> tuple[Expr, ...]:
    """The length of each index of a base.

    Raises:
        IllFormed: the base declares none.
    """
    if base.shape is None:
        raise IllFormed(f"{base} does not declare the lengths of its indices")
    return tuple(base.shape)
