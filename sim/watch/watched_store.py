"""The run store of a watched run; the first import of it loads zarr."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from meanmode.sim.store.files import StoreExistsError, Variable
from meanmode.sim.store.provenance import provenance
from meanmode.sim.store.run_reader import TELEMETRY
from meanmode.sim.store.run_store import create_run
from meanmode.sim.store.run_writer import RunWriter
from meanmode.sim.watch.watch_plan import WatchPlan
from meanmode.sim.watch.watched_names import SCALARS

LEAST_INTERVAL, ROWS = 64, 8
"""Least number of steps, and of measured steps, in one chunk of the store."""


FLUSH_SECONDS = 30.0
"""Most seconds for which measured values are held in memory while steps are measured."""


class WatchedStore:
    """Writes measured steps and logged scalars into a run store, which has a row for every step.

    Args:
        out: folder of the run. A run that is already there goes on if `first` is not 1.
        plan: what is measured.
        every: steps between measurements.
        first: first step of this session; rows of it and of later ones are dropped.

    Raises:
        StoreExistsError: a run is already there, and this one starts at step 1.
        StoreError: the run there cannot be resumed at this step, or the disk is full.
    """

    def __init__(self, out: Path, plan: WatchPlan, *, every: int, first: int) -> None:
        path = out / TELEMETRY
        if path.exists() and first == 1:
            raise StoreExistsError(
                f"{out} already holds a run: pass another `out`, or resume after its last step"
            )
        if not path.exists():
            out.mkdir(parents=True, exist_ok=True)
            interval = max(LEAST_INTERVAL, ROWS * every)
            scalars = {name: Variable(definition=of) for name, of in SCALARS.items()}
            observed = {
                name: Variable(dims=dims, definition=of) for name, (dims, of) in plan.definitions().items()
            }
            create_run(
                path,
                steps=first - 1 + interval,
                interval=interval,
                sizes={"block": range(plan.depth + 1), "writer": plan.labels},
                variables={**scalars, **observed},
                attributes={
                    "configuration": json.dumps({"depth": plan.depth, "watch": {"every": every}}),
                    "anatomy": json.dumps(plan.anatomy.document()),
                    "laws": json.dumps([]),
                    **provenance(),
                },
            )
            self._writer = RunWriter(path, after=first - 1)
        else:
            self._writer = RunWriter(path)
            if first <= self._writer.last:
                self._writer = RunWriter(path, after=first - 1)
        self._path = path
        self._flushed = time.monotonic()

    def write(self, step: int, row: Mapping[str, Any]) -> None:
        """Write values of a step; steps that were passed over get an empty row."""
        if step > self._writer.steps:
            self._writer.flush()
            self._writer = RunWriter(self._path, steps=max(2 * self._writer.steps, step))
        for between in range(self._writer.last + 1, step):
            self._writer.log(between, {})
        if step >= self._writer.first:
            self._writer.log(step, row)

    def annotate(self, event: Mapping[str, Any]) -> None:
        """Add an alarm."""
        self._writer.annotate(event)

    def flush(self, *, now: bool = False) -> None:
        """Write held values to disk if the last time was long ago, or now."""
        if now or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._writer.flush()
            self._flushed = time.monotonic()

    def finish(self) -> None:
        """Write everything and cut the plan to the last step."""
        self._writer.finish()
