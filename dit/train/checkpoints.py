"""Checkpoints of a training run: written atomically, kept as asked, and found again once verified."""

import contextlib
import json
import math
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from numpy.typing import NDArray
from torch import Tensor

from meanmode.dit.config.run_config import RunConfig
from meanmode.dit.model.network import DiT
from meanmode.dit.train.checkpoint_files import (
    MANIFEST,
    NOTES,
    WATCH,
    checkpoint_folders,
    configuration_of,
    damage,
    digest_of,
    folder_of,
    foreign,
    has_average,
    load_tensors,
    quiet,
    step_of,
    why_failed,
)
from meanmode.dit.train.checkpoint_reader import read_table, shapes_differ
from meanmode.dit.train.run_folder import CHECKPOINTS, CONFIGURATION, WEIGHTS, read_configuration
from meanmode.sim.store.files import StoreError

PARTIAL, DELETED, REPLACED = "partial", "deleted", "replaced"
"""Suffixes of hidden folders: a checkpoint that is being written, is being deleted, or makes way for another
of its step."""

SAID = {CHECKPOINTS: "checkpoint", WEIGHTS: "weights"}
"""Folder of checkpoints -> what an error message calls one of them."""

Tell = Callable[[str], object]
"""Receives a message about each checkpoint that is skipped."""


def _hidden(checkpoint: Path, suffix: str) -> Path:
    return checkpoint.with_name(f".{checkpoint.name}.{suffix}")


def save(
    run: Path,
    step: int,
    state: Mapping[str, Tensor],
    *,
    notes: Mapping[str, Any],
    watch: Mapping[str, NDArray[Any]],
    keep: int,
    verified: set[Path] | None = None,
    within: str = CHECKPOINTS,
) -> Path:
    """Write the checkpoint of a step and delete old ones; every process calls this.

    It is written to a temporary folder, with a digest of every file, and renamed once it is complete. Then
    the run's own checkpoints before its last `keep` intact ones are deleted. Those of later steps and of
    other runs do not count and stay.

    Args:
        run: folder of the run.
        step: number of steps made.
        state: tensors by name, plain or sharded.
        notes: JSON document with the configuration and other facts about the run.
        watch: state of the measurements, as small arrays by name.
        keep: number of checkpoints to keep.
        verified: checkpoints known to be intact, which need not be read again; those found intact are added.
        within: folder of the run that holds them: `CHECKPOINTS` or `WEIGHTS`.

    Raises:
        StoreError: the disk is full, or another file system error; earlier checkpoints are intact.
    """
    final = folder_of(run, step, within)
    partial = _hidden(final, PARTIAL)
    known = set() if verified is None else verified

    def prepare() -> None:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)

    def finish() -> None:
        own = RunConfig.of_document(notes["configuration"])
        _complete(partial, {**notes, "step": step}, watch)
        _put_in_place(partial, final, own)
        known.add(final)
        delete_before(run, step, own, keep, known, within)

    phases: tuple[tuple[Callable[[], None], bool], ...] = (
        (prepare, False),
        (lambda: _save_tensors(state, partial), True),
        (finish, False),
    )
    # a phase begins only after all processes have been through the one before, or all end here
    why = next(filter(None, (_attempted(phase, everywhere) for phase, everywhere in phases)), "")
    if why:
        if _is_first():
            shutil.rmtree(partial, ignore_errors=True)
        raise StoreError(
            f"the {SAID[within]} of step {step} could not be written to {run} ({why}); earlier checkpoints "
            "are intact: fix the problem and resume with --resume"
        )
    return final


def _is_first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def _attempted(action: Callable[[], None], everywhere: bool) -> str:
    """Do something on the first or on all processes; return why it failed on any, or nothing."""
    failure = ""
    if everywhere or _is_first():
        try:
            action()
        except (OSError, RuntimeError, dcp.api.CheckpointException) as error:
            failure = why_failed(error)
    found: list[Any] = [failure]
    if dist.is_initialized():
        found = [None] * dist.get_world_size()
        dist.all_gather_object(found, failure)
    return next(filter(None, found), "")


def _save_tensors(state: Mapping[str, Tensor], folder: Path) -> None:
    with quiet():
        dcp.save(dict(state), storage_writer=dcp.FileSystemWriter(folder), no_dist=not dist.is_initialized())


def _complete(partial: Path, notes: Mapping[str, Any], watch: Mapping[str, NDArray[Any]]) -> None:
    """Write the files of a checkpoint besides its tensors; the digests of all files come last."""
    (partial / NOTES).write_text(json.dumps(notes))
    with (partial / WATCH).open("wb") as file:
        np.savez(file, **watch)
    digests = {file.name: digest_of(file) for file in sorted(partial.iterdir())}
    (partial / MANIFEST).write_text(json.dumps(digests))


def _put_in_place(partial: Path, final: Path, own: RunConfig) -> None:
    """Give a complete checkpoint its name; another run's checkpoint of that name is renamed, not deleted."""
    replaced = _hidden(final, REPLACED)
    if os.path.lexists(final):
        if foreign(final, own):
            names = (f"set-aside-{number}-{final.name}" for number in range(1, 10**6))
            replaced = next(path for path in map(final.with_name, names) if not os.path.lexists(path))
        final.rename(replaced)
    partial.rename(final)
    if replaced == _hidden(final, REPLACED):
        shutil.rmtree(replaced, ignore_errors=True)


