"""Index sums: a normal form for sums over tokens and features of unspecified, symbolic length.

An expression is built from sympy `Sum`s over entries such as y[t, b]. Its normal form is a linear
combination of contractions whose bound indices are renamed to the smallest spelling, so two expressions with
the same normal form are equal for all sizes. The only rules are those of finite sums (linearity, renaming,
sum_t 1 = T, Kronecker's delta), the unit rule sum_b u[t, b]^2 = 1 for entries declared as unit vectors, and
the row rule sum_j a[i, j] = 1 for matrices declared as row-stochastic. What `index_rules` refuses has no
normal form.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import permutations, product

from sympy import (
    Add,
    Dummy,
    Expr,
    Integer,
    KroneckerDelta,
    Mul,
    Pow,
    Sum,
    Symbol,
    cancel,
    default_sort_key,
)
from sympy.tensor.indexed import Indexed

from meanmode.theory.proof.index_rules import IllFormed, free_index_lengths, same_length
from meanmode.theory.proof.step import Facts

Term = tuple[tuple[Expr, ...], tuple[tuple[Symbol, Expr], ...]]
"""Factors (entries and deltas), and the bound indices, each with its length."""


def over(index: Symbol, length: Expr) -> tuple[Symbol, int, Expr]:
    """The summation range 1..length of an index."""
    return (index, 1, length)


def off_diagonal(first: Symbol, second: Symbol) -> Expr:
    """Pair weight 1 - delta, which keeps only distinct indices."""
    return 1 - KroneckerDelta(first, second)


class IndexSums:
    """Normal form of index sums under the facts about their entries."""

    def __init__(self, facts: Facts) -> None:
        self.unit, self.rows = facts.unit, facts.rows

    def normal_form(self, expression: Expr) -> Expr:
        """Return the canonical linear combination of contractions; it is exactly 0 for an identity.

        Raises:
            IllFormed: the expression means nothing (`free_index_lengths`), or is more than sums and products.
        """
        free = free_index_lengths(expression)
        total: Counter[Term] = Counter()
        for term, coefficient in self._terms(expression):
            canonical, factor = self._canonical(term, free)
            total[canonical] = cancel(total[canonical] + coefficient * factor)
        return Add(*(coefficient * self._spell(term) for term, coefficient in total.items()))

    def _terms(self, node: Expr) -> Iterable[tuple[Term, Expr]]:
        if isinstance(node, Add):
            return [pair for argument in node.args for pair in self._terms(argument)]
        if isinstance(node, Mul):
            return self._multiplied(node.args)
        if isinstance(node, Pow) and node.exp.is_Integer and node.exp > 0:
            return self._multiplied([node.base] * int(node.exp))
        if isinstance(node, Sum):
            return self._bound(node)
        if isinstance(node, Indexed | KroneckerDelta):
            return [(((node,), ()), Integer(1))]
        if node.has(Indexed, Sum, KroneckerDelta):
            raise IllFormed(f"index sums support sums, products and powers only, got {node}")
        return [(((), ()), node)]

    def _multiplied(self, factors: Iterable[Expr]) -> list[tuple[Term, Expr]]:
        expanded = [list(self._terms(factor)) for factor in factors]
        result = []
        for choice in product(*expanded):
            entries = tuple(entry for (part, _), _ in choice for entry in part)
            bound = tuple(index for (_, part), _ in choice for index in part)
            result.append(((entries, bound), Mul(*(coefficient for _, coefficient in choice))))
        return result

    def _bound(self, node: Sum) -> list[tuple[Term, Expr]]:
        renamed, bound = node.function, []
        for index, _, high in node.limits:
            fresh = Dummy("i", integer=True)
            renamed = renamed.xreplace({index: fresh})
            bound.append((fresh, high))
        return [
            ((entries, (*inner, *bound)), coefficient)
            for (entries, inner), coefficient in self._terms(renamed)
        ]

    def _canonical(self, term: Term, free: Mapping[Symbol, Expr]) -> tuple[Term, Expr]:
        entries, bound, factor = list(term[0]), dict(term[1]), Integer(1)
        changed = True
        while changed:
            changed = False
            for rule in (self._apply_delta, self._apply_unit, self._apply_row, self._apply_length):
                outcome = rule(entries, bound, free)
                if outcome is not None:
                    factor, changed = factor * outcome, True
        return self._least_spelling(entries, bound), factor

    @staticmethod
    def _apply_delta(
        entries: list[Expr], bound: dict[Symbol, Expr], free: Mapping[Symbol, Expr]
    ) -> Expr | None:
        for delta in (entry for entry in entries if isinstance(entry, KroneckerDelta)):
            for index, other in (delta.args, delta.args[::-1]):
                reach = bound.get(other, free.get(other))
                if index in bound and reach is not None and same_length(reach, bound[index]):
                    entries.remove(delta)
                    moved = (entry.xreplace({index: other}) for entry in entries)
                    entries[:] = [entry for entry in moved if entry != 1]
                    del bound[index]
                    return Integer(1)
        return None

    def _apply_unit(
        self, entries: list[Expr], bound: dict[Symbol, Expr], free: Mapping[Symbol, Expr]
    ) -> Expr | None:
        counts = Counter(entries)
        for entry, count in counts.items():
            if count < 2 or not isinstance(entry, Indexed) or entry.base not in self.unit:
                continue
            feature = entry.indices[-1]
            used = sum(other.has(feature) for other in entries)
            if feature in bound and used == 2 and entry.indices.count(feature) == 1:
                entries.remove(entry)
                entries.remove(entry)
                del bound[feature]
                return self.unit[entry.base]
        return None

    def _apply_row(
        self, entries: list[Expr], bound: dict[Symbol, Expr], free: Mapping[Symbol, Expr]
    ) -> Expr | None:
        for entry in entries:
            if not isinstance(entry, Indexed) or entry.base not in self.rows:
                continue
            column = entry.indices[-1]
            used = sum(other.has(column) for other in entries)
            if column in bound and used == 1 and entry.indices.count(column) == 1:
                entries.remove(entry)
                del bound[column]
                return self.rows[entry.base]
        return None

    @staticmethod
    def _apply_length(
        entries: list[Expr], bound: dict[Symbol, Expr], free: Mapping[Symbol, Expr]
    ) -> Expr | None:
        for index, length in bound.items():
            if not any(entry.has(index) for entry in entries):
                del bound[index]
                return length
        return None

    @staticmethod
    def _least_spelling(entries: list[Expr], bound: dict[Symbol, Expr]) -> Term:
        lengths = sorted(set(bound.values()), key=default_sort_key)
        groups = [[index for index in bound if bound[index] == length] for length in lengths]
        names = [
            [_bound_name(length, number) for number in range(len(group))]
            for length, group in zip(lengths, groups, strict=True)
        ]
        spellings = []
        for orders in product(*(permutations(group) for group in groups)):
            renaming = {
                old: new
                for order, name in zip(orders, names, strict=True)
                for old, new in zip(order, name, strict=True)
            }
            spelled = tuple(sorted((entry.xreplace(renaming) for entry in entries), key=str))
            spellings.append(spelled)
        ranges = tuple((name, length) for length, group in zip(lengths, names, strict=True) for name in group)
        return min(spellings, key=str), ranges

    @staticmethod
    def _spell(term: Term) -> Expr:
        entries, bound = term
        body = Mul(*entries)
        return Sum(body, *(over(index, length) for index, length in bound)) if bound else body


@cache
def _bound_name(length: Expr, number: int) -> Symbol:
    """Canonical name of a bound index: a dummy, so that it cannot clash with a free symbol."""
    return Dummy(f"{length}_{number}", integer=True)
