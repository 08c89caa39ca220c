"""Compaction: the same bits in few files, whenever it is killed and however full the disk."""

import errno
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from meanmode.sim.store.compaction import compact
from meanmode.sim.store.files import StoreError, Variable
from meanmode.sim.store.sweep_excerpt import sweep_excerpt
from meanmode.sim.store.sweep_store import DONE, TODO, create_sweep, open_cells
from meanmode.sim.store.sweep_writer import SweepWriter

ROOT = Path(__file__).parents[3]


@pytest.fixture
def store(tiny_store: Path, tmp_path: Path) -> Path:
    """A copy to compact, in a folder of its own."""
    return Path(shutil.copytree(tiny_store, tmp_path / "folder" / "sweep.zarr"))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_compaction_keeps_every_bit_and_is_read_only(store: Path) -> None:
    before = open_cells(store)
    compact(store)
    after = open_cells(store)
    xr.testing.assert_identical(before, after)
    for name in before.variables:
        if before[name].dtype.kind == "f":
            assert before[name].values.tobytes() == after[name].values.tobytes(), name
    assert len(files(store / "tcs")) == 2
    with pytest.raises(StoreError, match="a compacted store is read-only"):
        SweepWriter(store)


def test_plain_xarray_reads_a_compacted_store(store: Path) -> None:
    before = open_cells(store)
    compact(store)
    with xr.open_zarr(store, consolidated=False) as data:
        np.testing.assert_array_equal(data["tcs"].values, before["tcs"].values)
        assert data["tcs"].attrs == before["tcs"].attrs and data.attrs == before.attrs


def test_compacting_again_changes_nothing(store: Path) -> None:
    compact(store)
    once = files(store.parent)
    compact(store)
    assert files(store.parent) == once


def test_an_unfinished_sweep_is_not_compacted(store: Path) -> None:
    zarr.open_group(store, mode="r+")["status"][3] = TODO
    before = files(store.parent)
    with pytest.raises(StoreError, match="still has 1 unfinished cells"):
        compact(store)
    assert files(store.parent) == before


@pytest.mark.parametrize("writes", [0, 1, 7, 20])
def test_a_full_disk_leaves_the_store_as_it_was(
    store: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    write, done = Path.write_bytes, []

    def filling(path: Path, content: bytes) -> int:
        if len(done) == writes:
            write(path, content[:10])
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        done.append(path)
        return write(path, content)

    before = files(store.parent)
    monkeypatch.setattr(Path, "write_bytes", filling)
    with pytest.raises(
        StoreError, match=r"could not be compacted \(No space left on device\); it is unchanged"
    ):
        compact(store)
    assert files(store.parent) == before
    assert [path.name for path in store.parent.iterdir()] == ["sweep.zarr"]


KILLED_AT_EVERY_STEP = """
import os, shutil, signal, sys
from pathlib import Path
import meanmode.sim.store.compaction
import xarray as xr

xr.Dataset({"x": ("y", [0.0])}).load()  # imports everything once, not in every child
source, folder = Path(sys.argv[1]), Path(sys.argv[2])
steps = {"os.mkdir", "os.rename", "os.remove", "os.rmdir"}
status = None
while status != 0:
    number = len(list(folder.iterdir()))
    store = shutil.copytree(source, folder / str(number) / "sweep.zarr")
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
        meanmode.sim.store.compaction.compact(store)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
"""
"""Compacts copies of a store in processes that are killed before their first, second, ... write or deletion,
until one completes."""


@pytest.fixture(scope="module")
def small_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished cells of one observable over blocks and writers."""
    path = tmp_path_factory.mktemp("small") / "sweep.zarr"
    create_sweep(
        path,
        coordinates={"tokens": ([4, 9], Variable(definition="Image tokens"))},
        sizes={"block": range(3), "writer": ("attn", "ffn")},
        variables={"r_tr": Variable(dims=("block", "writer"), definition="Branch over trunk")},
        forecasts={"predicted": ([1.0, np.nan], Variable(definition="forecast"))},
        attributes={"configuration": "{}", "variables": '["r_tr", "predicted", "status"]'},
    )
    for cell in range(2):
        row = np.arange(6, dtype=np.float32).reshape(3, 2) + cell
        SweepWriter(path).write(cell, {"r_tr": row}, DONE, wall_seconds=1.0)
    return path


def test_a_kill_at_any_moment_loses_nothing(small_store: Path, tmp_path: Path) -> None:
    before = open_cells(small_store)
    subprocess.run([sys.executable, "-c", KILLED_AT_EVERY_STEP, small_store, tmp_path], check=True, cwd=ROOT)
    *killed, whole = sorted(tmp_path.iterdir(), key=lambda folder: int(folder.name))
    assert len(killed) > 40
    xr.testing.assert_identical(open_cells(whole / "sweep.zarr"), before)
    whole_names = [path.relative_to(whole) for path in whole.rglob("*")]
    scraps = 0
    for folder in killed:
        xr.testing.assert_identical(open_cells(folder / "sweep.zarr"), before)
        scraps += sorted(folder.rglob("*")) != sorted(folder / path for path in whole_names)
        compact(folder / "sweep.zarr")
        assert files(folder) == files(whole)
        assert [path.name for path in folder.iterdir()] == ["sweep.zarr"]
    assert scraps == len(killed)


def test_an_excerpt_keeps_chosen_observables_bit_by_bit(store: Path, tmp_path: Path) -> None:
    whole, out = open_cells(store), tmp_path / "small.zarr"
    sweep_excerpt(store, out, names=("front", "tcs"))
    kept = open_cells(out)
    dropped = {name for name in whole.data_vars if name not in kept}
    assert {"rho", "mu_eff"} <= dropped and {"front", "tcs", "predicted_front", "status"} <= set(kept)
    xr.testing.assert_identical(whole.drop_vars(dropped).assign_attrs(kept.attrs), kept)
    assert "rho" in open_cells(store)
    with pytest.raises(StoreError, match="exists: choose another path"):
        sweep_excerpt(store, out, names=("front",))
    with pytest.raises(StoreError, match="has no colour: choose from front, tcs"):
        sweep_excerpt(store, tmp_path / "other.zarr", names=("colour",))
