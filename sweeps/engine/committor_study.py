"""The committor: a state of training forked many ways, and how many of the forks collapse."""

# F forks of a state, S states of a parent

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import xarray as xr

from meanmode.dit.config.run_config import RunConfig
from meanmode.dit.config.signals import SIGNALS
from meanmode.dit.train.ensemble_runs import Measured, train_runs
from meanmode.sim.onset.training_onset import initial_level
from meanmode.sim.store.files import StoreError, Variable
from meanmode.sim.store.sweep_store import DONE
from meanmode.sweeps.engine.plan import Layout
from meanmode.sweeps.engine.plan import Measured as MeasuredCells
from meanmode.sweeps.engine.study_variables import SERIES
from meanmode.theory.setting import Setting

RECENT = 10
"""Steps up to a state over which its observables are averaged."""


FORK_SEED = 1_000_000
"""Data seeds of forks are counted from it, so that no parent has one of them."""


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
        """Of its stack."""
        return self.run.model.setting(self.run.training.batch)

    @property
    def seed(self) -> int:
        """Of the parent."""
        return self.parent

    @property
    def passes(self) -> int:
        """Forward and backward passes, at most."""
        return self.run.training.steps


@dataclass(frozen=True, kw_only=True)
class Committor:
    """P(collapse within a horizon | state), the states lying at fixed distances before a parent's onset.

    A parent that does not collapse has its states at the same distances before its last step.

    Attributes:
        name: of the claim it measures.
        claim: what it measures, in one line.
        base: the parent; its rate is held.
        parents: seeds of the parents.
        offsets: steps before the onset, descending.
        forks: of every state, each with a data order of its own.
        horizon: steps that a fork is followed.
        laws: tags of the claims compared with it.
        device: where to compute, as torch names it.
    """

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
        """Training has backward passes."""
        return True

    @property
    def grid(self) -> bool:
        """Parent by offset by fork."""
        return True

    @cached_property
    def cells(self) -> tuple[Fork, ...]:
        """Every fork, those of a state beside each other."""
        # what the parent takes, twice, is shared out over the forks
        parent = 2 * self.base.training.steps // (len(self.offsets) * self.forks)
        follow = self.base.with_fields({"steps": parent + self.horizon})
        return tuple(
            Fork(run=follow, parent=parent, offset=offset, fork=fork)
            for parent in self.parents
            for offset in self.offsets
            for fork in range(self.forks)
        )

    def units(self) -> list[tuple[int, ...]]:
        """All forks of a parent."""
        count = len(self.offsets) * self.forks
        return [tuple(range(first, first + count)) for first in range(0, len(self.cells), count)]

    def coordinates(self) -> dict[str, tuple[list[Any], Variable]]:
        """Parent, offset and fork."""
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
        """All that determines the numbers, JSON-serialisable."""
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
        """With other parents.

        Raises:
            ValueError: an option of synthetic stacks, or an ensemble: that is all forks of a parent.
        """
        if options or ensemble is not None:
            raise ValueError(f"{self.name} takes no options of stacks and no ensemble but its own")
        parents = self.parents if seeds is None else tuple(range(seeds))
        return dataclasses.replace(self, parents=parents, device=self.device if device is None else device)

    def layout(self) -> Layout:
        """What the store holds."""
        return Layout(sizes={}, variables=VARIABLES, forecasts={}, witness="state_step")

    def forecast_rows(self) -> list[dict[str, Any]]:
        """None: which observable predicts it is the question."""
        return []

    def measure(self) -> Callable[[Sequence[tuple[int, Fork]]], MeasuredCells]:
        """What forks the states of a parent."""
        return partial(forked, base=self.base, horizon=self.horizon, device=self.device)


def forked(cells: Sequence[tuple[int, Fork]], *, base: RunConfig, horizon: int, device: str) -> MeasuredCells:
    """Train a parent, train it again up to its states, and follow all forks of these."""
    offsets = list(dict.fromkeys(cell.offset for _, cell in cells))
    forks = 1 + max(cell.fork for _, cell in cells)
    parent = base.with_fields({"seed": cells[0][1].parent, "data_seed": cells[0][1].parent})
    (whole,) = train_runs([parent], functional_every=1, signals_every=1, device=device)
    onset = whole.onset.step if whole.onset.kind == "mean_mode" else None
    end = whole.series.sizes["step"] if onset is None else onset
    steps = [max(end - offset, RECENT) for offset in offsets]
    (again,) = train_runs([parent.with_fields({"steps": max(steps)})], keep_states=steps, device=device)
    first_seed = FORK_SEED + cells[0][1].parent * forks
    outcomes: dict[tuple[int, int], Measured] = {}
    for offset, step in zip(offsets, steps, strict=True):
        # the schedule knows the step; behind the warm-up all rates are one
        followed = train_runs(
            [
                parent.with_fields({"steps": step + horizon, "data_seed": first_seed + fork})
                for fork in range(forks)
            ],
            begin=[again.states[step]] * forks,
            behind=step,
            initial_loss=initial_level(whole.series),
            device=device,
        )
        outcomes |= {(offset, fork): measured for fork, measured in enumerate(followed)}
    found: MeasuredCells = []
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
    """The committor of the attributes of its store.

    Raises:
        StoreError: one of another version.
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
        raise StoreError(f"the store holds no committor of this version: {error}") from error
