"""What the tests of training share: tiny runs, trained in this process or from the command line."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import torch.distributed.checkpoint as dcp

from dit.config import PRESETS, RunConfig
from dit.states import checkpoints, load_tensors
from dit.training import Trainer
from sim.run_store import open_run

TINY = {
    "depth": "3",
    "steps": "10",
    "telemetry_every": "2",
    "interval": "4",
    "checkpoint_every": "4",
    "ema": "0.9",
    "merge": "mv_split",
    "alpha": "0.1",
    "stop_on": "divergence",
}

UNEQUAL = ("wall_s", "data_wait_s")
"""What two equal runs differ in."""


def tiny(**options: object) -> RunConfig:
    """A run of ten steps."""
    return PRESETS["digits-16l"].with_options(TINY | {name: str(value) for name, value in options.items()})


class Runs:
    """Tiny runs in this process, and what of them is compared."""

    tiny = staticmethod(tiny)

    def trained(self, out: Path, run: RunConfig, **options: Any) -> Trainer:
        """The trainer of a run, trained."""
        trainer = Trainer(run, out, **options)
        trainer.train()
        return trainer

    def state(self, out: Path) -> dict[str, torch.Tensor]:
        """All tensors of the last checkpoint."""
        metadata = dcp.FileSystemReader(checkpoints(out)[-1]).read_metadata().state_dict_metadata
        found = {name: torch.empty(entry.size) for name, entry in metadata.items()}
        load_tensors(checkpoints(out)[-1], found)
        return found

    def assert_same_weights(self, first: Path, second: Path, *, rtol: float = 0.0) -> None:
        """Equal last checkpoints, to the bit or up to rounding."""
        ours, theirs = self.state(first), self.state(second)
        assert ours.keys() == theirs.keys()
        scale = {name: rtol * float(tensor.abs().max()) for name, tensor in ours.items()}
        apart = {name: float((tensor - theirs[name]).abs().max()) for name, tensor in ours.items()}
        assert {name: off for name, off in apart.items() if not off <= scale[name]} == {}

    def assert_same_store(self, first: Path, second: Path, *, rtol: float = 0.0) -> None:
        """Equal telemetry, to the bit or up to rounding; wall times aside."""
        ours, theirs = open_run(first), open_run(second)
        assert set(ours.data_vars) == set(theirs.data_vars)
        names = [name for name in ours.data_vars if name not in UNEQUAL]
        assert [name for name in names if not _alike(ours[name].values, theirs[name].values, rtol)] == []
        if not rtol:
            assert ours.attrs["events"] == theirs.attrs["events"]


def _alike(ours: np.ndarray, theirs: np.ndarray, rtol: float) -> bool:
    if not rtol:
        return np.array_equal(ours, theirs, equal_nan=True)
    largest = np.nanmax(np.abs(ours), initial=0.0)
    return np.allclose(ours, theirs, rtol=rtol, atol=rtol * largest, equal_nan=True)


@pytest.fixture(scope="session")
def runs() -> Runs:
    """Tiny runs in this process."""
    return Runs()


@pytest.fixture(scope="session")
def whole(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run, uninterrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    runs.trained(out, runs.tiny())
    return out


@pytest.fixture(scope="session")
def launch() -> Callable[..., "subprocess.Popen[str]"]:
    """`mms train digits-16l` with the tiny run's options in processes of its own, one or several (gloo)."""

    def start(
        out: Path, *arguments: str, processes: int = 1, before: str = "", **options: object
    ) -> "subprocess.Popen[str]":
        settings = TINY | {name: str(value) for name, value in options.items()}
        program = ["-c", f"{before}\nfrom sweeps.cli import main; main()"] if before else ["-m", "sweeps.cli"]
        command = [*program, "train", "digits-16l", "--out", str(out), *arguments]
        command += [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
        runner = [sys.executable]
        if processes > 1:
            # what accelerate launch calls on GPUs; on CPUs it starts a single process
            runner += ["-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
            runner += ["--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
        return subprocess.Popen(
            [*runner, *command],
            env=environment,
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


@pytest.fixture(scope="session")
def kill() -> Callable[["subprocess.Popen[str]"], None]:
    """Kill a process and all that it has started at once (SIGKILL)."""

    def stop(process: "subprocess.Popen[str]") -> None:
        if process.poll() is None:
            first = psutil.Process(process.pid)
            for member in (*first.children(recursive=True), first):
                member.kill()
        process.communicate()

    return stop
