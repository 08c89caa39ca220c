"""The sweep store: what a stranger reads, what a writer refuses, and what damage does."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from sim.store import DONE, TODO, StoreError, SweepWriter, compact, open_cells, open_sweep


@pytest.fixture
def store(tiny_store: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(tiny_store, tmp_path / "sweep.zarr"))


def test_a_stranger_reads_it_with_plain_xarray(tiny_store: Path) -> None:
    data = xr.open_zarr(tiny_store, consolidated=False)
    assert data["tcs"].dims == ("cell", "block") and data["r_tr"].dims == ("cell", "block", "writer")
    assert set(json.loads(data.attrs["axes"])) <= set(data.coords)
    assert data["writer"].values.tolist() == ["attn", "ffn"]
    assert set(data["merge"].values.tolist()) == {"plain", "mv_split"}
    for name in data.data_vars:
        assert len(data[name].attrs["long_name"]) > 10, name
    for name in ("version", "commit", "laws", "configuration", "claim"):
        assert data.attrs[name]


def test_unstacked_over_the_axes_in_their_order(tiny_store: Path) -> None:
    data = open_sweep(tiny_store)
    assert dict(data["tcs"].sizes) == {
        "block": 25, "depth": 2, "tokens": 2, "weight_std": 1, "input_cosine": 1, "merge": 2, "seed": 4,
    }  # fmt: skip
    assert data["merge"].values.tolist() == ["plain", "mv_split"]
    shallow, deep = (data["tcs"].sel(depth=depth) for depth in (6, 24))
    np.testing.assert_array_equal(shallow.isel(block=slice(7)), deep.isel(block=slice(7)))
    assert shallow.isel(block=slice(7, None)).isnull().all()
    assert deep.sel(merge="plain").notnull().all()


def test_every_chunk_is_one_cell(tiny_store: Path) -> None:
    for name, array in SweepWriter(tiny_store).arrays.items():
        assert array.chunks == (1, *array.shape[1:]), name


def test_several_cells_in_a_chunk_are_refused(store: Path) -> None:
    group = zarr.open_group(store, mode="r+")
    values = group["tcs"][:]
    del group["tcs"]
    group.create_array("tcs", data=values, chunks=(2, values.shape[1]), dimension_names=("cell", "block"))
    with pytest.raises(StoreError, match="chunks of tcs are not one cell each"):
        SweepWriter(store)


def test_sharded_cells_are_refused(store: Path) -> None:
    group = zarr.open_group(store, mode="r+")
    values = group["tcs"][:]
    del group["tcs"]
    group.create_array(
        "tcs",
        data=values,
        chunks=(1, values.shape[1]),
        shards=(4, values.shape[1]),
        dimension_names=("cell", "block"),
    )
    with pytest.raises(StoreError, match="chunks of tcs are not one cell each"):
        SweepWriter(store)


def test_compaction_keeps_every_bit_and_is_read_only(store: Path) -> None:
    before = open_cells(store)
    compact(store)
    after = open_cells(store)
    xr.testing.assert_identical(before, after)
    assert len(list((store / "tcs").rglob("c/*/*"))) == 1
    with pytest.raises(StoreError, match="a compacted store is read-only"):
        SweepWriter(store)


def test_an_unfinished_sweep_is_not_compacted(store: Path) -> None:
    zarr.open_group(store, mode="r+")["status"][3] = TODO
    with pytest.raises(StoreError, match="still has 1 cells to do"):
        compact(store)


def test_a_missing_path_and_a_foreign_group_are_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"nowhere\.zarr does not exist"):
        open_sweep(tmp_path / "nowhere.zarr")
    zarr.create_group(tmp_path / "other.zarr")
    with pytest.raises(StoreError, match="is no sweep of this project"):
        open_sweep(tmp_path / "other.zarr")
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(StoreError, match="is no readable Zarr group"):
        open_sweep(tmp_path / "empty.zarr")


def test_a_missing_variable_is_named(store: Path) -> None:
    shutil.rmtree(store / "rho")
    with pytest.raises(StoreError, match="truncated: it holds no readable rho"):
        open_sweep(store)


def test_a_deleted_chunk_is_noticed(store: Path) -> None:
    shutil.rmtree(store / "tcs" / "c" / "5")
    with pytest.raises(StoreError, match="tcs of 1 finished cells is gone; run with --resume"):
        open_sweep(store)
    assert SweepWriter(store).remaining() == ([5], [5])


@pytest.mark.parametrize("damage", [b"", b"garbage", None], ids=["empty", "garbage", "flipped bit"])
def test_a_damaged_chunk_is_noticed(store: Path, damage: bytes | None) -> None:
    (chunk,) = (path for path in (store / "tcs" / "c" / "5").rglob("*") if path.is_file())
    if damage is None:
        content = bytearray(chunk.read_bytes())
        content[len(content) // 2] ^= 1
        damage = bytes(content)
    chunk.write_bytes(damage)
    with pytest.raises(StoreError, match=r"damaged .*run the sweep with --resume"):
        open_sweep(store)
    assert SweepWriter(store).remaining() == ([5], [5])


def test_a_write_pads_with_nan_and_sets_the_status_last(store: Path) -> None:
    writer = SweepWriter(store)
    writer.write(0, {"tcs": np.ones(3, np.float32)}, DONE)
    row = open_cells(store)["tcs"].values[0]
    assert row[:3].tolist() == [1, 1, 1] and np.isnan(row[3:]).all()


@pytest.mark.parametrize("name", ["rho", "front", "status"])
def test_a_missing_chunk_of_any_result_is_noticed_and_repaired(store: Path, name: str) -> None:
    """A chunk of fill values is written too, so that a missing one is a loss and not a result."""
    chunk = store / name / "c" / "7"
    shutil.rmtree(chunk) if chunk.is_dir() else chunk.unlink()
    if name != "status":
        with pytest.raises(StoreError, match=f"{name} of 1 finished cells is gone; run with --resume"):
            open_cells(store)
    assert 7 in SweepWriter(store).remaining()[0]


@pytest.mark.parametrize("name", ["predicted_front", "depth", "merge"])
def test_a_lost_forecast_or_coordinate_is_refused(store: Path, name: str) -> None:
    shutil.rmtree(store / name / "c")
    for use in (open_cells, SweepWriter):
        with pytest.raises(StoreError, match=f"truncated: {name} is gone; write another store"):
            use(store)


@pytest.mark.parametrize("name", ["tcs", "status", "tokens"])
def test_a_lost_array_is_named(store: Path, name: str) -> None:
    shutil.rmtree(store / name)
    for use in (open_cells, SweepWriter):
        with pytest.raises(StoreError, match=f"truncated: it holds no readable {name}"):
            use(store)


@pytest.mark.parametrize("value", [None, "null", "[1]", "{"])
@pytest.mark.parametrize("name", ["configuration", "variables"])
def test_a_damaged_attribute_is_named(store: Path, name: str, value: str | None) -> None:
    group = zarr.open_group(store, mode="r+")
    if value is None:
        del group.attrs[name]
    else:
        group.attrs[name] = value if name == "configuration" else value.replace("[1]", "{}")
    with pytest.raises(StoreError, match=f"sweep.zarr is damaged: its attribute {name}"):
        open_cells(store)
