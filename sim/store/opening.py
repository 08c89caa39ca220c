"""Open a store that may be damaged or foreign: every fault becomes a `StoreError`, none of them a hang."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import zarr

from meanmode.sim.store.files import METADATA, UNREADABLE, StoreError, first_line
from meanmode.sim.store.regular_files import check_regular, parse_json, read_json

BELIEVED_BYTES, BELIEVED_RATIO = 2**30, 40_000
"""An array may declare this many bytes, and this many more for every byte of its files (zstd packs constants
about 30,000 times); beyond that its metadata are damaged."""


def open_kind(path: Path, mode: Any, kind: str) -> zarr.Group:
    """Open the group of a store and check its attribute `kind`.

    Raises:
        StoreError: the path is missing, unreadable, holds something else than regular files, or is a store of
            another kind.
    """
    if not path.exists():
        raise StoreError(f"{path} does not exist")
    if not path.is_dir():
        raise StoreError(f"{path} is not a readable Zarr group: it is no folder")
    try:
        check_regular(path)
        if (path / METADATA).exists():
            read_json(path / METADATA)
        group = zarr.open_group(path, mode=mode)
    except StoreError:
        raise
    except UNREADABLE as error:
        raise StoreError(f"{path} is not a readable Zarr group: {first_line(error)}") from error
    if group.attrs.get("kind") != kind:
        raise StoreError(f"{path} is not a {kind!r} store: its attribute kind is {group.attrs.get('kind')!r}")
    return group


def json_attribute(group: zarr.Group, path: Path, name: str, kind: type) -> Any:
    """The value of an attribute that holds JSON.

    Raises:
        StoreError: it is missing, not JSON, nested too deep, or of another type.
    """
    if name not in group.attrs:
        raise StoreError(f"{path} is damaged: its attribute {name} is missing")
    value = parse_json(str(group.attrs[name]), f"{path} is damaged: its attribute {name}")
    if not isinstance(value, kind):
        raise StoreError(f"{path} is damaged: its attribute {name} is not a {kind.__name__}")
    return value


def find_arrays(group: zarr.Group, path: Path, names: Iterable[str]) -> dict[str, zarr.Array[Any]]:
    """The arrays of these names.

    Raises:
        StoreError: some are missing or unreadable, or declare more data than their files can hold.
    """
    arrays: dict[str, zarr.Array[Any]] = {}
    missing = []
    for name in names:
        try:
            array = group[name]
        except UNREADABLE:
            missing.append(str(name))
            continue
        if isinstance(array, zarr.Array):
            _check_size(array, path)
            arrays[name] = array
    if missing:
        raise StoreError(f"{path} is truncated: it lacks a readable {', '.join(missing)}")
    return arrays


def _check_size(array: zarr.Array[Any], path: Path) -> None:
    """Refuse an array whose shape cannot be true, before anything of that size is read."""
    if array.nbytes > BELIEVED_BYTES:
        files = (file for file in (path / array.basename).rglob("*") if file.is_file())
        if array.nbytes > BELIEVED_BYTES + BELIEVED_RATIO * sum(file.stat().st_size for file in files):
            raise StoreError(
                f"{path} is damaged: {array.basename} has the shape {array.shape}, more than its files hold"
            )
