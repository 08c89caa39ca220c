"""`Study`: training runs as cases and seeds; the runs of a case are stepped together as ensembles."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, ClassVar, TypeVar, cast

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from meanmode.dit.config.run_config import RunConfig
from meanmode.sim.store.files import StoreError, Variable
from meanmode.sweeps.engine.plan import Layout, Measured, Plan, check_cells
from meanmode.sweeps.engine.study_variables import (
    AVERAGE_SERIES,
    OUTCOME,
    SERIES,
    SIGNAL_SERIES,
    TELEMETRY,
)
from meanmode.sweeps.engine.trained import StudyCell, trained

Planned = TypeVar("Planned", bound=Plan)


@dataclass(frozen=True, kw_only=True)
class Case:
    """Runs that differ only in their seeds.

    Attributes:
        label: name of the case in tables and figures.
        options: fields of the run that differ from the base, by name.
    """

    label: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Study:
    """Training runs: cases of a base run, each for several seeds of weights and data.

    The last three fields are what is stated before the runs. They change no number, and a store keeps only
    those that are set.

    Attributes:
        name: name of the claim it measures, shared with its figure.
        claim: what it measures, in one line.
        base: the run that the cases vary.
        cases: the runs, by how each differs from the base.
        seeds: number of seeds per case, each used for weights and data alike.
        first_seed: the seeds are `first_seed` and the following ones; start elsewhere for runs that are
            independent of another study's.
        laws: tags of the claims compared with it.
        ensemble: runs of a case that are stepped together; they are always computed together, since their
            last bits depend on it.
        functional_every: steps between measurements of Delta, and of the moving average of the weights if the
            base keeps one; 0 for none.
        signals_every: steps between measurements of the gradients' parts; 0 for none.
        forecast: predictions made before the runs, one row per case
            (`meanmode.sweeps.studies.critical_rate_forecast`); empty without a forecast.
        device: torch name of the device to compute on.
        reference_rate: of a study of waiting times, the learning rate at 16 blocks in shares of which its
            rates are given; it scales with depth^(-1/2).
        held_out_seeds: number of last seeds of every case on which no model is fitted.
        expectation: what the runs are expected to show.

    Raises:
        ValueError: no cases, two with the same label, no seeds, an empty ensemble, a reference rate that is
            not positive, more seeds held out than there are, or an option out of range.
    """

    kind: ClassVar[str] = "study"

    name: str
    claim: str
    base: RunConfig
    cases: tuple[Case, ...]
    seeds: int
    first_seed: int = 0
    laws: tuple[str, ...] = ()
    ensemble: int = 8
    functional_every: int = 5
    signals_every: int = 0
    forecast: tuple[Mapping[str, Any], ...] = ()
    device: str = "cpu"
    reference_rate: float | None = None
    held_out_seeds: int = 0
    expectation: str = ""

    def __post_init__(self) -> None:
        labels = [case.label for case in self.cases]
        if not labels or len(set(labels)) != len(labels):
            raise ValueError(f"a study needs cases with distinct labels, got {labels}")
        for name in ("seeds", "ensemble"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.reference_rate is not None and not self.reference_rate > 0:
            raise ValueError(f"reference_rate must be positive, got {self.reference_rate}")
        if not 0 <= self.held_out_seeds <= self.seeds:
            raise ValueError(f"held_out_seeds must be 0 to {self.seeds} (seeds), got {self.held_out_seeds}")
        check_cells(len(self.cases) * self.seeds)
        last = self.first_seed + self.seeds - 1
        self.runs[0].with_fields({"seed": last, "data_seed": last})  # validates every run, and the seeds

    @property
    def backward(self) -> bool:
        """True: training has backward passes."""
        return True

    @property
    def grid(self) -> bool:
        """False: cases are a list."""
        return False

    @cached_property
    def runs(self) -> tuple[RunConfig, ...]:
        """The run of every case, without its seed."""
        return tuple(self.base.with_fields(case.options) for case in self.cases)

    @cached_property
    def varied(self) -> tuple[str, ...]:
        """Fields in which cases differ."""
        return tuple(dict.fromkeys(name for case in self.cases for name in case.options))

    @cached_property
    def cells(self) -> tuple[StudyCell, ...]:
        """Every run, seeds fastest; the position is the cell's index in the store."""
        seeds = range(self.first_seed, self.first_seed + self.seeds)
        return tuple(
            StudyCell(run=run.with_fields({"seed": seed, "data_seed": seed}), seed=seed)
            for run in self.runs
            for seed in seeds
        )

    @property
    def constant_rate(self) -> bool:
        """Whether all runs have a constant learning rate after the warm-up: a study of waiting times."""
        return all(run.training.schedule == "warmup" for run in self.runs)

    def units(self) -> list[tuple[int, ...]]:
        """Indices of the cells that are computed together: ensembles of seeds of a case."""
        return [
            tuple(
                range(case * self.seeds + first, case * self.seeds + min(first + self.ensemble, self.seeds))
            )
            for case in range(len(self.cases))
            for first in range(0, self.seeds, self.ensemble)
        ]

    def coordinates(self) -> dict[str, tuple[list[Any], Variable]]:
        """`case`, every field in which cases differ, and the seed; values that are no numbers as text."""
        columns: dict[str, tuple[list[Any], Variable]] = {
            "case": (self._repeated([case.label for case in self.cases]), Variable(definition="Label"))
        }
        for name in self.varied:
            values = [_column_value(run.field(name)) for run in self.runs]
            if any(isinstance(value, str) for value in values):
                values = [value if isinstance(value, str) else json.dumps(value) for value in values]
            columns[name] = (self._repeated(values), Variable(definition=f"{name} of the run"))
        columns["run_seed"] = (
            [cell.seed for cell in self.cells],
            Variable(definition="Seed of weights and data"),
        )
        return columns

    def _repeated(self, values: Sequence[Any]) -> list[Any]:
        return [value for value in values for _ in range(self.seeds)]

    def configuration(self) -> dict[str, Any]:
        """Everything that determines the numbers, and the statement, JSON-serialisable."""
        configuration = {
            "name": self.name,
            "base": self.base.document(),
            "cases": [{"label": case.label, "options": dict(case.options)} for case in self.cases],
            "seeds": self.seeds,
            "first_seed": self.first_seed,
            "ensemble": self.ensemble,
            "functional_every": self.functional_every,
            "signals_every": self.signals_every,
        }
        if self.device != "cpu":
            configuration["device"] = self.device
        return {**configuration, **self.statement()}

    def statement(self) -> dict[str, Any]:
        """What was stated before the runs: the fields of `STATEMENT` that are set."""
        stated = {name: getattr(self, name) for name in STATEMENT}
        return {name: value for name, value in stated.items() if value != STATEMENT[name]}

    def share_of(self, rate: float, depth: int) -> float:
        """A learning rate at a depth as a share of the reference rate there, to two decimals.

        Raises:
            ValueError: the study states no reference rate.
        """
        if self.reference_rate is None:
            raise ValueError(f"{self.name} states no reference_rate: it is no study of waiting times")
        return round(rate / (self.reference_rate * (16 / depth) ** 0.5), 2)

    def with_options(
        self,
        options: Mapping[str, Any],
        seeds: int | None = None,
        *,
        ensemble: int | None = None,
        device: str | None = None,
    ) -> "Study":
        """The study with another number of seeds, of which the same share is held out, or on another device.

        Raises:
            ValueError: an option of synthetic stacks.
        """
        if options:
            raise ValueError(f"{self.name} trains networks: {', '.join(options)} is no option of its runs")
        seeds = self.seeds if seeds is None else seeds
        return dataclasses.replace(
            self,
            seeds=seeds,
            held_out_seeds=math.ceil(self.held_out_seeds * seeds / self.seeds),
            ensemble=self.ensemble if ensemble is None else ensemble,
            device=self.device if device is None else device,
        )

    def layout(self) -> Layout:
        """What the store holds, including the forecast if there is one."""
        steps = max(run.training.steps for run in self.runs)
        signals = SIGNAL_SERIES if self.signals_every else {}
        averages = AVERAGE_SERIES if self.base.training.ema else {}
        return Layout(
            sizes={"step": range(1, steps + 1)},
            variables={**OUTCOME, **SERIES, **signals, **averages},
            forecasts=self._forecasts(),
            witness="loss",
        )

    def forecast_rows(self) -> list[dict[str, Any]]:
        """The forecast, one row per case."""
        return [dict(row) for row in self.forecast]

    def _forecasts(self) -> dict[str, tuple[ArrayLike, Variable]]:
        names = dict.fromkeys(name for row in self.forecast for name in row if name.startswith("predicted"))
        return {
            name: (
                self._repeated([_number(row.get(name)) for row in self.forecast]),
                Variable(definition=f"forecast, written before the runs: {name}"),
            )
            for name in names
        }

    def measure(self) -> Callable[[Sequence[tuple[int, StudyCell]]], Measured]:
        """A picklable function that trains the cells of a unit."""
        return partial(
            trained,
            functional_every=self.functional_every,
            signals_every=self.signals_every,
            device=self.device,
        )


