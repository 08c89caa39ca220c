"""`StockStudy`: models of other libraries, trained and watched, as cases and seeds."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from meanmode.sim.store.files import StoreError, Variable
from meanmode.sim.store.sweep_store import DONE
from meanmode.sweeps.engine.plan import Layout, Measured, check_cells
from meanmode.sweeps.engine.stock.stock_run import StockRun
from meanmode.sweeps.engine.study import Case
from meanmode.theory.setting import Setting


@dataclass(frozen=True, kw_only=True, slots=True)
class StockCell:
    """One run of one seed."""

    run: StockRun
    seed: int

    @property
    def setting(self) -> Setting:
        """A synthetic stack of the same size."""
        return self.run.setting()

    @property
    def passes(self) -> int:
        """Number of forward and backward passes."""
        return self.run.steps


@dataclass(frozen=True, kw_only=True)
class StockStudy:
    """Runs of models that `transformers` and `diffusers` define, each measured by `Watch`.

    Attributes:
        name: name of the claim it measures.
        claim: what it measures, in one line.
        cases: the runs, by how each differs from the defaults of `StockRun`; all have the same steps and
            measurements.
        seeds: number of seeds per case, each used for weights and data alike.
        first_seed: the seeds are `first_seed` and the following ones.
        laws: tags of the claims compared with it.
        expectation: what the runs are expected to show, stated before them.

    Raises:
        ValueError: no cases, two with the same label, no seeds, or cases of different lengths.
    """

    kind: ClassVar[str] = "stock_study"

    name: str
    claim: str
    cases: tuple[Case, ...]
    seeds: int
    first_seed: int = 0
    laws: tuple[str, ...] = ()
    expectation: str = ""

    def __post_init__(self) -> None:
        labels = [case.label for case in self.cases]
        if not labels or len(set(labels)) != len(labels):
            raise ValueError(f"a study needs cases with distinct labels, got {labels}")
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {self.seeds}")
        if len({(run.steps, run.every) for run in self.runs}) > 1:
            raise ValueError("the runs of a study need the same steps and every")
        check_cells(len(self.cases) * self.seeds)

    @property
    def backward(self) -> bool:
        """True: training has backward passes."""
        return True

    @property
    def grid(self) -> bool:
        """False: cases are a list."""
        return False

    @cached_property
    def runs(self) -> tuple[StockRun, ...]:
        """The run of every case."""
        return tuple(StockRun(**case.options) for case in self.cases)

    @cached_property
    def cells(self) -> tuple[StockCell, ...]:
        """Every run, seeds fastest; the position is the cell's index in the store."""
        seeds = range(self.first_seed, self.first_seed + self.seeds)
        return tuple(StockCell(run=run, seed=seed) for run in self.runs for seed in seeds)

    def units(self) -> list[tuple[int, ...]]:
        """Every run by itself."""
        return [(index,) for index in range(len(self.cells))]

    def coordinates(self) -> dict[str, tuple[list[Any], Variable]]:
        """`case`, every field in which cases differ, and the seed."""
        varied = dict.fromkeys(name for case in self.cases for name in case.options)
        columns: dict[str, tuple[list[Any], Variable]] = {
            "case": (
                [case.label for case in self.cases for _ in range(self.seeds)],
                Variable(definition="Label"),
            )
        }
        for name in varied:
            values = [getattr(cell.run, name) for cell in self.cells]
            columns[name] = (values, Variable(definition=f"{name} of the run"))
        seeds = [cell.seed for cell in self.cells]
        columns["run_seed"] = (seeds, Variable(definition="Seed of weights and data"))
        return columns

    def configuration(self) -> dict[str, Any]:
        """Everything that determines the numbers, and the expectation, JSON-serialisable."""
        return {
            "name": self.name,
            "stock_cases": [{"label": case.label, "options": dict(case.options)} for case in self.cases],
            "seeds": self.seeds,
            "first_seed": self.first_seed,
            "expectation": self.expectation,
        }

    def with_options(
        self,
        options: Any,
        seeds: int | None = None,
        *,
        ensemble: int | None = None,
        device: str | None = None,
    ) -> "StockStudy":
        """The study with another number of seeds.

        Raises:
            ValueError: an option of synthetic stacks, an ensemble size, or a device.
        """
        if options or ensemble is not None or device not in (None, "cpu"):
            raise ValueError(f"{self.name} takes no options but --seeds: leave the others out")
        return dataclasses.replace(self, seeds=self.seeds if seeds is None else seeds)

    def layout(self) -> Layout:
        """What the store holds; there is no forecast."""
        from meanmode.sweeps.engine.stock.stock_training import MOST_ALARMS, OUTCOME, SERIES, measured_steps

        return Layout(
            sizes={
                "step": range(1, self.runs[0].steps + 1),
                "measurement": measured_steps(self.runs[0]),
                "alarm": range(1, MOST_ALARMS + 1),
            },
            variables={**OUTCOME, **SERIES},
            forecasts={},
            witness="initial_loss",
        )

    def forecast_rows(self) -> list[dict[str, Any]]:
        """No forecast."""
        return []

    def measure(self) -> Callable[[Sequence[tuple[int, StockCell]]], Measured]:
        """A picklable function that trains the cells of a unit, once a model of every family can be built.

        Raises:
            ValueError: the libraries that define the models are missing.
        """
        try:
            from meanmode.sweeps.engine.stock.stock_training import check_buildable

            check_buildable(self.runs)
        except ModuleNotFoundError as error:
            raise ValueError(
                f"models of other libraries need {error.name}: pip install mean-mode-screaming[train,eval]"
            ) from error
        return trained_cells


def trained_cells(cells: Sequence[tuple[int, StockCell]]) -> Measured:
    """Train the cells of a unit."""
    from meanmode.sweeps.engine.stock.stock_training import stock_trained

    return [(stock_trained(cell.run, cell.seed), DONE) for _, cell in cells]


def stored_stock(attributes: Mapping[str, Any]) -> StockStudy:
    """Rebuild a study from the attributes of its store.

    Raises:
        StoreError: a store of something else, or of another version.
    """
    try:
        configuration = json.loads(attributes["configuration"])
        return StockStudy(
            name=configuration["name"],
            claim=attributes["claim"],
            cases=tuple(Case(**case) for case in configuration["stock_cases"]),
            seeds=configuration["seeds"],
            first_seed=configuration["first_seed"],
            laws=tuple(json.loads(attributes["laws"])),
            expectation=configuration.get("expectation", ""),
        )
    except (ValueError, TypeError, KeyError) as error:
        raise StoreError(f"the store holds no study of stock models of this version: {error}") from error
