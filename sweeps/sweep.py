"""`Sweep`: a question put to the simulation, as a grid of settings and seeds with the laws it speaks of."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from sim.store import Variable
from sweeps.plan import Layout, Measured
from theory import MERGES, MIXERS, Setting

FIELD_DEFINITIONS = {
    "depth": "Blocks",
    "tokens": "Image tokens",
    "text_tokens": "Text tokens, a second segment",
    "batch": "Samples; the front is read off their mean",
    "width": "Features of a token",
    "heads": "Attention heads",
    "ffn_ratio": "SwiGLU hidden width over width",
    "weight_std": "Standard deviation of all block weights",
    "writer_std": "Standard deviation of the residual writers; that of the others where not given",
    "input_cosine": "Pair cosine of the input tokens, in [0, 1)",
    "adjoint_cosine": "Pair cosine of the loss adjoints at the last block, in [0, 1)",
    "merge": f"Residual merge: {', '.join(MERGES)}",
    "residual_gain": "lambda of layerscale, rezero and highway, a of deepnorm",
    "alpha": "mv_split: gain on the mean",
    "beta": "mv_split: gain on the centered part",
    "mixer": f"Token mixer: {', '.join(MIXERS)}",
    "mixer_share": "lazy: the share l of attention in (1 - l) I + l A",
    "rope": "2-D rotary positions on image tokens",
    "seed": "Seed of weights and input",
}
"""What every field of a setting means, in the stores and on the command line."""

SETTING_FIELDS = tuple(entry.name for entry in dataclasses.fields(Setting))


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


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A frozen base configuration and a grid over some of its fields or a list of cases, for some seeds.

    Attributes:
        name: of the claim it measures; equal to the name of its figure.
        claim: what it measures, in one line.
        base: the fields no axis varies.
        axes: setting field -> its values, in order.
        cases: instead of a grid, the fields in which each setting differs from the base.
        seeds: seeds 0 to seeds - 1 of every setting, each with fresh weights and input.
        laws: tags of the claims compared with it.
        backward: measure the writer gradients too, every cell in a run of its own depth.
        ensemble: seeds of a setting that are stepped together as one batched network (`sim.ensemble`); they
            are computed, and computed again, together, since their last bits depend on it.
        device: where to compute, as torch names it.

    Raises:
        ValueError: an axis that is no setting field or has no or repeated values, no seeds, no members of an
            ensemble, or a setting out of range.
    """

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
        self.cells  # noqa: B018 (every setting of the grid is validated here)

    @cached_property
    def settings(self) -> tuple[Setting, ...]:
        """Every setting of the grid, the last axis fastest, or of the list."""
        combinations = itertools.product(*self.axes.values())
        cases = self.cases or [dict(zip(self.axes, values, strict=True)) for values in combinations]
        return tuple(dataclasses.replace(self.base, **case) for case in cases)

    @cached_property
    def varied(self) -> tuple[str, ...]:
        """The fields in which settings differ: the axes, or whatever a case names."""
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
        """Whether its cells are those of a grid."""
        return bool(self.axes)

    def coordinates(self) -> dict[str, tuple[list[Any], Variable]]:
        """Axis -> its value in every cell, and what it is; the seed is the last axis."""
        columns = {axis: [getattr(cell.setting, axis) for cell in self.cells] for axis in self.varied}
        columns["seed"] = [cell.seed for cell in self.cells]
        return {
            name: (values, Variable(definition=FIELD_DEFINITIONS[name])) for name, values in columns.items()
        }

    def layout(self) -> Layout:
        """What the store holds, with the theory's forecast."""
        from sweeps.layout import sweep_layout

        return sweep_layout(self)

    def forecast_rows(self) -> list[dict[str, Any]]:
        """The theory's front for every setting."""
        from sweeps.layout import forecast_rows

        return forecast_rows(self)

    def measure(self) -> Callable[[Sequence[tuple[int, Cell]]], Measured]:
        """What simulates the cells of a unit."""
        from sweeps.simulated import simulated

        return partial(simulated, backward=self.backward, device=self.device)

    def units(self) -> list[tuple[int, ...]]:
        """Cells that are computed together, deepest last: an ensemble of seeds, each with shallower stacks.

        A deep stack contains its shallower prefixes; a backward pass starts at the last block, so nothing is
        shared there.
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
        """All that determines the numbers, JSON-serialisable; what is not set is not named."""
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
        """The sweep with other values: several become an axis, one fixes a field that is no axis yet.

        Raises:
            ValueError: a field that the cases of a list set themselves, or several values for a list.
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
