"""Where a run starts: from nothing, from its own last checkpoint, or from a checkpoint of another run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meanmode.dit.config.run_config import RunConfig
from meanmode.dit.train.checkpoint_files import (
    WEIGHTS_ONLY,
    checkpoint_folders,
    configuration_of,
    damage,
    notes_of,
)
from meanmode.dit.train.checkpoints import find_checkpoint, last_checkpoint
from meanmode.dit.train.run_folder import read_configuration
from meanmode.sim.store.files import StoreError
from meanmode.sim.store.opening import json_attribute
from meanmode.sim.store.run_reader import TELEMETRY, open_logged

Tell = Callable[[str], object]


@dataclass(frozen=True, kw_only=True, slots=True)
class StartingPoint:
    """Where a run starts.

    Attributes:
        checkpoint: checkpoint whose weights, moments and step are loaded; None starts from fresh weights.
        notes: notes of that checkpoint.
        resumed: whether the checkpoint is one of the run itself, whose measurements continue.
        anew: whether what the run has made so far is set aside.
        origin: checkpoint, step and configuration that a fork starts from; empty otherwise.
    """

    checkpoint: Path | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    resumed: bool = False
    anew: bool = False
    origin: Mapping[str, Any] = field(default_factory=dict)


def forked(run: RunConfig, fork: Path, tell: Tell, *, anew: bool = False) -> StartingPoint:
    """Start a new run from a checkpoint, or from the last checkpoint of another run.

    Args:
        run: configuration of the new run.
        fork: folder of the checkpoint or of the other run.
        tell: called with a message about each checkpoint that is skipped.
        anew: as in `StartingPoint`.

    Raises:
        StoreError: there is no intact checkpoint, it holds a different network, or it holds no moments.
        ValueError: the checkpoint is at the last step of the new run, or after it.
    """
    checkpoint = find_checkpoint(fork, tell)
    notes, before = notes_of(checkpoint), configuration_of(checkpoint)
    if notes.get(WEIGHTS_ONLY):
        raise StoreError(
            f"{checkpoint} holds weights without the moments of the optimiser, so no run can start from it: "
            "fork from one of the checkpoints of its run"
        )
    if before.model != run.model:
        raise StoreError(f"{checkpoint} holds a different network than the configuration: {before.model}")
    if notes["step"] >= run.training.steps:
        raise ValueError(f"{checkpoint} is already at step {notes['step']}: set steps to more than that")
    origin = {
        "checkpoint": str(checkpoint),
        "step": notes["step"],
        "configuration": notes["configuration"],
    }
    return StartingPoint(checkpoint=checkpoint, notes=notes, anew=anew, origin=origin)


def resumed(run: RunConfig, out: Path, tell: Tell, *, begin_anew: bool, verified: set[Path]) -> StartingPoint:
    """Resume a run from its last intact checkpoint, or begin it again.

    A run that was stopped before its first checkpoint starts where it once began. One that has lost all of
    its checkpoints does so only if asked to.

    Args:
        run: configuration of the run.
        out: folder of the run.
        tell: called with a message about each checkpoint that is skipped.
        begin_anew: whether to begin again if no checkpoint is intact, and to set aside what there is.
        verified: checkpoints found to be intact are added.

    Raises:
        StoreError: the run has lost its checkpoints, or is a fork of a checkpoint that is gone.
    """
    skipped: list[str] = []
    checkpoint = last_checkpoint(out, skipped.append, own=run, verified=verified)
    if checkpoint is not None and begin_anew:
        raise StoreError(f"{checkpoint} is intact: leave out --begin-anew to resume from it")
    if checkpoint is not None:
        for sentence in skipped:
            tell(sentence)
        return StartingPoint(checkpoint=checkpoint, notes=notes_of(checkpoint), resumed=True)
    group, logged = open_logged(out / TELEMETRY, "r")
    lost = _lost(out, logged, skipped)
    if lost and not begin_anew:
        raise StoreError(
            f"{out} {lost}: restore one, or pass --begin-anew with --resume to train it again from its "
            "beginning, which keeps its telemetry and checkpoints in a folder beside the new ones"
        )
    origin = json_attribute(group, out / TELEMETRY, "origin", dict) if "origin" in group.attrs else {}
    start = StartingPoint(anew=bool(lost))
    if origin:
        start = forked(run, _origin(out, origin), tell, anew=bool(lost))
    if not lost:
        tell(f"{out} was stopped before its first checkpoint: starting where it began")
    return start


def _lost(out: Path, logged: range, skipped: list[str]) -> str:
    """Say what became of the checkpoints of a run that has no intact one; empty if it never had any."""
    if checkpoint_folders(out):
        return f"holds no intact checkpoint of its own ({skipped[0]})"
    every = read_configuration(out).training.checkpoint_every
    first = -(-logged.start // every) * every
    if logged.stop - 1 > first:
        return f"has logged {logged.stop - 1} steps, but its checkpoints are gone"
    return ""


def _origin(out: Path, origin: Mapping[str, Any]) -> Path:
    """Return the checkpoint that a fork started from, once it is found unchanged."""
    checkpoint = Path(str(origin.get("checkpoint")))
    if not damage(checkpoint):
        notes = notes_of(checkpoint)
        if all(notes[name] == origin.get(name) for name in ("step", "configuration")):
            return checkpoint
    raise StoreError(
        f"{out} has no checkpoint of its own and began at one that is no longer there, {checkpoint}: restore "
        "that one, or fork from another one into another --out"
    )
