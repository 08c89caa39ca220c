"""Random numbers, arrays and matrices that satisfy the facts of a step, at one choice of sizes, to 80 digits.

Part of the second checker: it knows a step as data and none of the rules by which the kernel decides it.
"""

from collections.abc import Iterator, Mapping
from itertools import product
from random import Random
from typing import Any

import mpmath
import numpy as np
from numpy.typing import NDArray
from sympy import Expr, IndexedBase, Integer, KroneckerDelta, Sum, Symbol
from sympy.tensor.indexed import Indexed

from meanmode.theory.proof.letters import Letter
from meanmode.theory.proof.step import Step

DIGITS = 80
NEAR = mpmath.mpf(10) ** -60
PASSES = 60
Matrix = NDArray[Any]


class Undefined(ValueError):
    """A step that has no value at an instance, such as an entry outside its array."""


class Instance:
    """Values of everything that occurs in a step.

    Args:
        step: whose symbols, arrays and matrices get values; the point of a counterexample takes precedence.
        random: source of the numbers.
        lengths: sizes to choose from.

    Attributes:
        numbers: symbol -> number, an integer for a size.
        indices: free indices, each with its length.
        arrays: base -> index tuple, from 1 -> entry.
    """

    def __init__(self, step: Step, random: Random, lengths: tuple[int, ...]) -> None:
        self.step, self.random = step, random
        self.sides = [step.left, step.right, step.witness]
        facts = step.facts
        self.given = [*facts.unit.values(), *facts.rows.values(), *facts.products.values()]
        self.bases = {base for side in self.sides for base in side.atoms(IndexedBase)}
        self.letters = {letter for side in [*self.sides, *self.given] for letter in side.atoms(Letter)}
        self.letters |= {letter for pair in facts.products for letter in pair}
        self.sizes = self._sizes()
        self.numbers: dict[Symbol, Any] = {}
        self.arrays: dict[IndexedBase, dict[tuple[int, ...], Any]] = {}
        self.matrices: dict[Letter, Matrix] = {}
        for _ in range(1000):
            self._draw_numbers(lengths)
            if all(length >= 1 for length in self._all_lengths()):
                break
        self.numbers |= {key: _number(value) for key, value in step.at.items() if isinstance(key, Symbol)}
        for base in sorted(self.bases, key=str):
            self._draw_array(base)
        self._draw_matrices()
        self._check_facts()

    def _sizes(self) -> set[Symbol]:
        """Symbols of lengths, and integers that occur in the facts about matrices."""
        lengths = [length for base in self.bases for length in base.shape or ()]
        lengths += [length for letter in self.letters for length in letter.shape]
        lengths += [limits[2] for side in self.sides for node in side.atoms(Sum) for limits in node.limits]
        found = {symbol for length in lengths for symbol in length.free_symbols}
        facts = {symbol for value in self.step.facts.products.values() for symbol in value.free_symbols}
        return found | {symbol for symbol in facts if symbol.is_integer}

    def _all_lengths(self) -> Iterator[Any]:
        for base in self.bases:
            yield from (self.scalar(length) for length in base.shape or ())
        for value in self.step.facts.products.values():
            if value != 0 and not value.atoms(Letter):
                yield self.scalar(value)

    def scalar(self, value: Expr) -> Any:
        """Value of an expression in the numbers drawn so far, without entries or matrices."""
        found = value.subs({key: number for key, number in self.numbers.items() if key in value.free_symbols})
        return _number(found)

    def _draw_numbers(self, lengths: tuple[int, ...]) -> None:
        used = {symbol for side in [*self.sides, *self.given] for symbol in side.atoms(Symbol)} | self.sizes
        labels = {base.label for base in self.bases}
        # different sizes as far as there are, so that one length cannot pass for another
        choices: list[int] = []
        for symbol in sorted(used - labels - self.letters, key=str):
            if symbol in self.sizes:
                choices = choices or self.random.sample(lengths, len(lengths))
                self.numbers[symbol] = choices.pop()
            elif symbol.is_integer:
                self.numbers[symbol] = self.random.randint(2 if symbol.is_positive else -3, 6)
            else:
                self.numbers[symbol] = self._uniform(bool(symbol.is_nonnegative))

    def _uniform(self, positive: bool) -> Any:
        share = mpmath.mpf(self.random.getrandbits(300)) / 2**300
        return share * mpmath.mpf("2.2") + mpmath.mpf("0.3") if positive else 3 * share - mpmath.mpf("1.5")

    def _draw_array(self, base: IndexedBase) -> None:
        if base.shape is None:
            raise Undefined(f"{base} declares no lengths")
        lengths = [int(self.scalar(length)) for length in base.shape]
        positions = list(product(*(range(1, length + 1) for length in lengths)))
        if base in self.step.at:
            entries = np.array(self.step.at[base], dtype=object)
            self.arrays[base] = {at: _number(entries[tuple(i - 1 for i in at)]) for at in positions}
            return
        drawn = {at: self._uniform(bool(base.is_nonnegative)) for at in positions}
        for facts, power in ((self.step.facts.unit, 2), (self.step.facts.rows, 1)):
            if base in facts:
                totals: dict[tuple[int, ...], Any] = {}
                if power == 1:
                    drawn = {at: abs(entry) for at, entry in drawn.items()}
                for at, entry in drawn.items():
                    totals[at[:-1]] = totals.get(at[:-1], 0) + entry**power
                wanted = self.scalar(facts[base])
                drawn = {
                    at: entry * mpmath.root(wanted / totals[at[:-1]], power) for at, entry in drawn.items()
                }
        self.arrays[base] = drawn

    def matrix(self, letter: Letter) -> Matrix:
        """The matrix of a letter; a name that ends in ^T is a transpose."""
        base, transposed = _base(letter)
        return self.matrices[base].T if transposed else self.matrices[base]

    def _set(self, letter: Letter, matrix: Matrix) -> None:
        base, transposed = _base(letter)
        self.matrices[base] = matrix.T if transposed else matrix

    def _draw_matrices(self) -> None:
        for base in sorted({_base(letter)[0] for letter in self.letters}, key=str):
            rows, columns = (int(self.scalar(length)) for length in base.shape)
            entries = [[self._uniform(False) for _ in range(columns)] for _ in range(rows)]
            self.matrices[base] = np.array(entries, dtype=object)
        for _ in range(PASSES):
            if max((abs(gap).max() for _, gap in self._gaps()), default=0) < NEAR:
                break
            for pair, _ in list(self._gaps()):
                self._approach(pair)

    def _gaps(self) -> Iterator[tuple[tuple[Letter, Letter], Matrix]]:
        """Pairs of letters, with what their product lacks."""
        for (first, second), value in self.step.facts.products.items():
            found = self.matrix(first) @ self.matrix(second)
            yield (first, second), self._promoted(value, found.shape) - found

    def _promoted(self, value: Expr, shape: tuple[int, ...]) -> Matrix:
        """A stated product: a number, or a multiple of one letter."""
        letters = [factor for factor in value.args or (value,) if isinstance(factor, Letter)]
        scalar = self.scalar(value.subs(dict.fromkeys(letters, Integer(1))))
        return scalar * self.matrix(letters[0]) if letters else np.full(shape, scalar, dtype=object)

    def _approach(self, pair: tuple[Letter, Letter]) -> None:
        """Change one of two letters by as little as makes their product what is stated."""
        first, second = pair
        left, right = self.matrix(first), self.matrix(second)
        wanted = self._promoted(self.step.facts.products[pair], (len(left), right.shape[1]))
        if _base(first)[0] == _base(second)[0]:
            self._set(second, right * mpmath.sqrt(wanted[0, 0] / (left @ right)[0, 0]))
        elif self._is_normed(first) and len(left) == 1:
            self._set(second, right + left.T @ (wanted - left @ right) / (left @ left.T)[0, 0])
        else:
            self._set(first, left + (wanted - left @ right) @ right.T / (right.T @ right)[0, 0])

    def _is_normed(self, letter: Letter) -> bool:
        pairs = self.step.facts.products
        return any(_base(a)[0] == _base(b)[0] == _base(letter)[0] for a, b in pairs)

    def _check_facts(self) -> None:
        gaps = [abs(gap).max() for _, gap in self._gaps()]
        for facts, power in ((self.step.facts.unit, 2), (self.step.facts.rows, 1)):
            for base in facts.keys() & self.bases:
                totals: dict[tuple[int, ...], Any] = {}
                for at, entry in self.arrays[base].items():
                    totals[at[:-1]] = totals.get(at[:-1], 0) + entry**power
                gaps += [abs(total - self.scalar(facts[base])) for total in totals.values()]
        if max(gaps, default=0) > NEAR:
            raise Undefined(f"no instance satisfies the facts of {self.step.name!r}")

    def assignments(self, most: int) -> Iterator[Mapping[Symbol, int]]:
        """Values of the free indices: all of them, or this many at random."""
        lengths: dict[Symbol, int] = {}
        for side in self.sides:
            for entry in side.atoms(Indexed):
                for index, length in zip(entry.indices, entry.base.shape or (), strict=False):
                    lengths[index] = min(int(self.scalar(length)), lengths.get(index, 10**6))
            for delta in side.atoms(KroneckerDelta):
                for index in delta.args:
                    lengths.setdefault(index, 2)
        free = {symbol for side in self.sides for symbol in side.free_symbols}
        names = sorted((index for index in lengths if index in free and index not in self.step.at), key=str)
        choices = list(product(*(range(1, lengths[name] + 1) for name in names)))
        for choice in choices if len(choices) <= most else self.random.sample(choices, most):
            yield dict(zip(names, choice, strict=True))


def _base(letter: Letter) -> tuple[Letter, bool]:
    """The letter that is stored, and whether this one is its transpose."""
    if letter.name.endswith("^T"):
        return Letter(letter.name.removesuffix("^T"), *letter.shape[::-1]), True
    return letter, False


def _number(value: Any) -> Any:
    """An exact number as an integer or an mpmath number."""
    if isinstance(value, int | mpmath.mpf):
        return value
    if value.is_Integer:
        return int(value)
    return mpmath.mpf(value.p) / value.q if value.is_Rational else mpmath.mpf(value.evalf(DIGITS + 20))
