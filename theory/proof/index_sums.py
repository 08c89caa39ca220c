"""Index sums: a normal form for sums over tokens and features of unspecified, symbolic length.

An expression is built from sympy `Sum`s over entries such as y[t, b]. Its normal form is a linear
combination of contractions whose bound indices are renamed to the smallest spelling, so two expressions with
the same normal form are equal for all sizes. The only rules are those of finite sums (linearity, renaming,
sum_t 1 = T, Kronecker's delta), the unit rule sum_b u[t, b]^2 = 1 for entries declared as unit vectors, and
the row rule sum_j a[i, j] = 1 for matrices declared as row-stochastic.
"""

from collections import Counter
from collections.abc import Iterable
from functools import cache
from itertools import permutations, product

from sympy import (
    Add,
    Dummy,
    Expr,
    IndexedBase,
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

Term = tuple[tuple[Expr, ...], tuple[tuple[Symbol, Expr], ...]]
"""Factors (entries and deltas), and the bound indices, each with its length."""


def over(index: Symbol, length: Expr) -> tuple[Symbol, int, Expr]:
    """The summation range 1..length of an index."""
    return (index, 1, length)


def off_diagonal(first: Symbol, second: Symbol) -> Expr:
    """Pair weight 1 - delta, which keeps only distinct indices."""
    return 1 - KroneckerDelta(first, second)


class IndexSums:
    """Normal form of index sums, given the unit vectors and the row-stochastic matrices among their entries.

    Args:
        unit: base -> value of sum_b u[t, b]^2, where the last index is the feature (1 for unit vectors).
        rows: base -> value of sum_j a[i, j], where the last index is the column (1 if row-stochastic).
    """

    def __init__(
        self, unit: dict[IndexedBase, Expr] | None = None, rows: dict[IndexedBase, Expr] | None = None
    ) -> None:
        self.unit = unit or {}
        self.rows = rows or {}

    def normal_form(self, expression: Expr) -> Expr:
        """Return the canonical linear combination of contractions; it is exactly 0 for an identity."""
        total: Counter[Term] = Counter()
        for term, coefficient in self._terms(expression):
            canonical, factor = self._canonical(term)
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
        assert not node.has(Indexed, Sum), f"index sums support sums, products and powers only, got {node}"
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
        for index, low, high in node.limits:
            assert low == 1, "sums run from 1"
            fresh = Dummy("i", integer=True)
            renamed = renamed.subs(index, fresh)
            bound.append((fresh, high))
        terms = list(self._terms(renamed))
        for index, _ in bound:
            assert not any(high.has(index) for _, high in bound), "a sum's length must not contain an index"
            assert not any(coefficient.has(index) for _, coefficient in terms), (
                "an index may occur in entries only"
            )
        return [((entries, (*inner, *bound)), coefficient) for (entries, inner), coefficient in terms]

    def _canonical(self, term: Term) -> tuple[Term, Expr]:
        entries, bound, factor = list(term[0]), dict(term[1]), Integer(1)
        changed = True
        while changed:
            changed = False
            for rule in (self._apply_delta, self._apply_unit, self._apply_row, self._apply_length):
                outcome = rule(entries, bound)
                if outcome is not None:
                    factor, changed = factor * outcome, True
        return self._least_spelling(entries, bound), factor

    @staticmethod
    def _apply_delta(entries: list[Expr], bound: dict[Symbol, Expr]) -> Expr | None:
        for delta in (entry for entry in entries if isinstance(entry, KroneckerDelta)):
            for index, other in (delta.args, delta.args[::-1]):
                if index in bound and bound.get(other, bound[index]) == bound[index]:
                    entries.remove(delta)
                    entries[:] = [entry.subs(index, other) for entry in entries]
                    del bound[index]
                    return Integer(1)
        return None

    def _apply_unit(self, entries: list[Expr], bound: dict[Symbol, Expr]) -> Expr | None:
        counts = Counter(entries)
        for entry, count in counts.items():
            if count < 2 or not isinstance(entry, Indexed) or entry.base not in self.unit:
                continue
            feature = entry.indices[-1]
            if feature in bound and sum(other.has(feature) for other in entries) == 2:
                entries.remove(entry)
                entries.remove(entry)
                del bound[feature]
                return self.unit[entry.base]
        return None

    def _apply_row(self, entries: list[Expr], bound: dict[Symbol, Expr]) -> Expr | None:
        for entry in entries:
            if not isinstance(entry, Indexed) or entry.base not in self.rows:
                continue
            column = entry.indices[-1]
            if column in bound and sum(other.has(column) for other in entries) == 1:
                entries.remove(entry)
                del bound[column]
                return self.rows[entry.base]
        return None

    @staticmethod
    def _apply_length(entries: list[Expr], bound: dict[Symbol, Expr]) -> Expr | None:
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


def is_nonnegative(expression: Expr) -> bool:
    """Whether the expression, as written, is a sum of products of squares and nonnegative entries."""
    if isinstance(expression, Sum):
        ranges = all(high.is_nonnegative for _, _, high in expression.limits)
        return ranges and is_nonnegative(expression.function)
    if isinstance(expression, Add) and _is_pair_weight(expression):
        return True
    if isinstance(expression, Add | Mul):
        return all(is_nonnegative(argument) for argument in expression.args)
    if isinstance(expression, Pow) and expression.exp.is_Integer and expression.exp % 2 == 0:
        return _is_real(expression.base)
    return bool(expression.is_nonnegative)


def _is_real(expression: Expr) -> bool:
    """Whether every number, entry and symbol of a sum of products is real."""
    if isinstance(expression, Sum):
        return _is_real(expression.function)
    if isinstance(expression, Add | Mul):
        return all(_is_real(argument) for argument in expression.args)
    if isinstance(expression, Pow) and expression.exp.is_Integer:
        return _is_real(expression.base)
    return isinstance(expression, KroneckerDelta) or bool(expression.is_real)


def _is_pair_weight(expression: Add) -> bool:
    return any(expression == off_diagonal(*delta.args) for delta in expression.atoms(KroneckerDelta))
