"""A complete sweep with some of its observables only, small enough to commit."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import zarr

from meanmode.sim.store.compaction import compact
from meanmode.sim.store.files import StoreError, StoreExistsError
from meanmode.sim.store.sweep_store import open_cells


def sweep_excerpt(store: str | Path, out: str | Path, *, names: Sequence[str]) -> None:
    """Copy a complete sweep without its other observables into a compacted store of its own.

    Axes, forecasts, status and provenance are kept, bit by bit; the sweep can still be compared and drawn.

    Args:
        store: the sweep.
        out: path of the excerpt; must not exist.
        names: names of the observables to keep.

    Raises:
        StoreError: not a complete sweep, or it has no such observable.
        StoreExistsError: something exists at `out`.
    """
    store, out = Path(store), Path(out)
    data = open_cells(store)
    variables = json.loads(data.attrs["variables"])
    for name in names:
        if name not in variables:
            raise StoreError(f"{store} has no {name}: choose from {', '.join(variables)}")
    if out.exists():
        raise StoreExistsError(f"{out} exists: choose another path")
    kept = {*names, "status"}
    dropped = {name for name in variables if name not in kept and not name.startswith("predicted")}
    shutil.copytree(store, out, ignore=lambda at, held: dropped & set(held) if Path(at) == store else set())
    group = zarr.open_group(out, mode="r+")
    group.attrs["variables"] = json.dumps([name for name in variables if name not in dropped])
    compact(out)
