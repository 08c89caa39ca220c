"""`Sweep`: a grid of settings and seeds for the simulation, with the laws it is compared with."""

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, ClassVar

from meanmode.sim.store.files import StoreError, Variable
from meanmode.sweeps.engine.plan import Cell, Layout, Measured, check_cells
from meanmode.sweeps.engine.setting_fields import FIELD_DEFINITIONS, SETTING_FIELDS
from meanmode.theory.setting import Setting


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A base setting, and a grid over some of its fields or a list of cases, for several seeds.

    Attributes:
        name: name of the claim it measures, shared with its figure.
        claim: what it measures, in one line.
        base: setting that supplies every field no axis varies.
        axes: setting field -> its values, in order.
        cases: instead of a grid, the fields in which each setting differs from the base.
        seeds: seeds 0 to seeds - 1 of every setting, each with fresh weights and input.
        laws: tags of the claims compared with it.
        backward: also measure the writer gradients; every cell then runs at its own depth.
        ensemble: seeds of a setting that are stepped together as one batched network
            (`meanmode.sim.trunk.ensemble`); they are always computed together, since their last bits depend
            on it.
        device: torch name of the device to compute on.

    Raises:
        ValueError: an axis that is no setting field or has no or repeated values, no seeds, an empty
            ensemble, or a setting out of range.
    """

    kind: ClassVar[str] = "sweep"

    name: str
    claim: str
    base: Setting
    axes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    cases: tuple[Mapping[str, Any], ...] = ()
    seeds: int
    laws: tuple[str, ...]
    backward: bool = False
    ensemble: int = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        for axis, values in self.axes.items():
            if axis not in SETTING_FIELDS:
                raise ValueError(f"unknown axis {axis!r}: choose from {', '.join(SETTING_FIELDS)}")
            if not values or len(set(values)) != len(values):
                raise ValueError(f"axis {axis} needs distinct values, got {values}")
        if self.axes and self.cases:
            raise ValueError("a sweep is a grid or a list of cases: give axes or cases")
        for name in ("seeds", "ensemble"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        settings = math.prod(len(values) for values in self.axes.values()) * max(len(self.cases), 1)
        check_cells(settings * self.seeds)
        self.cells  # noqa: B018 (every setting of the grid is validated here)

    @cached_property
    def settings(self) -> tuple[Setting, ...]:
        """Every setting of the grid (last axis fastest) or of the list of cases."""
        combinations = itertools.product(*self.axes.values())
        cases = self.cases or [dict(zip(self.axes, values, strict=True)) for values in combinations]
        return tuple(dataclasses.replace(self.base, **case) for case in cases)

    @cached_property
    def varied(self) -> tuple[str, ...]:
        """Fields in which settings differ: the axes, or every field that a case names."""
        return tuple(self.axes) or tuple(
            name for name in SETTING_FIELDS if any(name in case for case in self.cases)
        )

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """Every run, seeds fastest; the position is the cell's index in the store."""
        return tuple(
            Cell(setting=setting, seed=seed) for setting in self.settings for seed in range(self.seeds)
        )

    @property
    def grid(self) -> bool:
        """Whether the cells form a grid."""
        return bool(self.axes)

    def coordinates(self) -> dict[str, tuple[list[Any], Variable]]:
        """Axis -> its value in every cell, and its definition; the seed is the last axis."""
        columns = {axis: [getattr(cell.setting, axis) for cell in self.cells] for axis in self.varied}
        columns["seed"] = [cell.seed for cell in self.cells]
        return {
            name: (values, Variable(definition=FIELD_DEFINITIONS[name])) for name, values in columns.items()
        }

    def layout(self) -> Layout:
        """What the store holds, including the theory's forecast."""
        from meanmode.sweeps.engine.front_forecast import sweep_layout

        return sweep_layout(self)

    def forecast_rows(self) -> list[dict[str, Any]]:
        """The front predicted by the theory, one row per setting."""
        from meanmode.sweeps.engine.front_forecast import forecast_rows

        return forecast_rows(self)

    def measure(self) -> Callable[[Sequence[tuple[int, Cell]]], Measured]:
        """A picklable function that simulates the cells of a unit."""
        from meanmode.sweeps.engine.simulated import simulated

        return partial(simulated, backward=self.backward, device=self.device)

    def units(self) -> list[tuple[int, ...]]:
        """Indices of the cells that share a run: an ensemble of seeds, shallower stacks first.

        A deep stack contains its shallower prefixes. A backward pass starts at the last block, so backward
        cells of different depths share nothing.
        """
        groups: dict[tuple[Setting, int], list[int]] = {}
        for index, cell in enumerate(self.cells):
            setting = cell.setting if self.backward else dataclasses.replace(cell.setting, depth=0)
            groups.setdefault((setting, cell.seed // self.ensemble), []).append(index)
        return [
            tuple(sorted(group, key=lambda index: self.cells[index].setting.depth))
            for group in groups.values()
        ]

    def configuration(self) -> dict[str, Any]:
        """Everything that determines the numbers, JSON-serialisable; fields at their default are left out."""
        axes = {axis: list(values) for axis, values in self.axes.items()}
        base = dataclasses.asdict(self.base)
        configuration = {"name": self.name, "base": base, "axes": axes, "seeds": self.seeds}
        if self.cases:
            configuration["cases"] = [dict(case) for case in self.cases]
        if self.backward:
            configuration["backward"] = True
        if self.ensemble > 1:
            configuration["ensemble"] = self.ensemble
        if self.device != "cpu":
            configuration["device"] = self.device
        return configuration

    def with_options(
        self,
        options: Mapping[str, tuple[Any, ...]],
        seeds: int | None = None,
        *,
        ensemble: int | None = None,
        device: str | None = None,
    ) -> "Sweep":
        """The sweep with other values: several become an axis, a single one fixes a field that is no axis.

        Raises:
            ValueError: a field that every case sets itself, or several values where cases are listed.
        """
        for name, values in options.items():
            if any(name in case for case in self.cases):
                raise ValueError(
                    f"{self.name} is a list of cases with a {name} each: it takes no other {name}"
                )
            if self.cases and len(values) > 1:
                raise ValueError(f"{self.name} is a list of cases: {name} takes one value, got {values}")
        fixed = {
            name: values[0] for name, values in options.items() if len(values) == 1 and name not in self.axes
        }
        return dataclasses.replace(
            self,
            base=dataclasses.replace(self.base, **fixed),
            axes={**self.axes, **{name: values for name, values in options.items() if name not in fixed}},
            seeds=self.seeds if seeds is None else seeds,
            ensemble=self.ensemble if ensemble is None else ensemble,
            device=self.device if device is None else device,
        )


def stored_stacks(attributes: Mapping[str, Any]) -> Sweep:
    """Rebuild a sweep from the attributes of its store.

    Raises:
        StoreError: fields that this version does not know.
    """
    try:
        configuration = json.loads(attributes["configuration"])
        return Sweep(
            name=configuration["name"],
            claim=attributes["claim"],
            base=Setting(**configuration["base"]),
            axes={axis: tuple(values) for axis, values in configuration["axes"].items()},
            cases=tuple(configuration.get("cases", ())),
            seeds=configuration["seeds"],
            laws=tuple(json.loads(attributes["laws"])),
            backward=configuration.get("backward", False),
            ensemble=configuration.get("ensemble", 1),
            device=configuration.get("device", "cpu"),
        )
    except (TypeError, KeyError, ValueError) as error:
        raise StoreError(f"the store holds no sweep over stacks of this version: {error}") from error
