"""How the units of a sweep are ordered, and divided among processes."""

import heapq
from dataclasses import dataclass
from typing import Self

from meanmode.sweeps.engine.cost import unit_cost
from meanmode.sweeps.engine.plan import Plan


def largest_first(sweep: Plan) -> list[tuple[int, ...]]:
    """The units of a sweep by descending cost, so that no large one is left for the end."""
    return sorted(sweep.units(), key=lambda unit: -unit_cost(sweep, unit))


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """The share of a sweep that one of `count` processes computes.

    Attributes:
        index: number of the share, from 1 to `count`.
        count: number of shares.

    Raises:
        ValueError: an index out of range.
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise ValueError(f"a shard is i/n with 1 <= i <= n, such as 1/4: got '{self}'")

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The shard given as text, `i/n`.

        Raises:
            ValueError: other text, or an index out of range.
        """
        parts = text.split("/")
        if len(parts) != 2 or not all(part.isascii() and part.isdigit() for part in parts):
            raise ValueError(f"a shard is i/n with 1 <= i <= n, such as 1/4: got {text!r}")
        return cls(index=int(parts[0]), count=int(parts[1]))

    def units(self, sweep: Plan) -> list[tuple[int, ...]]:
        """The units of this share, largest first; the shares are disjoint and complete."""
        found = shares(sweep, self.count)
        return found[self.index - 1] if self.index <= len(found) else []


def shares(sweep: Plan, count: int) -> list[list[tuple[int, ...]]]:
    """Divide the units of a sweep into `count` shares of nearly equal cost; empty shares are left out.

    Each unit in turn, largest first, goes to the share with the lowest cost so far, so two shares differ by
    at most the cost of one unit. The result depends only on the sweep and the count, not on any store.
    """
    units = largest_first(sweep)
    loads = [(0.0, index) for index in range(min(count, len(units)))]
    found: list[list[tuple[int, ...]]] = [[] for _ in loads]
    for unit in units:
        load, index = loads[0]
        heapq.heapreplace(loads, (load + unit_cost(sweep, unit), index))
        found[index].append(unit)
    return found
