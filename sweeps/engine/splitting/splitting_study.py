"""Multilevel splitting of a jump of the learning rate: rare collapses, with their probability unbiased."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy as np

from meanmode.dit.config.run_config import RunConfig
from meanmode.sim.store.files import StoreError, Variable
from meanmode.sim.store.sweep_store import DONE
from meanmode.sweeps.engine.event_study import EVENT_OUTCOME, HELD, TAIL
from meanmode.sweeps.engine.plan import Layout, Measured, check_cells
from meanmode.sweeps.engine.splitting.paths import SERIES_OF_PATHS, Parent, Path
from meanmode.sweeps.engine.study_variables import KINDS
from meanmode.theory.setting import Setting

VARIABLES = {
    "start_step": Variable(definition="steps from the jump to the state that it starts from", units="step"),
    "ancestor": Variable(definition="number of its trajectory in the stage before, NaN: the healthy state"),
    "root": Variable(definition="number of the trajectory of stage 0 that it descends from"),
    "crossing_step": Variable(
        definition="steps from the jump to the level of its stage, in the last stage to the collapse, NaN: "
        "not within the horizon",
        units="step",
    ),
    "stage_probability": Variable(definition="share of the trajectories of its stage that crossed"),
    "highest": Variable(definition="largest level signal on its path: G_mean over its healthy level"),
    "onset_step": Variable(
        definition="steps from the jump to the onset in the last stage, NaN: none, or an earlier stage",
        units="step",
    ),
    **{name: EVENT_OUTCOME[name] for name in ("onset_kind", "last_step", "initial_loss")},
    "healthy_loss": Variable(definition=f"median loss of the last {HELD} steps before the jump"),
    "healthy_g_mean": Variable(definition=f"median G_mean of the last {HELD} steps before the jump"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Trajectory:
    """One trajectory of a stage of a parent."""

    run: RunConfig
    parent: int
    stage: int
    number: int

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
        """Largest number of forward and backward passes of the parent with all its trajectories."""
        return self.run.training.steps


@dataclass(frozen=True, kw_only=True)
class SplittingStudy:
    """P(collapse within a horizon of a jump), by fixed-effort splitting over levels of the mean mode.

    All trajectories of stage 0 start from the healthy state of a parent right before the jump, each with its
    own data order. A trajectory of stage k is followed until its level signal reaches `levels[k]`, at most to
    the horizon. The states at the crossing are shared out among the trajectories of stage k + 1, again with
    data orders of their own; those of the last stage are followed to their collapse. The product of the
    shares that cross is an unbiased estimate of the probability, as the horizon counts from the jump and a
    collapse has crossed every level: the level signal counts as infinite while the deep TCS exceeds 0.9.

    The signal is the root of the sum of the squares of G_mean over all blocks and writers, over its median of
    the last held steps, as the median of a few steps. It rather than 1 - TCS, since G_mean rises by
    orders of magnitude before a collapse, while TCS moves only when the front is in the deeper half.

    Attributes:
        name: name of the claim it measures.
        claim: what it measures, in one line.
        base: the run, with the schedule `jump`.
        parents: seeds of the parents.
        levels: multiples of the healthy G_mean at which trajectories are split, ascending.
        trajectories: number of trajectories per stage.
        horizon: steps after the jump within which a collapse counts.
        laws: tags of the claims compared with it.
        device: torch name of the device to compute on.
        expectation: what the runs are expected to show, stated before them.

    Raises:
        ValueError: no jump, or one within the first `HELD` steps; levels that do not ascend from above 1; no
            trajectories, parents or horizon.
    """

    kind: ClassVar[str] = "splitting_study"

    name: str
    claim: str
    base: RunConfig
    parents: tuple[int, ...]
    levels: tuple[float, ...]
    trajectories: int
    horizon: int
    laws: tuple[str, ...] = ()
    device: str = "cpu"
    expectation: str = ""

    def __post_init__(self) -> None:
        training = self.base.training
        if training.schedule != "jump" or training.first_steps <= HELD:
            raise ValueError(f"{self.name}: the run needs a jump, after more than {HELD} steps")
        if list(self.levels) != sorted({1.0, *self.levels})[1:]:
            raise ValueError(f"levels must ascend from above 1, got {self.levels}")
        for name, count in (
            ("trajectories", self.trajectories),
            ("parents", len(self.parents)),
            ("horizon", self.horizon),
        ):
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        check_cells(len(self.parents) * self.stages * self.trajectories)

    @property
    def stages(self) -> int:
        """Number of stages: one per level, and the last one to the collapse."""
        return len(self.levels) + 1

    @property
    def backward(self) -> bool:
        """True: training has backward passes."""
        return True

    @property
    def grid(self) -> bool:
        """True: parents x stages x trajectories."""
        return True

    @cached_property
    def cells(self) -> tuple[Trajectory, ...]:
        """Every trajectory; those of a parent are adjacent, stage by stage."""
        count = self.stages * self.trajectories
        run = self.base.with_fields({"steps": self.base.training.first_steps + count * self.horizon})
        return tuple(
            Trajectory(run=run, parent=parent, stage=stage, number=number)
            for parent in self.parents
            for stage in range(self.stages)
            for number in range(self.trajectories)
        )

    def units(self) -> list[tuple[int, ...]]:
        """One unit per parent, with all its trajectories."""
        count = self.stages * self.trajectories
        return [tuple(range(first, first + count)) for first in range(0, len(self.cells), count)]

    def coordinates(self) -> dict[str, tuple[list[Any], Variable]]:
        """Parent, stage and number of every cell."""
        about = {
            "parent": "Seed of weights and data of the parent",
            "stage": "Stage; the last one leads to the collapse",
            "number": "Number of the trajectory in its stage",
        }
        return {
            name: ([getattr(cell, name) for cell in self.cells], Variable(definition=definition))
            for name, definition in about.items()
        }

    def configuration(self) -> dict[str, Any]:
        """Everything that determines the numbers, and the expectation, JSON-serialisable."""
        configuration = {
            "name": self.name,
            "base": self.base.document(),
            "parents": list(self.parents),
            "levels": list(self.levels),
            "trajectories": self.trajectories,
            "horizon": self.horizon,
        }
        if self.device != "cpu":
            configuration["device"] = self.device
        return configuration | ({"expectation": self.expectation} if self.expectation else {})

    def with_options(
        self,
        options: Any,
        seeds: int | None = None,
        *,
        ensemble: int | None = None,
        device: str | None = None,
    ) -> "SplittingStudy":
        """The study with its first parents only, or on another device.

        Raises:
            ValueError: an option of synthetic stacks, an ensemble size, or more parents than there are.
        """
        if options or ensemble is not None:
            raise ValueError(f"{self.name} takes no options of stacks and no --ensemble: leave them out")
        if seeds is not None and seeds > len(self.parents):
            raise ValueError(f"{self.name} has {len(self.parents)} parents, got --seeds {seeds}")
        device = self.device if device is None else device
        return dataclasses.replace(self, parents=self.parents[:seeds], device=device)

    def layout(self) -> Layout:
        """What the store holds; steps are counted from the jump. There is no forecast."""
        return Layout(
            sizes={"since_jump": range(1 - HELD, self.horizon + TAIL + 1)},
            variables={**VARIABLES, **SERIES_OF_PATHS},
            forecasts={},
            witness="healthy_loss",
        )

    def forecast_rows(self) -> list[dict[str, Any]]:
        """No forecast."""
        return []

    def measure(self) -> Callable[[Sequence[tuple[int, Trajectory]]], Measured]:
        """A picklable function that computes all trajectories of a parent."""
        return partial(split, study=self)


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a trajectory starts.

    Attributes:
        path: what it inherits.
        ancestor: number of its trajectory in the stage before; NaN in stage 0.
        root: number of the trajectory of stage 0 that it descends from.
    """

    path: Path
    ancestor: float
    root: int


