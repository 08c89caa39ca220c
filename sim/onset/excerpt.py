"""An excerpt of a run: some of its observables around the onset, in a small store of its own."""

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
from meanmode.sim.store.run_store import create_run
from meanmode.sim.store.run_writer import RunWriter


def excerpt(run: str | Path, out: str | Path, *, names: Sequence[str], around: int | None = None) -> None:
    """Copy observables of a run into a compacted store of their own, labelled by the onset of the whole run.

    All attributes but the events are kept. Two are added: `onset`, the onset of the whole run as JSON (a
    `meanmode.sim.onset.training_onset.Onset`), and `initial_loss`, the initial level of its loss.

    Args:
        run: the store, or a run's folder.
        out: path of the excerpt; must not exist.
        names: names of the observables.
        around: steps to copy on either side of the onset; None for all steps.

    Raises:
        StoreError: not a run, an observable was not logged, or `around` is given and there is no onset.
        StoreExistsError: something exists at `out`.
        ValueError: the run cannot be labelled.
    """
    whole = labelled(open_run(run))
    for name in names:
        if name not in whole:
            raise StoreError(f"{run} has no {name}: choose from {', '.join(map(str, whole))}")
    kept = whole[list(names)]
    if around is not None:
        onset = json.loads(whole.attrs["onset"])["step"]
        if onset is None:
            raise StoreError(f"{run} has no onset, so no {around} steps around it: copy all steps instead")
        kept = kept.sel(step=slice(onset - around, onset + around))
    _write(kept, Path(out), dict(whole.attrs))
    compact(out)


def labelled(run: xr.Dataset) -> xr.Dataset:
    """Return a run with the attributes that `excerpt` adds; an excerpt, which has them, is returned as it is.

    Args:
        run: a run from `meanmode.sim.store.run_reader.open_run`.

    Raises:
        ValueError: the run cannot be labelled.
    """
    if "onset" in run.attrs:
        return run
    onset = json.dumps(dataclasses.asdict(training_onset(run)))
    return run.assign_attrs(onset=onset, initial_loss=initial_level(run))


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
