"""Rows of sharded arrays: equal to what Zarr reads, with damage noticed in the rows that are read."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr

from meanmode.sim.store.files import StoreError
from meanmode.sim.store.sharded_rows import ShardedRows, add_sharded

ROWS, SHARD = 150, 64


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    """Random rows; one is all zeros, one holds the fill value."""
    found = np.random.default_rng(0).normal(size=(ROWS, 2, 3, 3)).astype(np.float16)
    found[7], found[8] = 0, np.nan
    return found


@pytest.fixture
def path(tmp_path: Path, values: np.ndarray) -> Path:
    """A store with one sharded array."""
    group = zarr.open_group(tmp_path / "rows.zarr", mode="w")
    array = add_sharded(group, "latents", values.shape, SHARD, ("n", "c", "h", "w"), "rows")
    for first in range(0, ROWS, SHARD):
        array[first : first + SHARD] = values[first : first + SHARD]
    return tmp_path / "rows.zarr"


def reader(path: Path) -> ShardedRows:
    return ShardedRows(path, zarr.open_group(path, mode="r")["latents"])


def test_rows_are_those_that_zarr_reads(path: Path, values: np.ndarray) -> None:
    chosen = np.random.default_rng(1).permutation(ROWS)
    np.testing.assert_array_equal(reader(path)(chosen), values[chosen])
    np.testing.assert_array_equal(zarr.open_group(path, mode="r")["latents"][:], values)
    assert len(list((path / "latents" / "c").iterdir())) == 3


def test_few_files_are_open_at_a_time(
    path: Path, values: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meanmode.sim.store.sharded_rows.OPEN_SHARDS", 1)
    rows = reader(path)
    np.testing.assert_array_equal(rows([0, 149, 70, 1]), values[[0, 149, 70, 1]])
    assert len(rows._open) == 1
    rows.close()
    assert not rows._open


def test_damage_is_noticed_in_the_row_that_is_read(path: Path, values: np.ndarray) -> None:
    file = path / "latents" / "c" / "1" / "0" / "0" / "0"
    content = bytearray(file.read_bytes())
    content[5 * (values[0].nbytes + 4) + 1] ^= 1
    file.write_bytes(bytes(content))
    np.testing.assert_array_equal(reader(path)([64, 70]), values[[64, 70]])
    with pytest.raises(StoreError, match=r"c/1/0/0/0 is damaged at row 69 of latents: encode it again"):
        reader(path)([69])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.unlink(), r"c/1/0/0/0 cannot be read \(No such file or directory\)"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "is damaged: its table of rows"),
        (lambda file: file.write_bytes(b""), "is damaged: its table of rows"),
    ],
)
def test_a_lost_or_truncated_shard_is_named(path: Path, damage, message: str) -> None:
    damage(path / "latents" / "c" / "1" / "0" / "0" / "0")
    with pytest.raises(StoreError, match=message):
        reader(path)([70])


def test_a_row_that_was_never_written_is_refused(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "rows.zarr", mode="w")
    array = add_sharded(group, "latents", (10, 2), SHARD, ("n", "c"), "rows")
    array.with_config({"write_empty_chunks": False})[:5] = np.ones((5, 2), np.float16)
    with pytest.raises(StoreError, match="is damaged at row 6 of latents"):
        ShardedRows(tmp_path / "rows.zarr", array)([6])


def test_another_layout_is_refused(tmp_path: Path) -> None:
    array = zarr.open_group(tmp_path / "rows.zarr", mode="w").create_array(
        "latents", shape=(4, 2), dtype="f2"
    )
    with pytest.raises(StoreError, match="latents is not made of rows with checksums in shards"):
        ShardedRows(tmp_path / "rows.zarr", array)


def test_two_threads_read_the_same_rows_as_one(
    path: Path, values: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meanmode.sim.store.sharded_rows.OPEN_SHARDS", 1)
    rows = reader(path)
    chosen = [np.random.default_rng(seed).integers(0, ROWS, 3000) for seed in range(2)]
    with ThreadPoolExecutor(2) as pool:
        for indices, found in zip(chosen, pool.map(rows, chosen), strict=True):
            np.testing.assert_array_equal(found, values[indices])


def test_complete_shards_are_told_from_missing_ones(path: Path) -> None:
    files = [path / "latents" / "c" / str(shard) / "0" / "0" / "0" for shard in range(3)]
    assert [reader(path).holds(shard) for shard in range(3)] == [True] * 3
    files[0].unlink()
    files[2].write_bytes(files[2].read_bytes()[:-3])
    assert [reader(path).holds(shard) for shard in range(3)] == [False, True, False]