def with_compiled_blocks(plan: Planned) -> Planned:
    """The plan with networks whose blocks are compiled: another plan, as it rounds its numbers differently.

    Raises:
        ValueError: it trains none of this project's networks, or measures gradients at every step, which then
            is not compiled.
    """
    base = getattr(plan, "base", None)
    if not isinstance(base, RunConfig):
        raise ValueError(f"{plan.name} trains none of this project's networks: leave out --compile")
    if plan.kind not in (Study.kind, "judged_study") or getattr(plan, "signals_every", 0) == 1:
        raise ValueError(f"{plan.name} measures gradients at every step: leave out --compile")
    changed: Planned = dataclasses.replace(cast(Any, plan), base=base.with_fields({"compile": True}))
    return changed


def check_compiled(plan: Plan) -> None:
    """Check that blocks can be compiled here, if the networks of a plan have compiled ones.

    Raises:
        ValueError: they cannot.
    """
    base = getattr(plan, "base", None)
    if isinstance(base, RunConfig) and base.training.compile:
        import torch

        from meanmode.sim.trunk.compiled import check_compiler

        check_compiler(torch.device(getattr(plan, "device", "cpu")))


STATEMENT = {
    entry.name: entry.default
    for entry in dataclasses.fields(Study)
    if entry.name in ("reference_rate", "held_out_seeds", "expectation")
}
"""Fields of a study that are stated before its runs and change no number -> their defaults."""


