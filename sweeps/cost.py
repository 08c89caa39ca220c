"""What a cell costs, estimated from its setting: for the order of runs, the shards and the time left."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from sweeps.plan import Plan
from theory import Setting

DRAW_FLOPS = 150.0
"""Drawing one weight, in floating-point operations that take as long; measured on a CPU core."""

MATRIX_FLOPS = 500.0
"""Forming and measuring one entry of a mixing matrix, likewise."""

BLOCK_FLOPS = 3e7
"""Calling the kernels of one block, likewise; it is what a narrow stack of few tokens costs."""

PROJECTIONS = {"uniform": 2, "state_space": 2, "gated": 5}
"""Square projections of a mixer, if not 4."""

UNCOMPARED = ("uniform", "linear", "state_space")
"""Mixers whose forward pass is linear in the tokens."""


def block_weights(setting: Setting) -> int:
    """Weights of one block: a few D^2 of the mixer and 3 D H of SwiGLU."""
    mixer = PROJECTIONS.get(setting.mixer, 4) * setting.width**2
    decays = setting.heads * setting.width if setting.mixer == "state_space" else 0
    return mixer + decays + 3 * setting.width * setting.ffn_width


def block_products(setting: Setting) -> int:
    """Floating-point operations of the matrix products of one block.

    2 a weight and token; where tokens are compared, 2 T^2 D to do so and as much to mix their values.
    """
    tokens = sum(setting.segments)
    mixing = 0 if setting.mixer in UNCOMPARED else 4 * tokens**2 * setting.width
    return setting.batch * (2 * tokens * block_weights(setting) + mixing)


def setting_cost(setting: Setting, *, backward: bool = False) -> float:
    """Floating-point operations of one simulated stack, or of what takes as long.

    A backward pass multiplies three times as much, and draws every block twice. Weights are drawn once for
    the whole batch; the observables read every entry of the mixing matrices. The constants above make it a
    measure of time: within about a factor of two from width 64 to 1024 and 16 to 256 tokens on a CPU core.
    """
    passes, draws = (3, 2) if backward else (1, 1)
    entries = setting.batch * setting.heads * sum(setting.segments) ** 2
    products = passes * (block_products(setting) + BLOCK_FLOPS)
    return setting.depth * (products + draws * DRAW_FLOPS * block_weights(setting) + MATRIX_FLOPS * entries)


def unit_cost(sweep: Plan, unit: Sequence[int]) -> float:
    """Cost of the cells of one unit: for every seed that of its deepest stack, which holds the others."""
    deepest: dict[int, float] = {}
    for index in unit:
        cell = sweep.cells[index]
        cost = cell.passes * setting_cost(cell.setting, backward=sweep.backward)
        deepest[cell.seed] = max(cost, deepest.get(cell.seed, 0.0))
    return sum(deepest.values())


def largest_first(sweep: Plan) -> list[tuple[int, ...]]:
    """The units of a sweep by falling cost, so that no large one is left for the end."""
    return sorted(sweep.units(), key=lambda unit: -unit_cost(sweep, unit))


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """The share of a sweep that one of `count` processes computes.

    Attributes:
        index: which share, from 1 to `count`.
        count: how many shares there are.

    Raises:
        ValueError: no such share.
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
        """The shard that `i/n` names.

        Raises:
            ValueError: no such share, or no two numbers.
        """
        parts = text.split("/")
        if len(parts) != 2 or not all(part.isascii() and part.isdigit() for part in parts):
            raise ValueError(f"a shard is i/n with 1 <= i <= n, such as 1/4: got {text!r}")
        return cls(index=int(parts[0]), count=int(parts[1]))

    def units(self, sweep: Plan) -> list[tuple[int, ...]]:
        """Its units, largest first; the shares of a sweep are disjoint and together the whole."""
        found = shares(sweep, self.count)
        return found[self.index - 1] if self.index <= len(found) else []


def shares(sweep: Plan, count: int) -> list[list[tuple[int, ...]]]:
    """The units of a sweep in `count` shares of nearly equal cost, largest first; empty ones are left out.

    Each unit in turn, largest first, falls to the share with the least cost so far, so two shares differ by
    at most the cost of one unit. Only the sweep and the count decide, whatever a store holds.
    """
    units = largest_first(sweep)
    loads = [(0.0, index) for index in range(min(count, len(units)))]
    found: list[list[tuple[int, ...]]] = [[] for _ in loads]
    for unit in units:
        load, index = loads[0]
        heapq.heapreplace(loads, (load + unit_cost(sweep, unit), index))
        found[index].append(unit)
    return found
