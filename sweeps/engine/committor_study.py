"""The committor: the share of forks of a training state that collapse."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import xarray as xr

from meanmode.dit.config.run_config import RunConfig
from meanmode.dit.config.signals import SIGNALS
from meanmode.sim.onset.training_onset import initial_level
from meanmode.sim.store.files import StoreError, Variable
from meanmode.sim.store.sweep_store import DONE
from meanmode.sweeps.engine.plan import Layout, Measured
from meanmode.sweeps.engine.study_variables import SERIES
from meanmode.theory.setting import Setting

if TYPE_CHECKING:
    from meanmode.dit.train.ensemble_measurements import Measured as MeasuredRun

RECENT = 10
"""Observables of a state are means over this many steps up to it."""


FORK_SEED = 1_000_000
"""First data seed of the forks, far above the seeds of parents."""


OBSERVABLES = (*SERIES, *SIGNALS)


VARIABLES = {
    "collapsed": Variable(definition="1 where the fork collapses (mean_mode) within the horizon, else 0"),
    "fork_onset": Variable(definition="steps from the state to the fork's onset, NaN: none", units="step"),
    "state_step": Variable(definition="step of the parent that the state is behind", units="step"),
    "parent_onset": Variable(definition="onset of the parent itself, NaN: none", units="step"),
    **{
        name: Variable(definition=f"{name} of the parent, mean of the {RECENT} steps up to the state")
        for name in OBSERVABLES
    },
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Fork:
    """One fork of one state of a parent."""

    run: RunConfig
    parent: int
    offset: int
    fork: int

    @property
    def setting(self) -> Setting:
        """Setting of the stack."""
        return self.run.model.setting(self.run.training.batch)

    @property
    def seed(self) -> int:
        """Seed of the parent."""
        return self.parent

    @property
    def passes(self) -> int:
        """Largest number of forward and backward passes."""
        return self.run.training.steps


@dataclass(frozen=True, kw_only=True)
class Committor:
    """P(collapse within a horizon | state), for states at fixed distances before the onset of a parent.

    If a parent does not collapse, distances are counted from its last step.

    Attributes:
        name: name of the claim it measures.
        claim: what it measures, in one line.
        base: the parent run; its learning rate is held constant after the warm-up.
        parents: seeds of the parents.
        offsets: distances of the states before the onset, in steps, descending.
        forks: number of forks per state, each with its own data order.
        horizon: steps for which a fork is followed.
        laws: tags of the claims compared with it.
        device: torch name of the device to compute on.
    """

    kind: ClassVar[str] = "committor_study"

    name: str
    claim: str
    base: RunConfig
    parents: tuple[int, ...]
    offsets: tuple[int, ...]
    forks: int
    horizon: int
    laws: tuple[str, ...] = ()
    device: str = "cpu"

    @property
    def backward(self) -> bool:
        """True: training has backward passes."""
        return True

    @property
    def grid(self) -> bool:
        """True: parents x offsets x forks."""
        return True

    @cached_property
    def cells(self) -> tuple[Fork, ...]:
        """Every fork; the forks of a state are adjacent."""
        # the cost of the parent, which is run twice, is shared among the forks
        parent = 2 * self.base.training.steps // (len(self.offsets) * self.forks)
        follow = self.base.with_fields({"steps": parent + self.horizon})
        return tuple(
            Fork(run=follow, parent=parent, offset=offset, fork=fork)
            for parent in self.parents
            for offset in self.offsets
            for fork in range(self.forks)
        )

    def units(self) -> list[tuple[int, ...]]:
        """One unit per parent, with all its forks."""
        count = len(self.offsets) * self.forks
        return [tuple(range(first, first + count)) for first in range(0, len(self.cells), count)]

    def coordinates(self) -> dict[str, tuple[list[Any], Variable]]:
        """Parent, offset and fork of every cell."""
        about = {
            "parent": "Seed of weights and data of the parent",
            "offset": "Steps of the state before the parent's onset, or before its end",
            "fork": "Number of the fork",
        }
        return {
            name: ([getattr(cell, name) for cell in self.cells], Variable(definition=definition))
            for name, definition in about.items()
        }

    def configuration(self) -> dict[str, Any]:
        """Everything that determines the numbers, JSON-serialisable."""
        configuration = {
            "name": self.name,
            "base": self.base.document(),
            "parents": list(self.parents),
            "offsets": list(self.offsets),
            "forks": self.forks,
            "horizon": self.horizon,
        }
        if self.device != "cpu":
            configuration["device"] = self.device
        return configuration

    def with_options(
        self,
        options: Any,
        seeds: int | None = None,
        *,
        ensemble: int | None = None,
        device: str | None = None,
    ) -> "Committor":
        """The study with parents 0 to seeds - 1, or on another device.

        Raises:
            ValueError: an option of synthetic stacks, or an ensemble size (it is always all forks of a
                parent).
        """
        if options or ensemble is not None:
            raise ValueError(f"{self.name} takes no options of stacks and no --ensemble: leave them out")
        parents = self.parents if seeds is None else tuple(range(seeds))
        return dataclasses.replace(self, parents=parents, device=self.device if device is None else device)

    def layout(self) -> Layout:
        """What the store holds; there is no forecast."""
        return Layout(sizes={}, variables=VARIABLES, forecasts={}, witness="state_step")

    def forecast_rows(self) -> list[dict[str, Any]]:
        """No forecast: which observable predicts the committor is the question."""
        return []

    def measure(self) -> Callable[[Sequence[tuple[int, Fork]]], Measured]:
        """A picklable function that forks the states of a parent."""
        return partial(forked, base=self.base, horizon=self.horizon, device=self.device)


def forked(cells: Sequence[tuple[int, Fork]], *, base: RunConfig, horizon: int, device: str) -> Measured:
    """Train a parent, rerun it to collect the fork states, then train every fork."""
    from meanmode.dit.train.ensemble_runs import train_runs

    offsets = list(dict.fromkeys(cell.offset for _, cell in cells))
    forks = 1 + max(cell.fork for _, cell in cells)
    parent = base.with_fields({"seed": cells[0][1].parent, "data_seed": cells[0][1].parent})
    (whole,) = train_runs([parent], functional_every=1, signals_every=1, device=device)
    onset = whole.onset.step if whole.onset.kind == "mean_mode" else None
    end = whole.series.sizes["step"] if onset is None else onset
    steps = [max(end - offset, RECENT) for offset in offsets]
    (again,) = train_runs([parent.with_fields({"steps": max(steps)})], keep_states=steps, device=device)
    first_seed = FORK_SEED + cells[0][1].parent * forks
    outcomes: dict[tuple[int, int], MeasuredRun] = {}
    for offset, step in zip(offsets, steps, strict=True):
        # the schedule continues from this step; after the warm-up the rate is constant
        followed = train_runs(
            [
                parent.with_fields({"steps": step + horizon, "data_seed": first_seed + fork})
                for fork in range(forks)
            ],
            begin=[again.states[step]] * forks,
            after=step,
            initial_loss=initial_level(whole.series),
            device=device,
        )
        outcomes |= {(offset, fork): measured for fork, measured in enumerate(followed)}
    found: Measured = []
    for _, cell in cells:
        step, fork = steps[offsets.index(cell.offset)], outcomes[cell.offset, cell.fork]
        collapsed = fork.onset.kind == "mean_mode"
        values: dict[str, Any] = {
            "collapsed": float(collapsed),
            "fork_onset": fork.onset.step - step if collapsed else np.nan,
            "state_step": float(step),
            "parent_onset": np.nan if onset is None else float(onset),
            **_observables(whole.series, step),
        }
        found.append(({name: np.array(value) for name, value in values.items()}, DONE))
    return found


def _observables(series: xr.Dataset, step: int) -> dict[str, float]:
    recent = series.isel(step=slice(max(step - RECENT, 0), step))
    return {name: float(recent[name].mean()) for name in OBSERVABLES}


def stored_committor(attributes: Mapping[str, Any]) -> Committor:
    """Rebuild a committor study from the attributes of its store.

    Raises:
        StoreError: a store of something else, or of another version.
    """
    try:
        configuration = json.loads(attributes["configuration"])
        return Committor(
            name=configuration["name"],
            claim=attributes["claim"],
            base=RunConfig.of_document(configuration["base"]),
            parents=tuple(configuration["parents"]),
            offsets=tuple(configuration["offsets"]),
            forks=configuration["forks"],
            horizon=configuration["horizon"],
            laws=tuple(json.loads(attributes["laws"])),
            device=configuration.get("device", "cpu"),
        )
    except (ValueError, TypeError, KeyError) as error:
        raise StoreError(f"the store holds no committor study of this version: {error}") from error
