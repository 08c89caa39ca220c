"""Checkpoints of a training run: sharded, written aside and then renamed, checked before they are read."""

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
"""What the folder of a run holds."""


MANIFEST, NOTES, WATCH = "manifest.json", "run.json", "watch.npz"
"""What a checkpoint holds beside its tensors: what is in its files, which run and step it is of, and what the
telemetry kept in memory."""


SCALE_FIELDS = (
    "steps keep checkpoint_every stop_on on_alarm alarm_factor accumulation recompute recompute_of sharding "
    "compile"
).split()
"""Fields of the training that a resumed run may have otherwise than it began with."""


Damaged = Callable[[str], object]


def folder_of(run: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
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
    """Write the checkpoint of a step; every process calls it. Older ones than the last `keep` go.

    It is written beside its place and renamed when it is whole, with the digest of every file.

    Args:
        run: folder of the run.
        step: steps that are made.
        state: tensors by name, plain or sharded.
        notes: JSON, such as the configuration.
        watch: small arrays.
        keep: how many checkpoints stay.

    Raises:
        StoreError: no room, or another error of the file system; what was there before is still there.
    """
    place = folder_of(run, step)
    partial = place.with_name(f".{place.name}.partial")
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
            shutil.rmtree(place, ignore_errors=True)
            partial.rename(place)
            for old in checkpoints(run)[:-keep]:
                shutil.rmtree(old)
    except (OSError, RuntimeError, dcp.api.CheckpointException) as error:
        failure = _why(error)
    if any(_gathered(failure)):
        if _is_first():
            shutil.rmtree(partial, ignore_errors=True)
        why = next(filter(None, _gathered(failure)))
        raise StoreError(
            f"the checkpoint of step {step} could not be written to {run} ({why}); the ones before it are "
            "untouched: put that right and go on with --resume"
        )
    return place


def _gathered(value: str) -> list[str]:
    if not dist.is_initialized():
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def _why(error: BaseException) -> str:
    """The system's words for what went wrong."""
    if isinstance(error, dcp.api.CheckpointException):
        error = next((cause for cause, _ in error.failures.values()), error)
    while error.__cause__ is not None:
        error = error.__cause__
    return (
        reason(error) if isinstance(error, OSError) else " ".join(str(error).split()) or type(error).__name__
    )


@contextlib.contextmanager
def _quiet() -> Any:
    """One process writes what several would, and needs no telling."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.distributed is (disabled|unavailable).*")
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
        yield


def _save_tensors(state: Mapping[str, Tensor], folder: Path) -> None:
    with _quiet():
        dcp.save(dict(state), storage_writer=dcp.FileSystemWriter(folder), no_dist=not dist.is_initialized())


def checkpoints(run: Path) -> list[Path]:
    """All that are in their places, by step; they may still be damaged."""
    return sorted(path for path in (run / CHECKPOINTS).glob("step-*") if path.is_dir())


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def drop_behind(run: Path, step: int) -> None:
    """Delete the checkpoints of later steps than this one."""
    for path in checkpoints(run):
        if _step_of(path) > step:
            shutil.rmtree(path)


def damage(checkpoint: Path) -> str:
    """What is wrong with the files of a checkpoint; empty if nothing is."""
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
    """The last one that is whole; None if there is none.

    Args:
        run: folder of the run.
        damaged: told, in a sentence, of every one that is passed over.
        before: the step that it must be older than.
    """
    for path in reversed([path for path in checkpoints(run) if _step_of(path) < before]):
        wrong = damage(path)
        if not wrong:
            return path
        damaged(f"checkpoint {path} is passed over: {wrong}")
    return None


def notes_of(checkpoint: Path) -> dict[str, Any]:
    """The notes it was saved with, and its `step`."""
    found: dict[str, Any] = json.loads((checkpoint / NOTES).read_text())
    return found


def watch_of(checkpoint: Path) -> dict[str, NDArray[Any]]:
    """The small arrays it was saved with."""
    with np.load(checkpoint / WATCH, allow_pickle=False) as arrays:
        return dict(arrays)


def load_tensors(checkpoint: Path, state: Mapping[str, Tensor]) -> None:
    """Read a checkpoint into the tensors of these names, however it was sharded; every process calls it.

    Raises:
        StoreError: tensors that it does not hold, or holds in another shape.
    """
    try:
        with _quiet():
            dcp.load(
                dict(state),
                storage_reader=dcp.FileSystemReader(checkpoint),
                no_dist=not dist.is_initialized(),
            )
    except (dcp.api.CheckpointException, RuntimeError, ValueError, KeyError) as error:
        raise StoreError(f"{checkpoint} does not fit this network: {_why(error)}") from error


def read_configuration(run: Path) -> RunConfig:
    """The configuration of a run's folder.

    Raises:
        StoreError: there is none, or none that can be read.
    """
    try:
        return RunConfig.of_document(json.loads((run / CONFIGURATION).read_text()))
    except FileNotFoundError as error:
        raise StoreError(f"{run} holds no run: it has no {CONFIGURATION}") from error
    except ValueError as error:
        raise StoreError(f"{run / CONFIGURATION} is damaged: {error}") from error


def write_configuration(run: Path, configuration: RunConfig) -> None:
    """Put the configuration in a run's folder, whole or not at all."""
    partial = run / f".{CONFIGURATION}.partial"
    partial.write_text(json.dumps(configuration.document(), indent=1))
    os.replace(partial, run / CONFIGURATION)


def find_checkpoint(path: Path, damaged: Damaged) -> Path:
    """The checkpoint that is meant: itself, or the last good one of a run's folder.

    Raises:
        StoreError: none there, or a damaged one.
    """
    if not path.exists():
        raise StoreError(f"{path} does not exist")
    if (path / MANIFEST).exists():
        wrong = damage(path)
        if wrong:
            raise StoreError(f"checkpoint {path} cannot be used: {wrong}")
        return path
    found = last_checkpoint(path, damaged)
    if found is None:
        raise StoreError(f"{path} holds no whole checkpoint")
    return found


def load_network(path: Path, *, ema: bool, damaged: Damaged = warnings.warn) -> tuple[RunConfig, DiT]:
    """The network of a run or of one of its checkpoints, weights only.

    Args:
        path: folder of a run, whose last good checkpoint is taken, or of a checkpoint.
        ema: the moving average of the weights, where one was kept.
        damaged: told of checkpoints that are passed over.

    Raises:
        StoreError: no checkpoint there, or a damaged one.
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
    """Refuse a folder that holds a run already, or is none.

    Raises:
        StoreExistsError: it is taken.
    """
    if (out / CONFIGURATION).exists() or (out.exists() and not out.is_dir()):
        raise StoreExistsError(f"{out} already holds a run: pass --resume to go on with it, or another --out")


def agreed(asked: RunConfig, out: Path) -> RunConfig:
    """The configuration of a resumed run: as it began, but for what may change.

    Raises:
        StoreError: no run there, or one that began otherwise; the message names the first difference.
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
        before["data"] = wanted["data"]  # the same store, which may have moved
    for name in DATA:
        if before[name] != wanted[name]:
            raise StoreError(f"{out} holds another run: its {name} is {before[name]}, not {wanted[name]}")
    return RunConfig.of_document(before)
