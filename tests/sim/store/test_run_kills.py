"""A run store whose writing, growth or compaction is killed: valid at every moment, and resumable."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from meanmode.sim.store.compaction import compact
from meanmode.sim.store.files import Variable
from meanmode.sim.store.run_reader import open_run
from meanmode.sim.store.run_store import create_run
from meanmode.sim.store.run_writer import RunWriter

ROOT = Path(__file__).parents[3]

KILLED_AT_EVERY_WRITE = """
import os, shutil, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_run_kills as test

steps = {"os.mkdir", "os.rename", "os.remove", "os.rmdir"}
for source in map(Path, sys.argv[2:]):
    test.open_run(source)  # imports everything once, not in every child
    status, number = None, 0
    while status != 0:
        store = shutil.copytree(source, source.with_name(f"{source.name}-{number}"))
        child = os.fork()
        if child == 0:
            left = number

            def stop(event, arguments):
                global left
                if event in steps or (event == "open" and "w" in str(arguments[1])):
                    if left == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    left -= 1

            sys.addaudithook(stop)
            getattr(test, source.name)(store)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        number += 1
"""
"""Acts on copies of stores in processes that are killed before their first, second, ... write or deletion,
until one completes; a store is named after the function of this module that acts on it."""


def log_losses(writer: RunWriter, stop: int) -> None:
    """Log losses, the TCS of every other step and an event at every third, up to step `stop`."""
    for step in range(writer.last + 1, stop + 1):
        writer.log(step, {"loss": 1 / step} | ({"tcs": np.full(3, step)} if step % 2 else {}))
        if step % 3 == 0:
            writer.annotate({"step": step, "text": "third"})
    writer.flush()


def resumes(store: Path) -> None:
    """Log steps 4 to 9 again, starting one interval before the last."""
    log_losses(RunWriter(store, after=3), 9)


def grows(store: Path) -> None:
    """Extend the plan beyond the end of the chunk of steps."""
    RunWriter(store, steps=30)


def compacts(store: Path) -> None:
    compact(store)


Killed = dict[str, tuple[Path, Sequence[Path], Path]]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    """Action -> a store with 7 of 14 steps, copies left by killed processes, and a completed one."""
    folder = tmp_path_factory.mktemp("stores")
    actions = ("resumes", "grows", "compacts")
    for action in actions:
        create_run(
            folder / action,
            steps=14,
            interval=4,
            sizes={"block": range(3)},
            variables={
                "loss": Variable(definition="Loss"),
                "tcs": Variable(dims=("block",), definition="Mean cosine"),
            },
            attributes={},
        )
        log_losses(writer := RunWriter(folder / action), 7)
    writer.finish()
    here, stores = Path(__file__).parent, [folder / action for action in actions]
    subprocess.run([sys.executable, "-c", KILLED_AT_EVERY_WRITE, here, *stores], check=True, cwd=ROOT)
    found = {}
    for store in stores:
        copies = sorted(folder.glob(f"{store.name}-*"), key=lambda path: int(path.name.split("-")[1]))
        found[store.name] = (store, copies[:-1], copies[-1])
    return found


def test_a_kill_at_any_moment_leaves_the_last_flush(killed: Killed) -> None:
    store, left, whole = killed["resumes"]
    before, finished, seen = open_run(store), open_run(whole), []
    assert len(left) > 20
    for path in left:
        run = open_run(path)
        seen.append(run.sizes["step"])
        xr.testing.assert_equal(run, (before if seen[-1] == 7 else finished).isel(step=slice(seen[-1])))
        resumes(path)
        xr.testing.assert_identical(open_run(path), finished)
    assert list(dict.fromkeys(seen)) == [7, 3, 4, 8]


def test_a_kill_while_growing_loses_nothing(killed: Killed) -> None:
    store, left, _ = killed["grows"]
    before = open_run(store)
    assert len(left) > 5
    for path in left:
        xr.testing.assert_identical(open_run(path), before)
        grows(path)
        xr.testing.assert_identical(open_run(path), before)
        with xr.open_zarr(path, consolidated=False) as data:
            assert data["step"].values.tolist() == list(range(1, 31))


def test_a_compaction_killed_at_any_moment_loses_nothing(killed: Killed) -> None:
    store, left, whole = killed["compacts"]
    before, files = open_run(store), sorted(path.relative_to(whole) for path in whole.rglob("*"))
    assert len(left) > 20 and open_run(whole).identical(before)
    for path in left:
        xr.testing.assert_identical(open_run(path), before)
        compact(path)
        xr.testing.assert_identical(open_run(path), before)
        assert sorted(file.relative_to(path) for file in path.rglob("*")) == files