def _delete(checkpoint: Path) -> None:
    """Delete a checkpoint; killed in between, it leaves a hidden folder, never half a checkpoint."""
    gone = _hidden(checkpoint, DELETED)
    with contextlib.suppress(OSError):
        checkpoint.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def delete_before(
    run: Path, step: int, own: RunConfig, keep: int, verified: set[Path], within: str = CHECKPOINTS
) -> None:
    """Delete the checkpoints of a run before its last `keep` intact ones, up to the given step.

    Args as for `save`; `own` is the configuration of the run, whose checkpoints alone count.
    """
    intact = 0
    for path in reversed(checkpoint_folders(run, within)):
        if step_of(path) > step or (path not in verified and foreign(path, own)):
            continue
        if intact >= keep:
            _delete(path)
            verified.discard(path)
        elif path in verified or not damage(path):
            verified.add(path)
            intact += 1


def tidy(run: Path) -> None:
    """Delete what a killed process left of writing or deleting checkpoints, and undo half a replacement."""
    for path in (path for within in SAID for path in (run / within).glob(".step-*")):
        name, _, suffix = path.name[1:].rpartition(".")
        if suffix == REPLACED and not os.path.lexists(path.with_name(name)):
            path.rename(path.with_name(name))
        elif suffix in (PARTIAL, DELETED, REPLACED):
            shutil.rmtree(path, ignore_errors=True)


def delete_after(run: Path, step: int, own: RunConfig, within: str = CHECKPOINTS) -> None:
    """Delete the checkpoints of a run after a step."""
    for path in checkpoint_folders(run, within):
        if step_of(path) > step and not foreign(path, own):
            _delete(path)


def last_checkpoint(
    run: Path,
    tell: Tell,
    before: float = math.inf,
    *,
    own: RunConfig | None = None,
    verified: set[Path] | None = None,
) -> Path | None:
    """Return the last intact checkpoint of a run; None if there is none.

    Args:
        run: folder of the run.
        tell: called with a message about each checkpoint that is skipped.
        before: only consider checkpoints of steps before this one.
        own: configuration of the run; checkpoints of other runs are skipped. None accepts any.
        verified: checkpoints known to be intact; the one that is returned is added.
    """
    for path in reversed([path for path in checkpoint_folders(run) if step_of(path) < before]):
        if verified is not None and path in verified:
            return path
        wrong = damage(path)
        if not wrong and own is not None:
            other = foreign(path, own)
            wrong = f"it belongs to another run ({other})" if other else ""
        if not wrong:
            if verified is not None:
                verified.add(path)
            return path
        tell(f"skipping checkpoint {path}: {wrong}")
    return None


def find_checkpoint(path: Path, tell: Tell) -> Path:
    """Return the checkpoint at a path: the path itself, or the last intact checkpoint of a run's folder.

    Raises:
        StoreError: there is no checkpoint, or it is damaged.
    """
    if not path.exists():
        raise StoreError(f"{path} does not exist")
    if os.path.lexists(path / MANIFEST):
        wrong = damage(path)
        if wrong:
            raise StoreError(f"checkpoint {path} is damaged: {wrong}")
        return path
    own = read_configuration(path) if os.path.lexists(path / CONFIGURATION) else None
    skipped: list[str] = []
    found = last_checkpoint(path, skipped.append, own=own)
    if found is None:
        raise StoreError(": ".join([f"{path} holds no intact checkpoint", *skipped[:1]]))
    for sentence in skipped:
        tell(sentence)
    return found


def load_network(path: Path, *, ema: bool, damaged: Tell = warnings.warn) -> tuple[RunConfig, DiT]:
    """Load the network of a checkpoint, without its optimiser.

    Args:
        path: folder of a checkpoint, or of a run, whose last intact checkpoint is used.
        ema: whether to load the moving average of the weights, if the checkpoint has one.
        damaged: called with a message about each damaged checkpoint that is skipped.

    Returns:
        The configuration of the run and its network.

    Raises:
        StoreError: there is no checkpoint, or it is damaged.
    """
    checkpoint = find_checkpoint(path, damaged)
    run = configuration_of(checkpoint)
    entry = "ema" if ema and has_average(checkpoint) else "weight"
    wrong = _mismatch(checkpoint, run, entry)
    if wrong:
        raise StoreError(f"{checkpoint} does not match its configuration: {wrong}")
    network = DiT(run.model)
    load_tensors(
        checkpoint, {f"{entry}.{name}": weight.detach() for name, weight in network.named_parameters()}
    )
    return run, network


def _mismatch(checkpoint: Path, run: RunConfig, entry: str) -> str:
    """Return how the tensors of a checkpoint differ from those of its network, before any memory is taken."""
    table = read_table(checkpoint)
    if run.model.depth > len(table.state_dict_metadata):
        return f"it has {len(table.state_dict_metadata)} tensors for {run.model.depth} blocks"
    try:
        with torch.device("meta"):
            network = DiT(run.model)
    except RuntimeError as error:
        return why_failed(error)
    wanted = {f"{entry}.{name}": weight.shape for name, weight in network.named_parameters()}
    return shapes_differ(table, wanted)
