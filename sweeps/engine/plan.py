"""`Plan`: what a named question is made of, whoever computes its cells: simulated stacks or training runs."""

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
    """One run: a setting and a seed."""

    setting: Setting
    seed: int

    @property
    def passes(self) -> int:
        """Passes that it takes."""
        return 1

    def key(self) -> str:
        """Hash of the configuration: equal keys are the same run."""
        return digest({**dataclasses.asdict(self.setting), "seed": self.seed})


def digest(configuration: Mapping[str, Any]) -> str:
    """Short hash of a JSON-serialisable configuration."""
    return hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).hexdigest()[:16]


Measured = list[tuple[dict[str, Any], int]]
"""Observables and status of every cell of a unit."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What the store of a plan holds besides its coordinates.

    Attributes:
        sizes: dimension -> its coordinate values.
        variables: what is measured.
        forecasts: name -> values of every cell, and what they are; written before any cell is computed.
        witness: a variable whose first number every finished cell has.
    """

    sizes: Mapping[str, Sequence[Any]]
    variables: Mapping[str, Variable]
    forecasts: Mapping[str, tuple[ArrayLike, Variable]]
    witness: str


class PlannedCell(Protocol):
    """One run.

    Attributes:
        setting: of its stack.
        seed: of it.
        passes: forward passes, or forward and backward ones, that it takes.
    """

    @property
    def setting(self) -> Setting: ...
    @property
    def seed(self) -> int: ...
    @property
    def passes(self) -> int: ...


class Plan(Protocol):
    """A question: its cells, how they share runs, what is measured of them.

    Attributes:
        name: of the claim it measures; equal to the name of its figure.
        claim: what it measures, in one line.
        laws: tags of the claims compared with it.
        backward: whether a pass has a backward half.
        grid: whether its cells are those of a grid.
        cells: every run; the position is the cell's index in the store.
    """

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
        """Cells that are computed together."""
        ...

    def coordinates(self) -> dict[str, tuple[list[Any], Variable]]:
        """Axis -> its value in every cell, and what it is."""
        ...

    def configuration(self) -> dict[str, Any]:
        """All that determines the numbers, JSON-serialisable; what is not set is not named."""
        ...

    def layout(self) -> Layout:
        """What the store holds; the forecast is computed here."""
        ...

    def measure(self) -> Callable[[Sequence[tuple[int, Any]]], Measured]:
        """What computes the cells of a unit, given with their positions; it can be pickled."""
        ...
