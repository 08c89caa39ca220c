"""The sweep store: what plain xarray reads, what a writer refuses, and what damage does."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from meanmode.sim.store.files import StoreError, StoreExistsError, Variable
from meanmode.sim.store.sweep_store import (
    DONE,
    FAILED,
    PROVENANCE,
    TODO,
    create_sweep,
    open_cells,
    open_progress,
    open_sweep,
)
from meanmode.sim.store.sweep_writer import SweepWriter


@pytest.fixture
def store(tiny_store: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(tiny_store, tmp_path / "sweep.zarr"))


def test_plain_xarray_reads_a_store(tiny_store: Path) -> None:
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
    writer = SweepWriter(tiny_store)
    assert set(writer.provenance) == set(PROVENANCE)
    for name, array in {**writer.arrays, **writer.provenance}.items():
        assert array.chunks == (1, *array.shape[1:]), name


@pytest.mark.parametrize("name", ["tcs", "wall_seconds"])
def test_several_cells_in_a_chunk_are_refused(store: Path, name: str) -> None:
    group = zarr.open_group(store, mode="r+")
    values, dims = group[name][:], group[name].metadata.dimension_names
    del group[name]
    group.create_array(name, data=values, chunks=(2, *values.shape[1:]), dimension_names=dims)
    with pytest.raises(StoreError, match=f"chunks of {name} are not one cell each"):
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


def test_a_missing_path_and_a_foreign_group_are_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"nowhere\.zarr does not exist"):
        open_sweep(tmp_path / "nowhere.zarr")
    zarr.create_group(tmp_path / "other.zarr")
    with pytest.raises(StoreError, match="is not a 'mean-mode sweep' store: its attribute kind is None"):
        open_sweep(tmp_path / "other.zarr")
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(StoreError, match="is not a readable Zarr group"):
        open_sweep(tmp_path / "empty.zarr")


def test_a_missing_variable_is_named(store: Path) -> None:
    shutil.rmtree(store / "rho")
    with pytest.raises(StoreError, match="truncated: it lacks a readable rho"):
        open_sweep(store)


def test_a_deleted_chunk_is_noticed(store: Path) -> None:
    shutil.rmtree(store / "tcs" / "c" / "5")
    with pytest.raises(StoreError, match="tcs of 1 finished cells is missing; run with --resume"):
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


def test_a_written_chunk_is_what_zarr_writes(store: Path, tmp_path: Path) -> None:
    """The writer encodes numbers itself, to the same bytes."""
    writer, data = SweepWriter(store), open_cells(store)
    shutil.copytree(store, tmp_path / "by_zarr")
    group = zarr.open_group(tmp_path / "by_zarr", mode="r+")
    values = {name: np.asarray(data[name].values[9]) for name in writer.arrays}
    writer.write(7, values, DONE, wall_seconds=2.5)
    for name in [*writer.arrays, "wall_seconds"]:
        array = group[name].with_config({"write_empty_chunks": True})
        array[7] = 2.5 if name == "wall_seconds" else values[name]
        chunk = array.metadata.encode_chunk_key((7, *(0,) * (array.ndim - 1)))
        assert (store / name / chunk).read_bytes() == (tmp_path / "by_zarr" / name / chunk).read_bytes()


@pytest.mark.parametrize("codecs", [[], ["zstd"]], ids=["none", "big-endian"])
def test_other_codecs_are_left_to_zarr(store: Path, codecs: list[str]) -> None:
    group = zarr.open_group(store, mode="r+")
    values, attributes = group["rho"][:], dict(group["rho"].attrs)
    del group["rho"]
    group.create_array(
        "rho",
        data=values,
        chunks=(1, values.shape[1]),
        dimension_names=("cell", "block"),
        compressors=[zarr.codecs.ZstdCodec()] if codecs else None,
        serializer=zarr.codecs.BytesCodec(endian="big" if codecs else "little"),
        fill_value=np.nan,
        attributes=attributes,
        config={"write_empty_chunks": True},
    )
    SweepWriter(store).write(4, {"rho": np.arange(25, dtype=np.float32)}, DONE)
    assert open_cells(store)["rho"].values[4].tolist() == list(range(25))


def test_a_write_pads_with_nan_and_sets_the_status_last(store: Path) -> None:
    writer = SweepWriter(store)
    writer.write(0, {"tcs": np.ones(3, np.float32)}, DONE)
    row = open_cells(store)["tcs"].values[0]
    assert row[:3].tolist() == [1, 1, 1] and np.isnan(row[3:]).all()


@pytest.mark.parametrize("name", ["rho", "front", "status"])
def test_a_missing_chunk_of_any_result_is_noticed_and_repaired(store: Path, name: str) -> None:
    """Chunks of fill values are written too, so that a missing one always means lost data."""
    chunk = store / name / "c" / "7"
    shutil.rmtree(chunk) if chunk.is_dir() else chunk.unlink()
    if name != "status":
        with pytest.raises(StoreError, match=f"{name} of 1 finished cells is missing; run with --resume"):
            open_cells(store)
    assert 7 in SweepWriter(store).remaining()[0]


@pytest.mark.parametrize("name", ["predicted_front", "depth", "merge"])
def test_a_lost_forecast_or_coordinate_is_refused(store: Path, name: str) -> None:
    shutil.rmtree(store / name / "c")
    for use in (open_cells, SweepWriter):
        with pytest.raises(StoreError, match=f"truncated: {name} is missing; create another store"):
            use(store)


@pytest.mark.parametrize("name", ["tcs", "status", "tokens"])
def test_a_lost_array_is_named(store: Path, name: str) -> None:
    shutil.rmtree(store / name)
    for use in (open_cells, SweepWriter):
        with pytest.raises(StoreError, match=f"truncated: it lacks a readable {name}"):
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


def create_two_cells(path: Path) -> None:
    create_sweep(
        path,
        coordinates={"tokens": ([4, 9], Variable(definition="Image tokens"))},
        sizes={"block": range(3), "writer": ("attn", "ffn")},
        variables={"tcs": Variable(dims=("block",), definition="Mean cosine")},
        forecasts={},
        attributes={
            "name": "two",
            "configuration": json.dumps({}),
            "variables": json.dumps(["tcs", "status"]),
        },
    )


def test_the_second_of_two_creators_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process finishes between the check of the path and the renaming."""
    store, to_zarr = tmp_path / "s.zarr", xr.Dataset.to_zarr

    def overtaken(*given: object, **named: object) -> object:
        monkeypatch.setattr(xr.Dataset, "to_zarr", to_zarr)
        create_two_cells(store)
        SweepWriter(store).write(1, {"tcs": np.ones(3, np.float32)}, DONE)
        return to_zarr(*given, **named)

    monkeypatch.setattr(xr.Dataset, "to_zarr", overtaken)
    with pytest.raises(StoreExistsError, match="already exists"):
        create_two_cells(store)
    assert open_cells(store)["status"].values.tolist() == [TODO, DONE]
    assert [path.name for path in tmp_path.iterdir()] == ["s.zarr"]


