"""Training on two processes: DDP and FSDP2 over gloo, killed, resumed, and continued by one process."""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from meanmode.dit.data.encoding import EncodingConfig, encode
from meanmode.dit.train import checkpoint_files
from meanmode.dit.train.checkpoints import load_network
from meanmode.dit.train.trainer import Trainer

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch is built without gloo")


@pytest.fixture
def finished(launch):
    """Run `mms train` to its end and return its output."""

    def run(out: Path, *arguments: str, **options: object) -> str:
        process = launch(out, *arguments, **options)
        assert set(process.codes(300)) == {0}, process.said
        return process.said

    return run


@pytest.mark.parametrize("sharding", ["replicated", "full"])
def test_two_processes_train_as_one_does(runs, whole, finished, tmp_path: Path, sharding: str) -> None:
    out = tmp_path / "run"
    finished(out, processes=2, sharding=sharding, weights_ring=2)
    assert list(
        checkpoint_files.checkpoint_folders(out)[-1].glob("__1_*.distcp")
    )  # a second process wrote a shard
    runs.assert_same_store(whole, out, rtol=1e-5)
    runs.assert_same_weights(whole, out, rtol=1e-4)
    states = [checkpoint_files.folder_of(out, step, "weights") for step in (9, 10)]
    assert checkpoint_files.checkpoint_folders(out, "weights") == states
    kept, last = (load_network(of, ema=False)[1] for of in (states[1], out))
    assert all(
        torch.equal(ours, theirs) for ours, theirs in zip(kept.parameters(), last.parameters(), strict=True)
    )


def test_two_processes_train_on_a_latent_store_as_one_does(runs, finished, tmp_path: Path) -> None:
    store = tmp_path / "digits.zarr"
    encode(EncodingConfig(images="digits", codec="pixels", limit=100), store)
    options = {"data": f"latents:{store}", "telemetry_every": 5}
    finished(tmp_path / "two", processes=2, **options)
    finished(tmp_path / "one", **options)
    runs.assert_same_store(tmp_path / "one", tmp_path / "two", rtol=1e-5)
    runs.assert_same_weights(tmp_path / "one", tmp_path / "two", rtol=1e-4)


def test_a_sharded_run_is_continued_by_one_process(runs, whole: Path, finished, tmp_path: Path) -> None:
    out = tmp_path / "run"
    finished(out, processes=2, sharding="full", steps=6)
    runs.trained(out, runs.tiny(), resume=True)
    runs.assert_same_store(whole, out, rtol=1e-5)
    runs.assert_same_weights(whole, out, rtol=1e-4)


def test_two_killed_processes_resume_bitwise(runs, launch, finished, tmp_path: Path) -> None:
    out, other = tmp_path / "run", tmp_path / "other"
    process = launch(out, processes=2, steps=2000)
    deadline = time.monotonic() + 200
    while (
        len(checkpoint_files.checkpoint_folders(out)) < 2 and process.running and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    assert process.kill() == [-signal.SIGKILL] * 2
    reached = checkpoint_files.notes_of(checkpoint_files.checkpoint_folders(out)[-1])["step"]
    steps = reached + 3
    finished(out, "--resume", processes=2, steps=steps)
    finished(other, processes=2, steps=steps)
    runs.assert_same_weights(other, out)
    runs.assert_same_store(other, out)


ABORTS = ("Aborted", "SIGABRT", "terminate called", "Signal 6 ", "Fatal Python error")


def refusal(process) -> str:
    """What processes said that end by themselves, each with a refusal."""
    assert process.codes() == [2, 2], process.said
    assert not [word for word in ABORTS if word in process.said], process.said
    return process.said


@pytest.mark.parametrize("arguments", [(), ("--resume",)], ids=["taken", "of another seed"])
def test_two_processes_are_refused_together_and_leave_in_peace(
    whole: Path, launch, arguments: tuple[str, ...]
) -> None:
    """The second process never waits for the first, and no process aborts as it exits."""
    said = refusal(launch(whole, *arguments, processes=2, seed=5))
    assert "another --out" in said or "its seed is 0, not 5" in said


def test_two_processes_resume_a_complete_run_and_leave_in_peace(whole: Path, finished, tmp_path) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    said = finished(run, "--resume", processes=2)
    assert "complete at step 10, loss" in said and not [word for word in ABORTS if word in said], said


def test_two_processes_are_refused_a_folder_in_training(runs, launch, tmp_path: Path) -> None:
    trainer = Trainer(runs.tiny(), tmp_path / "run")
    said = refusal(launch(tmp_path / "run", "--resume", processes=2))
    assert f"run is in use: process {os.getpid()} on " in said, said
    trainer.train()
    runs.assert_same_weights(tmp_path / "run", tmp_path / "run")


def test_two_processes_on_a_full_disk_fail_together(launch, tmp_path: Path) -> None:
    """The first cannot make the folder of the checkpoint; the second once waited for it forever."""
    full = """
from pathlib import Path
made = Path.mkdir
def mkdir(path, *args, **options):
    if path.name.endswith(".partial") and "step-" in path.name:
        raise OSError(28, "No space left on device", str(path))
    return made(path, *args, **options)
Path.mkdir = mkdir
"""
    said = refusal(launch(tmp_path / "run", processes=2, before=full))
    assert "checkpoint of step 4" in said and "No space left on device" in said, said