def split(cells: Sequence[tuple[int, Trajectory]], *, study: SplittingStudy) -> Measured:
    """Compute all stages of a parent; the trajectories of stages that nothing reaches hold no numbers."""
    seed, count = cells[0][1].parent, study.trajectories
    parent = Parent(study.base, seed, study.horizon, study.device)
    held = parent.held.rows
    common: dict[str, Any] = {
        **dict.fromkeys(VARIABLES, np.nan),
        "onset_kind": KINDS.index("none"),
        "initial_loss": parent.initial_loss,
        "healthy_loss": np.median(held["loss"]),
        "healthy_g_mean": np.median(held["g_mean"]),
    }
    found: dict[tuple[int, int], dict[str, Any]] = {}
    starts = [Start(path=parent.held, ancestor=np.nan, root=number) for number in range(count)]
    for stage in range(study.stages):
        level = study.levels[stage] if stage < len(study.levels) else None
        crossed: dict[int, Start] = {}
        for number, start in enumerate(starts):
            values, path = _followed(parent, start, data_order_seed(seed, stage, number), level)
            found[stage, number] = values
            if np.isfinite(values["crossing_step"]):
                crossed[number] = Start(path=path, ancestor=number, root=start.root)
        for number in range(len(starts)):
            found[stage, number]["stage_probability"] = len(crossed) / count
        random = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stage,)))
        starts = shared_out(list(crossed.values()), count, random)
    done: Measured = []
    for _, cell in cells:
        series = dict.fromkeys(SERIES_OF_PATHS, np.empty(0))
        values = {**common, **series, **found.get((cell.stage, cell.number), {})}
        missing = study.horizon + TAIL + HELD - len(values["loss"])
        ends = {name: np.pad(values[name], (0, missing), constant_values=np.nan) for name in SERIES_OF_PATHS}
        done.append(({name: np.array(value) for name, value in (values | ends).items()}, DONE))
    return done