def test_provenance_is_kept_beside_the_results(tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    create_two_cells(store)
    writer = SweepWriter(store)
    writer.write(0, {}, FAILED, wall_seconds=1.5, failure="ValueError: \u03b1 " + "x" * 5000)
    data = open_cells(store)
    assert data["wall_seconds"].values[0] == 1.5 and np.isnan(data["wall_seconds"].values[1])
    assert data["finished"].values[0] > 1.7e9 and np.isnan(data["finished"].values[1])
    text, none = data["failure"].values
    assert text.startswith("ValueError: \u03b1 xxx") and len(text) == 2000 and none == ""
    assert set(open_progress(store).data_vars) == {"status", *PROVENANCE}
    writer.write(0, {"tcs": np.ones(3, np.float32)}, DONE)
    assert open_cells(store)["failure"].values.tolist() == ["", ""]
    assert not list((store / "failure" / "c").glob("*"))


def test_a_store_without_provenance_is_read_and_written(store: Path) -> None:
    """Stores of older versions have none."""
    for name in PROVENANCE:
        shutil.rmtree(store / name)
    writer = SweepWriter(store)
    assert writer.remaining() == ([], [])
    writer.write(3, {}, FAILED, wall_seconds=1.0, failure="RuntimeError: no")
    assert set(open_progress(store).data_vars) == {"status"}
    assert not set(PROVENANCE) & set(open_cells(store).data_vars)
    assert SweepWriter(store).remaining() == ([3], [])


def test_lost_provenance_is_not_a_lost_result(store: Path) -> None:
    (store / "wall_seconds" / "c" / "5").unlink()
    assert SweepWriter(store).remaining() == ([], [])
    assert np.isnan(open_cells(store)["wall_seconds"].values[5])


def test_damaged_provenance_is_repaired_with_its_cell(store: Path) -> None:
    (store / "wall_seconds" / "c" / "5").write_bytes(b"torn")
    with pytest.raises(StoreError, match="run the sweep with --resume"):
        open_cells(store)
    assert SweepWriter(store).remaining() == ([5], [5])


def test_only_the_cells_asked_for_are_looked_at(store: Path) -> None:
    for cell in (2, 5):
        shutil.rmtree(store / "tcs" / "c" / str(cell))
    assert SweepWriter(store).remaining([7, 5, 3]) == ([5], [5])


def test_progress_of_lost_results_is_refused(store: Path) -> None:
    shutil.rmtree(store / "tcs" / "c" / "5")
    with pytest.raises(StoreError, match="tcs of 1 finished cells is missing; run with --resume"):
        open_progress(store)
