"""Checkpoints of a training run: sharded, written atomically, and verified before they are read."""

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
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from numpy.typing import NDArray
from torch import Tensor, nn

from meanmode.dit.config.run_config import DATA, RunConfig
from meanmode.dit.model.network import DiT
from meanmode.sim.store.files import StoreError, StoreExistsError, file_digest, reason

CONFIGURATION, CHECKPOINTS, TELEMETRY = "config.json", "checkpoints", "telemetry.zarr"
"""Names in the folder of a run."""


MANIFEST, NOTES, WATCH = "manifest.json", "run.json", "watch.npz"
"""Files of a checkpoint besides its tensors: digests of all files; configuration, step and other notes; the
state of the measurements that is kept in memory."""


SCALE_FIELDS = (
    "steps keep checkpoint_every stop_on on_alarm alarm_factor accumulation recompute recompute_of sharding "
    "compile"
).split()
"""Training fields that may change when a run is resumed."""


Damaged = Callable[[str], object]
"""Receives a message about each damaged checkpoint that is skipped."""


def folder_of(run: Path, step: int) -> Path:
    """Return the path of the checkpoint of a step."""
    return run / CHECKPOINTS / f"step-{step:08d}"


def _everyone() -> None:
    if dist.is_initialized():
        dist.barrier()


def _is_first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def save(
    run: Path,
    step: int,
    state: Mapping[str, Tensor],
    *,
    notes: Mapping[str, Any],
    watch: Mapping[str, NDArray[Any]],
    keep: int,
) -> Path:
    """Write the checkpoint of a step and delete all but the last `keep`; every process calls this.

    It is written to a temporary folder, with a digest of every file, and renamed once it is complete.

    Args:
        run: folder of the run.
        step: number of steps made.
        state: tensors by name, plain or sharded.
        notes: JSON document with the configuration and other facts about the run.
        watch: state of the measurements, as small arrays by name.
        keep: number of checkpoints to keep.

    Raises:
        StoreError: the disk is full, or another file system error; earlier checkpoints are intact.
    """
    final = folder_of(run, step)
    partial = final.with_name(f".{final.name}.partial")
    failure = ""
    try:
        if _is_first():
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        _everyone()
        _save_tensors(state, partial)
        if _is_first():
            (partial / NOTES).write_text(json.dumps({**notes, "step": step}))
            with (partial / WATCH).open("wb") as file:
                np.savez(file, **watch)
            digests = {file.name: file_digest(file, "blake2b") for file in sorted(partial.iterdir())}
            (partial / MANIFEST).write_text(json.dumps(digests))
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            for old in checkpoint_folders(run)[:-keep]:
                shutil.rmtree(old)
    except (OSError, RuntimeError, dcp.api.CheckpointException) as error:
        failure = _why(error)
    if any(_gathered(failure)):
        if _is_first():
            shutil.rmtree(partial, ignore_errors=True)
        why = next(filter(None, _gathered(failure)))
        raise StoreError(
            f"the checkpoint of step {step} could not be written to {run} ({why}); earlier checkpoints are "
            "intact: fix the problem and resume with --resume"
        )
    return final


def _gathered(value: str) -> list[str]:
    if not dist.is_initialized():
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def _why(error: BaseException) -> str:
    """Return the error message of the operating system, if there is one."""
    if isinstance(error, dcp.api.CheckpointException):
        error = next((cause for cause, _ in error.failures.values()), error)
    while error.__cause__ is not None:
        error = error.__cause__
    return (
        reason(error) if isinstance(error, OSError) else " ".join(str(error).split()) or type(error).__name__
    )


