"""An excerpt of a run: a few of its observables around its onset, in a small store of its own."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from meanmode.sim.onset.training_onset import initial_level, training_onset
from meanmode.sim.store.compaction import compact
from meanmode.sim.store.files import StoreError, Variable
from meanmode.sim.store.run_reader import open_run
from meanmode.sim.store.run_store import RunWriter, create_run


def excerpt(run: str | Path, out: str | Path, *, names: Sequence[str], around: int | None = None) -> None:
    """Copy observables of a run into a compacted store of their own, labelled by the onset of the whole run.

    Attributes are kept, but for the events; added are `onset`, the `meanmode.sim.onset.training_onset.Onset` of the whole
    run as JSON, and `initial_loss`, its initial level.

    Args:
        run: the store, or a run's folder.
        out: where; must not exist.
        names: of the observables.
        around: steps on either side of the onset that are copied; None for all.

    Raises:
        StoreError: no run, an observable it has not logged, or no onset to copy the surroundings of.
        StoreExistsError: something is already at `out`.
        ValueError: a run that cannot be labelled.
    """
    whole = open_run(run)
    onset = training_onset(whole)
    for name in names:
        if name not in whole:
            raise StoreError(f"{run} has not logged {name}: choose from {', '.join(map(str, whole))}")
    kept = whole[list(names)]
    if around is not None:
        if onset.step is None:
            raise StoreError(f"{run} has no onset to copy {around} steps around: copy all its steps")
        kept = kept.sel(step=slice(onset.step - around, onset.step + around))
    added = {"onset": json.dumps(dataclasses.asdict(onset)), "initial_loss": initial_level(whole)}
    _write(kept, Path(out), {**whole.attrs, **added})
    compact(out)


def _write(kept: xr.Dataset, out: Path, attributes: dict[str, Any]) -> None:
    first, last = (int(kept["step"][end]) for end in (0, -1))
    create_run(
        out,
        steps=last,
        interval=last,
        sizes={str(name): kept[name].values.tolist() for name in kept.coords if name != "step"},
        variables={
            str(name): Variable(
                dims=tuple(map(str, values.dims[1:])),
                definition=values.attrs["long_name"],
                units=values.attrs["units"],
            )
            for name, values in kept.items()
        },
        attributes=attributes,
    )
    writer = RunWriter(out, after=first - 1)
    for step in range(first, last + 1):
        writer.log(step, {str(name): np.asarray(values) for name, values in kept.sel(step=step).items()})
    writer.finish()
