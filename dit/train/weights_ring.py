"""The weights of a run's last steps, kept on disk in a ring that stops turning around its first event."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from meanmode.dit.config.run_config import RunConfig
from meanmode.dit.train.checkpoint_files import WEIGHTS_ONLY
from meanmode.dit.train.checkpoints import delete_after, delete_before, save
from meanmode.dit.train.processes import Processes
from meanmode.dit.train.run_folder import WEIGHTS

UNTIL = "weights_until"
"""Note of a checkpoint: last step whose weights are kept, once there was an event."""


class WeightsRing:
    """Checkpoints without moments of the last `weights_ring` steps, in the folder `WEIGHTS` of a run.

    The weights of a step are those after its update. An event stops the ring: it turns for another
    `weights_ring // 2` steps, and later events change nothing. At no time are there more than `weights_ring`
    states, the one that is being written included. Every process of the run calls all methods.

    Args:
        run: configuration of the run.
        out: folder of the run.
        processes: processes that share the run.
        verified: checkpoints known to be intact, which need not be read again; those found intact are added.
    """

    def __init__(self, run: RunConfig, out: Path, processes: Processes, verified: set[Path]) -> None:
        self._run, self._out, self._processes, self._verified = run, out, processes, verified
        self._size = run.training.weights_ring
        self._notes = {"configuration": run.document(), WEIGHTS_ONLY: True}
        self._until = 0

    def begin(self, step: int, notes: Mapping[str, Any]) -> None:
        """Continue after a step, and delete the weights of later ones.

        Args:
            step: last step of the run that remains valid.
            notes: notes of the run's checkpoint of this step; empty at its beginning.
        """
        self._until = notes.get(UNTIL, 0)
        if self._size:
            self._processes.first(lambda: delete_after(self._out, step, self._run, WEIGHTS))

    def turn(self, step: int, weights: Mapping[str, Tensor], *, event: bool) -> None:
        """Keep the weights after a step, unless the ring has stopped.

        Args:
            step: number of the step.
            weights: parameters by name, plain or sharded.
            event: whether the step raised an alarm or carried the token cosine over the front's threshold.

        Raises:
            StoreError: the disk is full, or another file system error.
        """
        if not self._size:
            return
        if event and not self._until:
            self._until = step + self._size // 2
            self._processes.tell(
                f"weights are kept up to step {self._until}, around the event of step {step}, in "
                f"{self._out / WEIGHTS}"
            )
        if self._until and step > self._until:
            return
        # the oldest go first, so that the new ones find room
        self._processes.first(
            lambda: delete_before(self._out, step, self._run, self._size - 1, self._verified, WEIGHTS)
        )
        save(
            self._out,
            step,
            {f"weight.{name}": weight.detach() for name, weight in weights.items()},
            notes=self._notes,
            watch={},
            keep=self._size,
            verified=self._verified,
            within=WEIGHTS,
        )

    def notes(self) -> dict[str, int]:
        """Return what a checkpoint notes of the ring; empty unless an event has stopped it."""
        return {UNTIL: self._until} if self._until else {}
