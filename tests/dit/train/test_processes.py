"""Training on two processes: DDP and FSDP2 over gloo, killed, resumed, and continued by one process."""

import time
from pathlib import Path

import pytest
import torch.distributed as dist

from meanmode.dit.data.encoding import EncodingConfig, encode
from meanmode.dit.train import checkpoints

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch is built without gloo")


@pytest.fixture
def finished(launch):
    """Run `mms train` to its end and return its output."""

    def run(out: Path, *arguments: str, **options: object) -> str:
        process = launch(out, *arguments, **options)
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
        return said

    return run


@pytest.mark.parametrize("sharding", ["replicated", "full"])
def test_two_processes_train_as_one_does(runs, whole, finished, tmp_path: Path, sharding: str) -> None:
    out = tmp_path / "run"
    finished(out, processes=2, sharding=sharding)
    assert list(
        checkpoints.checkpoint_folders(out)[-1].glob("__1_*.distcp")
    )  # a second process wrote a shard
    runs.assert_same_store(whole, out, rtol=1e-5)
    runs.assert_same_weights(whole, out, rtol=1e-4)


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


def test_two_killed_processes_resume_bitwise(runs, launch, kill, finished, tmp_path: Path) -> None:
    out, other = tmp_path / "run", tmp_path / "other"
    process = launch(out, processes=2, steps=2000)
    deadline = time.monotonic() + 200
    try:
        while (
            len(checkpoints.checkpoint_folders(out)) < 2
            and process.poll() is None
            and time.monotonic() < deadline
        ):
            time.sleep(0.01)
    finally:
        kill(process)
    reached = checkpoints.notes_of(checkpoints.checkpoint_folders(out)[-1])["step"]
    steps = reached + 3
    finished(out, "--resume", processes=2, steps=steps)
    finished(other, processes=2, steps=steps)
    runs.assert_same_weights(other, out)
    runs.assert_same_store(other, out)
