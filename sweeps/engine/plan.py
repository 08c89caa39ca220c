"""`Plan`: the interface of a question, whether simulated stacks or training runs answer it."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import ArrayLike

from meanmode.sim.store.files import Variable
from meanmode.theory.setting import Setting


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One simulated stack: a setting and a seed."""

    setting: Setting
    seed: int

    @property
    def passes(self) -> int:
        """A stack is passed through once."""
        return 1

    def key(self) -> str:
        """Hash of the configuration: cells with equal keys are the same run."""
        return digest({**dataclasses.asdict(self.setting), "seed": self.seed})


def digest(configuration: Mapping[str, Any]) -> str:
    """Short hash of a JSON-serialisable configuration."""
    return hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).hexdigest()[:16]


MOST_CELLS = 1_000_000
"""Cells that a plan may have; each takes a chunk of every variable, and a place in memory."""

Measured = list[tuple[dict[str, Any], int]]
"""Observables and status of every cell of a unit."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What the store of a plan holds besides its coordinates.

    Attributes:
        sizes: dimension -> its coordinate values.
        variables: name -> what is measured.
        forecasts: name -> a value for every cell and its definition; written before any cell is computed.
        witness: a variable whose first value is finite in every finished cell, so that lost data show.
    """

    sizes: Mapping[str, Sequence[Any]]
    variables: Mapping[str, Variable]
    forecasts: Mapping[str, tuple[ArrayLike, Variable]]
    witness: str


class PlannedCell(Protocol):
    """One run.

    Attributes:
        setting: setting of the stack, by which its cost is estimated.
        seed: seed of the weights and the input.
        passes: number of forward passes, or of forward and backward passes.
    """

    @property
    def setting(self) -> Setting: ...
    @property
    def seed(self) -> int: ...
    @property
    def passes(self) -> int: ...


class Plan(Protocol):
    """A question: its cells, which of them share a run, and what is measured.

    Attributes:
        kind: kind of its store, by which the plan is rebuilt (`meanmode.sweeps.engine.store_kinds`).
        name: name of the claim it measures, shared with its figure.
        claim: what it measures, in one line.
        laws: tags of the claims compared with it.
        backward: whether a pass includes a backward pass.
        grid: whether the cells form a grid.
        cells: every run; the position is the cell's index in the store.
    """

    @property
    def kind(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def claim(self) -> str: ...
    @property
    def laws(self) -> tuple[str, ...]: ...
    @property
    def backward(self) -> bool: ...
    @property
    def grid(self) -> bool: ...
    @property
    def cells(self) -> Sequence[PlannedCell]: ...

    def units(self) -> list[tuple[int, ...]]:
        """Indices of the cells that are computed together."""
        ...

    def coordinates(self) -> dict[str, tuple[list[Any], Variable]]:
        """Axis -> its value in every cell, and its definition."""
        ...

    def configuration(self) -> dict[str, Any]:
        """Everything that determines the numbers, JSON-serialisable; defaults may be left out."""
        ...

    def layout(self) -> Layout:
        """What the store holds; the forecast is computed here."""
        ...

    def measure(self) -> Callable[[Sequence[tuple[int, Any]]], Measured]:
        """A picklable function that computes the cells of a unit, given as (index, cell) pairs."""
        ...


def check_cells(count: int) -> None:
    """Refuse a plan with too many cells, before they are listed.

    Raises:
        ValueError: more than `MOST_CELLS`.
    """
    if count > MOST_CELLS:
        raise ValueError(
            f"this makes {count:,} cells, a store holds {MOST_CELLS:,}: choose fewer seeds or values"
        )