def stored_study(attributes: Mapping[str, Any], of: type[Study] = Study) -> Study:
    """Rebuild a study from the attributes of its store, without its forecast.

    Raises:
        StoreError: a store of something else, or of another version.
    """
    try:
        configuration = json.loads(attributes["configuration"])
        common = {entry.name for entry in dataclasses.fields(Study)}
        own = {entry.name for entry in dataclasses.fields(of)} - common
        return of(
            name=configuration["name"],
            claim=attributes["claim"],
            base=RunConfig.of_document(configuration["base"]),
            cases=tuple(Case(**case) for case in configuration["cases"]),
            laws=tuple(json.loads(attributes["laws"])),
            **{name: configuration[name] for name in ("seeds", "first_seed", "ensemble")},
            **{name: configuration[name] for name in ("functional_every", "signals_every")},
            device=configuration.get("device", "cpu"),
            **{name: configuration[name] for name in STATEMENT if name in configuration},
            **{name: configuration[name] for name in own},
        )
    except (ValueError, TypeError, KeyError) as error:
        raise StoreError(f"the store holds no study of training runs of this version: {error}") from error


def _column_value(value: Any) -> Any:
    """A field as a coordinate value: a number, or text."""
    return (
        value if isinstance(value, int | float | str) and not isinstance(value, bool) else json.dumps(value)
    )


def _number(value: Any) -> float:
    return np.nan if value is None else float(value)


def telemetry_of(data: xr.Dataset, cell: int) -> xr.Dataset:
    """The logged series of one run of a study, over `step`, up to its last step.

    Args:
        data: a study of labelled runs, opened.
        cell: index of the run along `cell`.
    """
    last = int(data["last_step"].values[cell])
    return xr.Dataset(
        {name: ("step", data[name].values[cell, :last].astype(float)) for name in TELEMETRY if name in data},
        coords={"step": np.arange(1, last + 1)},
    )
