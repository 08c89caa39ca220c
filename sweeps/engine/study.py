"""`Study`: a question put to training, as cases of a run and seeds; the runs of a case are one ensemble."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from meanmode.dit.config.run_config import RunConfig
from meanmode.sim.store.files import StoreError, Variable
from meanmode.sim.store.sweep_store import open_cells
from meanmode.sweeps.engine.plan import Layout, Measured
from meanmode.sweeps.engine.study_variables import OUTCOME, SERIES, SIGNAL_SERIES, TELEMETRY
from meanmode.sweeps.engine.trained import StudyCell, trained


@dataclass(frozen=True, kw_only=True)
class Case:
    """Runs that differ in their seeds alone.

    Attributes:
        label: what it is called.
        options: fields of the run in which it differs from the base, by name.
    """

    label: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Study:
    """Training runs: cases of a base run, each for some seeds of weights and data.

    Attributes:
        name: of the claim it measures; equal to the name of its figure.
        claim: what it measures, in one line.
        base: the run that the cases vary.
        cases: in which fields each differs from it.
        seeds: seeds `first_seed` and the next ones of every case, of weights and data alike.
        first_seed: see there; another one makes runs that are independent of an earlier study's.
        laws: tags of the claims compared with it.
        ensemble: runs of a case that are stepped together; they are computed, and computed again, together,
            since their last bits depend on it.
        functional_every: steps between measurements of Delta; 0 for none.
        signals_every: steps between measurements of the gradients' parts; 0 for none.
        forecast: of each case, what was predicted before (`meanmode.sweeps.studies.critical_rate_forecast`); empty where nothing was.
        device: where to compute, as torch names it.

    Raises:
        ValueError: no cases, two of one label, no seeds, no members, or an option out of range.
    """

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

    def __post_init__(self) -> None:
        labels = [case.label for case in self.cases]
        if not labels or len(set(labels)) != len(labels):
            raise ValueError(f"a study needs cases with labels of their own, got {labels}")
        for name in ("seeds", "ensemble"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        self.cells  # noqa: B018 (every run is validated here)

    @property
    def backward(self) -> bool:
        """Training has backward passes."""
        return True

    @property
    def grid(self) -> bool:
        """Cases are a list."""
        return False

    @cached_property
    def runs(self) -> tuple[RunConfig, ...]:
        """The run of every case."""
        return tuple(self.base.with_fields(case.options) for case in self.cases)

    @cached_property
    def varied(self) -> tuple[str, ...]:
        """The fields in which cases differ."""
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

    def units(self) -> list[tuple[int, ...]]:
        """Cells that are computed together: an ensemble of the seeds of a case."""
        return [
            tuple(
                range(case * self.seeds + first, case * self.seeds + min(first + self.ensemble, self.seeds))
            )
            for case in range(len(self.cases))
            for first in range(0, self.seeds, self.ensemble)
        ]

    def coordinates(self) -> dict[str, tuple[list[Any], Variable]]:
        """`case`, every field in which cases differ, and the seed; what is no number, as text."""
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
        """All that determines the numbers, JSON-serialisable."""
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
        return configuration

    def with_options(
        self,
        options: Mapping[str, Any],
        seeds: int | None = None,
        *,
        ensemble: int | None = None,
        device: str | None = None,
    ) -> "Study":
        """The study with other seeds; fields of the run have their own option.

        Raises:
            ValueError: an option of synthetic stacks.
        """
        if options:
            raise ValueError(f"{self.name} trains networks: {', '.join(options)} is no option of its runs")
        return dataclasses.replace(
            self,
            seeds=self.seeds if seeds is None else seeds,
            ensemble=self.ensemble if ensemble is None else ensemble,
            device=self.device if device is None else device,
        )

    def layout(self) -> Layout:
        """What the store holds, with the forecast that it was given."""
        steps = max(run.training.steps for run in self.runs)
        signals = SIGNAL_SERIES if self.signals_every else {}
        return Layout(
            sizes={"step": range(1, steps + 1)},
            variables={**OUTCOME, **SERIES, **signals},
            forecasts=self._forecasts(),
            witness="loss",
        )

    def forecast_rows(self) -> list[dict[str, Any]]:
        """The forecast that it was given, a row a case."""
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
        """What trains the cells of a unit."""
        return partial(
            trained,
            functional_every=self.functional_every,
            signals_every=self.signals_every,
            device=self.device,
        )


def stored_study(attributes: Mapping[str, Any]) -> Study:
    """The study of the attributes of its store.

    Raises:
        StoreError: a sweep over synthetic stacks, or a study of another version.
    """
    try:
        configuration = json.loads(attributes["configuration"])
        return Study(
            name=configuration["name"],
            claim=attributes["claim"],
            base=RunConfig.of_document(configuration["base"]),
            cases=tuple(Case(**case) for case in configuration["cases"]),
            laws=tuple(json.loads(attributes["laws"])),
            **{name: configuration[name] for name in ("seeds", "first_seed", "ensemble")},
            **{name: configuration[name] for name in ("functional_every", "signals_every")},
            device=configuration.get("device", "cpu"),
        )
    except (ValueError, TypeError, KeyError) as error:
        raise StoreError(f"the store holds no study of training runs of this version: {error}") from error


def open_study(path: Path) -> xr.Dataset:
    """A study as it is stored, along `cell`.

    Raises:
        StoreError: no readable study of labelled training runs.
    """
    data = open_cells(path)
    stored_study(data.attrs)
    if "onset_kind" not in data:
        raise StoreError(f"{path} holds no labelled runs: give the study whose runs they are")
    return data


def _column_value(value: Any) -> Any:
    """A field as a coordinate: a number, or text."""
    return (
        value if isinstance(value, int | float | str) and not isinstance(value, bool) else json.dumps(value)
    )


def _number(value: Any) -> float:
    return np.nan if value is None else float(value)


def telemetry_of(data: xr.Dataset, place: int) -> xr.Dataset:
    """What a run of a study has logged, over `step`, to its last step.

    Args:
        data: of `open_study`.
        place: of the run, along `cell`.
    """
    last = int(data["last_step"].values[place])
    return xr.Dataset(
        {name: ("step", data[name].values[place, :last].astype(float)) for name in TELEMETRY if name in data},
        coords={"step": np.arange(1, last + 1)},
    )
