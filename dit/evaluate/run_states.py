"""The states of a run on disk that can be measured again: its checkpoints and its ring of weights."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from meanmode.dit.config.run_config import RunConfig
from meanmode.dit.train.checkpoint_files import (
    MANIFEST,
    checkpoint_folders,
    configuration_of,
    damage,
    has_average,
    notes_of,
    step_of,
)
from meanmode.dit.train.checkpoints import find_checkpoint
from meanmode.dit.train.run_folder import (
    CHECKPOINTS,
    CONFIGURATION,
    WEIGHTS,
    difference,
    read_configuration,
)
from meanmode.sim.store.files import StoreError

SHOWN = 10
"""Largest number of steps listed in an error message."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RunStates:
    """The states of a run, or the one of a single checkpoint.

    Attributes:
        run: configuration of the run.
        path: folder of the run or of the checkpoint, as it was given.
        folder: folder of the run; None for a checkpoint that lies in no run.
        by_step: step -> folder of the checkpoint that holds the weights after it, in order.
    """

    run: RunConfig
    path: Path
    folder: Path | None
    by_step: dict[int, Path]

    def at(self, wanted: Sequence[range]) -> "RunStates":
        """Return the states at some steps.

        Args:
            wanted: stretches of steps, each with at least one state.

        Raises:
            ValueError: a stretch has none.
        """
        for steps in wanted:
            if not any(step in steps for step in self.by_step):
                asked = f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"
                raise ValueError(f"{self.path} has no state of {asked}, only of {self._steps()}")
        chosen = {step: of for step, of in self.by_step.items() if any(step in steps for steps in wanted)}
        return dataclasses.replace(self, by_step=chosen)

    def _steps(self) -> str:
        steps = list(map(str, self.by_step))
        return ", ".join(steps[:SHOWN]) + (f", ... {steps[-1]}" if len(steps) > SHOWN else "")

    def check(self, *, ema: bool) -> None:
        """Read all states through before the first of them is measured.

        Args:
            ema: whether their moving averages of the weights are needed.

        Raises:
            StoreError: a state is damaged, belongs to another run, or lacks its average.
        """
        for step, state in self.by_step.items():
            wrong = damage(state)
            if wrong:
                raise StoreError(f"{state} is damaged: {wrong}; leave out step {step} with --steps")
            other = difference(configuration_of(state), self.run)
            if other:
                raise StoreError(f"{state} belongs to another run ({other}): leave out step {step}")
            if ema and not has_average(state):
                raise StoreError(f"{state} has no moving average of the weights: leave out --ema")


def states_of(path: Path) -> RunStates:
    """Find the states of a run, or take a single checkpoint as the only one.

    Of a step with both a checkpoint and kept weights, the checkpoint is taken.

    Raises:
        StoreError: neither a run nor a checkpoint, a run without states, or a damaged checkpoint.
    """
    if os.path.lexists(path / MANIFEST) or not path.exists():
        checkpoint = find_checkpoint(path, lambda skipped: None)
        above = path.absolute().parent.parent
        return RunStates(
            run=configuration_of(checkpoint),
            path=path,
            folder=above if (above / CONFIGURATION).is_file() else None,
            by_step={notes_of(checkpoint)["step"]: checkpoint},
        )
    run = read_configuration(path)
    found = {step_of(of): of for kind in (WEIGHTS, CHECKPOINTS) for of in checkpoint_folders(path, kind)}
    if not found:
        raise StoreError(f"{path} holds no states to measure: it has neither checkpoints nor weights")
    return RunStates(run=run, path=path, folder=path, by_step=dict(sorted(found.items())))