def _followed(
    parent: Parent, start: Start, data_seed: int, level: float | None
) -> tuple[dict[str, Any], Path]:
    """Follow a trajectory to a level, or without one to its collapse; its variables and its path."""
    about: dict[str, Any] = {"start_step": start.path.step, "ancestor": start.ancestor, "root": start.root}
    if level is None:
        path, onset = parent.to_collapse(start.path, data_seed)
        step = np.nan if onset.step is None else onset.step
        counts = onset.kind == "mean_mode" and step <= parent.horizon
        about |= {"onset_step": step, "onset_kind": KINDS.index(onset.kind)}
        about["crossing_step"] = step if counts else np.nan
    else:
        path, crossing = parent.to_level(start.path, data_seed, level)
        about["crossing_step"] = np.nan if crossing is None else crossing
    return {**about, "highest": path.signal().max(), "last_step": path.step, **path.rows}, path


def data_order_seed(parent: int, stage: int, number: int) -> int:
    """Seed of the data order of a trajectory, its own for every parent, stage and number."""
    return int(np.random.SeedSequence(parent, spawn_key=(stage, number)).generate_state(1)[0] // 2)


def shared_out(crossed: Sequence[Start], count: int, random: np.random.Generator) -> list[Start]:
    """Starts of the next stage: every state equally often, the remainder drawn at random; none from none."""
    if not crossed:
        return []
    whole, rest = divmod(count, len(crossed))
    drawn = np.sort(random.choice(len(crossed), rest, replace=False))
    return [*(start for start in crossed for _ in range(whole)), *(crossed[index] for index in drawn)]


def stored_splitting(attributes: Mapping[str, Any]) -> SplittingStudy:
    """Rebuild a splitting study from the attributes of its store.

    Raises:
        StoreError: a store of something else, or of another version.
    """
    try:
        configuration = json.loads(attributes["configuration"])
        return SplittingStudy(
            name=configuration["name"],
            claim=attributes["claim"],
            base=RunConfig.of_document(configuration["base"]),
            parents=tuple(configuration["parents"]),
            levels=tuple(configuration["levels"]),
            trajectories=configuration["trajectories"],
            horizon=configuration["horizon"],
            laws=tuple(json.loads(attributes["laws"])),
            device=configuration.get("device", "cpu"),
            expectation=configuration.get("expectation", ""),
        )
    except (ValueError, TypeError, KeyError) as error:
        raise StoreError(f"the store holds no splitting study of this version: {error}") from error