@contextlib.contextmanager
def _quiet() -> Any:
    """Suppress warnings of torch about saving and loading on a single process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.distributed is (disabled|unavailable).*")
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
        yield


def _save_tensors(state: Mapping[str, Tensor], folder: Path) -> None:
    with _quiet():
        dcp.save(dict(state), storage_writer=dcp.FileSystemWriter(folder), no_dist=not dist.is_initialized())


def checkpoint_folders(run: Path) -> list[Path]:
    """Return the paths of all finished checkpoints, by step; they may have been damaged since."""
    return sorted(path for path in (run / CHECKPOINTS).glob("step-*") if path.is_dir())


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def delete_after(run: Path, step: int) -> None:
    """Delete the checkpoints of all later steps."""
    for path in checkpoint_folders(run):
        if _step_of(path) > step:
            shutil.rmtree(path)


def damage(checkpoint: Path) -> str:
    """Return what is wrong with the files of a checkpoint; empty if they are intact."""
    try:
        digests = json.loads((checkpoint / MANIFEST).read_text())
        for name, digest in digests.items():
            if file_digest(checkpoint / name, "blake2b") != digest:
                return f"{name} is damaged"
        if not {NOTES, WATCH, ".metadata"} <= digests.keys():
            return f"{MANIFEST} is incomplete"
    except (OSError, ValueError, AttributeError) as error:
        return (
            reason(error) + f" ({Path(error.filename).name})"
            if isinstance(error, FileNotFoundError)
            else (f"{MANIFEST} is unreadable")
        )
    return ""


def last_checkpoint(run: Path, damaged: Damaged, before: float = math.inf) -> Path | None:
    """Return the last intact checkpoint of a run; None if there is none.

    Args:
        run: folder of the run.
        damaged: called with a message about each damaged checkpoint that is skipped.
        before: only consider checkpoints of steps before this one.
    """
    for path in reversed([path for path in checkpoint_folders(run) if _step_of(path) < before]):
        wrong = damage(path)
        if not wrong:
            return path
        damaged(f"skipping checkpoint {path}: {wrong}")
    return None


def notes_of(checkpoint: Path) -> dict[str, Any]:
    """Return the notes of a checkpoint, including its `step`."""
    found: dict[str, Any] = json.loads((checkpoint / NOTES).read_text())
    return found


def watch_of(checkpoint: Path) -> dict[str, NDArray[Any]]:
    """Return the state of the measurements in a checkpoint."""
    with np.load(checkpoint / WATCH, allow_pickle=False) as arrays:
        return dict(arrays)


def load_tensors(checkpoint: Path, state: Mapping[str, Tensor]) -> None:
    """Read a checkpoint into these tensors by name, however it was sharded; every process calls this.

    Raises:
        StoreError: the checkpoint lacks a tensor or has it in another shape.
    """
    try:
        with _quiet():
            dcp.load(
                dict(state),
                storage_reader=dcp.FileSystemReader(checkpoint),
                no_dist=not dist.is_initialized(),
            )
    except (dcp.api.CheckpointException, RuntimeError, ValueError, KeyError) as error:
        raise StoreError(f"{checkpoint} does not match this network: {_why(error)}") from error


def read_configuration(run: Path) -> RunConfig:
    """Read the configuration of a run.

    Raises:
        StoreError: the folder has no configuration, or it cannot be read.
    """
    try:
        return RunConfig.of_document(json.loads((run / CONFIGURATION).read_text()))
    except FileNotFoundError as error:
        raise StoreError(f"{run} holds no run: it has no {CONFIGURATION}") from error
    except ValueError as error:
        raise StoreError(f"{run / CONFIGURATION} is damaged: {error}") from error


def write_configuration(run: Path, configuration: RunConfig) -> None:
    """Write the configuration of a run atomically."""
    partial = run / f".{CONFIGURATION}.partial"
    partial.write_text(json.dumps(configuration.document(), indent=1))
    os.replace(partial, run / CONFIGURATION)


def find_checkpoint(path: Path, damaged: Damaged) -> Path:
    """Return the checkpoint at a path: the path itself, or the last intact checkpoint of a run's folder.

    Raises:
        StoreError: there is no checkpoint, or it is damaged.
    """
    if not path.exists():
        raise StoreError(f"{path} does not exist")
    if (path / MANIFEST).exists():
        wrong = damage(path)
        if wrong:
            raise StoreError(f"checkpoint {path} is damaged: {wrong}")
        return path
    found = last_checkpoint(path, damaged)
    if found is None:
        raise StoreError(f"{path} holds no intact checkpoint")
    return found


def load_network(path: Path, *, ema: bool, damaged: Damaged = warnings.warn) -> tuple[RunConfig, DiT]:
    """Load the network of a checkpoint, without its optimiser.

    Args:
        path: folder of a checkpoint, or of a run, whose last intact checkpoint is used.
        ema: whether to load the moving average of the weights, if the run kept one.
        damaged: called with a message about each damaged checkpoint that is skipped.

    Returns:
        The configuration of the run and its network.

    Raises:
        StoreError: there is no checkpoint, or it is damaged.
    """
    checkpoint = find_checkpoint(path, damaged)
    run = RunConfig.of_document(notes_of(checkpoint)["configuration"])
    network: nn.Module = DiT(run.model)
    entry = "ema" if ema and run.training.ema else "weight"
    load_tensors(
        checkpoint, {f"{entry}.{name}": weight.detach() for name, weight in network.named_parameters()}
    )
    assert isinstance(network, DiT)
    return run, network


def refuse_taken(out: Path) -> None:
    """Check that a new run can be written to `out`.

    Raises:
        StoreExistsError: `out` already holds a run, or is not a folder.
    """
    if (out / CONFIGURATION).exists() or (out.exists() and not out.is_dir()):
        raise StoreExistsError(f"{out} already holds a run: pass --resume to resume it, or another --out")


def resumable(asked: RunConfig, out: Path) -> RunConfig:
    """Return the configuration with which to resume a run: its own, with the fields that may change as asked.

    Raises:
        StoreError: there is no run, or its configuration differs; the message names the first difference.
    """
    before = read_configuration(out).document()
    wanted = asked.document()
    for name in SCALE_FIELDS:
        before["training"][name] = wanted["training"][name]
    for part in ("model", "training"):
        for name, value in wanted[part].items():
            if before[part][name] != value:
                raise StoreError(f"{out} holds another run: its {name} is {before[part][name]}, not {value}")
    if before["data_digest"] and before["data_digest"] == wanted["data_digest"]:
        before["data"] = wanted["data"]  # the same store may have moved
    for name in DATA:
        if before[name] != wanted[name]:
            raise StoreError(f"{out} holds another run: its {name} is {before[name]}, not {wanted[name]}")
    return RunConfig.of_document(before)
