"""Compaction of a complete sweep or a finished run: one chunk per array, same bits, safe against kills."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.buffer import Buffer
from zarr.codecs import ZstdCodec
from zarr.core.metadata import ArrayV3Metadata
from zarr.storage import MemoryStore

from meanmode.sim.store.files import METADATA, StoreError, is_compacted, reason, write_files
from meanmode.sim.store.run_reader import dims_of, find_run, is_run, open_run, planned_steps
from meanmode.sim.store.sweep_store import FAILED, TODO, open_cells

CHUNKS = "c"
"""Folder of an array's chunks before compaction."""


def compact(path: str | Path) -> None:
    """Rewrite a complete sweep or a finished run with one chunk per variable; it is read-only afterwards.

    The bits stay the same, in far fewer files, and the store is valid at every moment. Compacted arrays are
    first written beside the store, their only chunk under a name that no existing chunk has (the `v2` chunk
    key encoding). Then, array by array, that chunk is moved into the store, one atomic rename replaces the
    array's metadata by those that name it, and the old chunks are deleted. A compaction that is killed leaves
    a mixture of both kinds of array, which reads the same; the next compaction finishes the job.

    Args:
        path: the store, or a run's folder.

    Raises:
        StoreError: unfinished cells or steps, or an error of the file system such as a full disk; the store
            is then unchanged.
    """
    run = is_run(path)
    path = find_run(path) if run else Path(path)
    _check_run(path) if run else _check_sweep(path)
    arrays = dict(zarr.open_group(path, mode="r").arrays())
    scattered = {
        name: array
        for name, array in arrays.items()
        if not is_compacted(array) and (array.nchunks > 1 or (run and "step" in dims_of(array)))
    }
    workspace = path.with_name(f".{path.name}.compacting")
    shutil.rmtree(workspace, ignore_errors=True)
    try:
        _write_compacted(scattered, workspace)
    except BaseException as error:
        shutil.rmtree(workspace, ignore_errors=True)
        if isinstance(error, OSError):
            raise StoreError(f"{path} could not be compacted ({reason(error)}); it is unchanged") from error
        raise
    for name in scattered:
        _exchange(workspace / name, path / name)
    for name, array in arrays.items():
        if is_compacted(array):
            shutil.rmtree(path / name / CHUNKS, ignore_errors=True)
    shutil.rmtree(workspace)


def _check_sweep(path: Path) -> None:
    unfinished = int(open_cells(path)["status"].isin([TODO, FAILED]).sum())
    if unfinished:
        raise StoreError(
            f"{path} still has {unfinished} unfinished cells: only a complete sweep can be compacted"
        )


def _check_run(path: Path) -> None:
    last, planned = int(open_run(path).attrs["logged_steps"]), planned_steps(path)
    if last < planned:
        raise StoreError(f"{path} is at step {last} of {planned}: only a finished run can be compacted")


def _write_compacted(arrays: dict[str, zarr.Array[Any]], workspace: Path) -> None:
    """Write arrays with one chunk each, verify that they read back, and sync them to disk."""
    files: dict[str, Buffer] = {}
    group = zarr.create_group(MemoryStore(files))
    for name, array in arrays.items():
        written = group.create_array(
            name,
            shape=array.shape,
            chunks=array.shape,
            dtype=_metadata(array).data_type,
            fill_value=array.fill_value,
            dimension_names=_metadata(array).dimension_names,
            attributes=dict(array.attrs),
            compressors=ZstdCodec(level=9, checksum=True),
            chunk_key_encoding={"name": "v2", "separator": "."},
            config={"write_empty_chunks": True},
        )
        values = np.asarray(array[...])
        written[...] = values
        if not _same_bits(np.asarray(written[...]), values):
            raise OSError(f"{name} does not read back as it was written")
    write_files(files, workspace)
    for name in files:
        with (workspace / name).open("rb") as written_file:
            os.fsync(written_file.fileno())


def _metadata(array: zarr.Array[Any]) -> ArrayV3Metadata:
    if not isinstance(array.metadata, ArrayV3Metadata):
        raise StoreError(f"{array.basename} is not in Zarr format 3, the only one that is written")
    return array.metadata


def _same_bits(first: NDArray[Any], second: NDArray[Any]) -> bool:
    """Bitwise equality, which tells NaNs apart; text is compared as text."""
    if first.dtype.kind in "OTU":
        return first.tolist() == second.tolist()
    return first.dtype == second.dtype and first.tobytes() == second.tobytes()


def _exchange(compacted: Path, scattered: Path) -> None:
    """Replace an array of many chunks by its compacted form; renaming the metadata, last, is the switch."""
    for file in sorted(compacted.iterdir(), key=lambda file: file.name == METADATA):
        file.replace(scattered / file.name)
    shutil.rmtree(scattered / CHUNKS, ignore_errors=True)
