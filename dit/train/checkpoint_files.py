"""The files of one checkpoint: whether they are intact, whose they are, and what they hold."""

import contextlib
import hashlib
import math
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from numpy.typing import NDArray
from torch import Tensor

from meanmode.dit.config.field_ranges import shown
from meanmode.dit.config.run_config import RunConfig
from meanmode.dit.train.checkpoint_reader import TABLE, CheckpointReader
from meanmode.dit.train.run_folder import CHECKPOINTS, DOCUMENT_BYTES, difference
from meanmode.sim.store.files import StoreError, reason
from meanmode.sim.store.regular_files import open_regular, read_json

MANIFEST, NOTES, WATCH = "manifest.json", "run.json", "watch.npz"
"""Files of a checkpoint besides its tensors: digests of all files; configuration, step and other notes; the
state of the measurements that is kept in memory."""


WEIGHTS_ONLY = "weights_only"
"""Note of a checkpoint that holds no moments and no average of the weights, as those of a `WeightsRing`."""


def folder_of(run: Path, step: int, within: str = CHECKPOINTS) -> Path:
    """Return the path of the checkpoint of a step."""
    return run / within / f"step-{step:08d}"


def checkpoint_folders(run: Path, within: str = CHECKPOINTS) -> list[Path]:
    """Return the paths of all finished checkpoints, by step; they may have been damaged since.

    Args:
        run: folder of the run.
        within: its folder that holds them: `CHECKPOINTS`, or `WEIGHTS` for those without moments.
    """
    found = (path for path in (run / within).glob("step-*") if path.is_dir())
    return sorted((path for path in found if re.fullmatch(r"step-[0-9]{8,18}", path.name)), key=step_of)


def step_of(checkpoint: Path) -> int:
    """Return the step in the name of a checkpoint."""
    return int(checkpoint.name.removeprefix("step-"))


def digest_of(file: Path) -> str:
    """Return the digest of a regular file, as manifests list it."""
    with open_regular(file) as stream:
        return hashlib.file_digest(stream, "blake2b").hexdigest()


def damage(checkpoint: Path) -> str:
    """Return what is wrong with the files of a checkpoint; empty if they are intact."""
    try:
        digests = read_json(checkpoint / MANIFEST, DOCUMENT_BYTES)
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except (OSError, ValueError):
        return f"{MANIFEST} is unreadable"
    if not isinstance(digests, dict) or not {NOTES, WATCH, TABLE} <= digests.keys():
        return f"{MANIFEST} is incomplete"
    for name, digest in digests.items():
        if Path(name).name != name or name in ("", "..") or "\0" in name:
            return f"{MANIFEST} names {shown(name)}, which is no file of the checkpoint"
        try:
            if digest_of(checkpoint / name) != digest:
                return f"{name} is damaged"
        except OSError as error:
            return f"{name} is unreadable ({reason(error)})"
        except StoreError:
            return f"{name} is not a regular file"
    return ""


def foreign(checkpoint: Path, run: RunConfig) -> str:
    """Return why a checkpoint is not one of a run, going by its notes; empty if it is."""
    try:
        step = notes_of(checkpoint)["step"]
        if step != step_of(checkpoint):
            return f"its notes are those of step {step}"
        return difference(configuration_of(checkpoint), run)
    except StoreError as error:
        return str(error)


def notes_of(checkpoint: Path) -> dict[str, Any]:
    """Return the notes of a checkpoint, including its `step`.

    Raises:
        StoreError: they are missing or unreadable, or a note has the wrong type.
    """
    file = checkpoint / NOTES
    try:
        found = read_json(file, DOCUMENT_BYTES)
    except OSError as error:
        raise StoreError(f"{file} cannot be read: {reason(error)}") from error
    if not isinstance(found, dict):
        raise StoreError(f"{file} is damaged: it is not a JSON object")
    required = {"step": -1, "configuration": None}
    for name, kind in (
        ("step", _is_count),
        ("roll_backs", _is_count),
        ("wall_s", _is_amount),
        ("configuration", lambda value: isinstance(value, dict)),
        ("factors", lambda value: isinstance(value, dict) and all(map(_is_amount, value.values()))),
        ("encoders", lambda value: isinstance(value, dict)),
        ("weights_until", _is_count),
        (WEIGHTS_ONLY, lambda value: isinstance(value, bool)),
    ):
        if (name in found or name in required) and not kind(found.get(name)):
            raise StoreError(f"{file} is damaged: its {name} is {shown(found.get(name))}")
    return found


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_amount(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def configuration_of(checkpoint: Path) -> RunConfig:
    """Return the configuration in the notes of a checkpoint.

    Raises:
        StoreError: the notes are unreadable, or another version wrote them.
    """
    notes = notes_of(checkpoint)
    try:
        return RunConfig.of_document(notes["configuration"])
    except ValueError as error:
        raise StoreError(f"{checkpoint / NOTES} cannot be used: {error}") from error


def has_average(checkpoint: Path) -> bool:
    """Return whether a checkpoint holds a moving average of the weights beside the weights.

    Raises:
        StoreError: its notes are unreadable.
    """
    return configuration_of(checkpoint).training.ema > 0 and not notes_of(checkpoint).get(WEIGHTS_ONLY)


def watch_of(checkpoint: Path) -> dict[str, NDArray[Any]]:
    """Return the state of the measurements in a checkpoint.

    Raises:
        StoreError: it is unreadable.
    """
    file = checkpoint / WATCH
    try:
        with open_regular(file) as stream:
            if any(entry.compress_type for entry in zipfile.ZipFile(stream).infolist()):
                raise ValueError("its arrays are compressed")
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as arrays:
                return dict(arrays)
    except Exception as error:  # a damaged archive raises whatever the parsers of its parts do
        raise StoreError(f"{file} is damaged: {why_failed(error)}") from error


def load_tensors(checkpoint: Path, state: Mapping[str, Tensor]) -> None:
    """Read a checkpoint into these tensors by name, however it was sharded; every process calls this.

    Raises:
        StoreError: the checkpoint lacks a tensor or has it in another shape, or it is damaged.
    """
    reader = CheckpointReader(checkpoint)
    try:
        with quiet():
            dcp.load(dict(state), storage_reader=reader, no_dist=not dist.is_initialized())
    except (Exception, dcp.api.CheckpointException) as error:  # hostile files may raise anything
        cause = cause_of(error)
        if isinstance(cause, StoreError | MemoryError):
            raise cause from None
        raise StoreError(f"{checkpoint} does not match this network: {why_failed(error)}") from error


def cause_of(error: BaseException) -> BaseException:
    """Return the error at the bottom of those that torch wraps around it."""
    if isinstance(error, dcp.api.CheckpointException):
        error = next((cause for cause, _ in error.failures.values()), error)
    while error.__cause__ is not None and not isinstance(error, StoreError):
        error = error.__cause__
    return error


def why_failed(error: BaseException) -> str:
    """Return the error message of the operating system, if there is one."""
    error = cause_of(error)
    if isinstance(error, OSError):
        return reason(error)
    return " ".join(str(error).split())[:300] or type(error).__name__


@contextlib.contextmanager
def quiet() -> Any:
    """Suppress warnings of torch about saving and loading on a single process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.distributed is (disabled|unavailable).*")
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
        yield
