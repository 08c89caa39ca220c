"""The rows of a watched run: into the run store, past the detector, and to a sink."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from meanmode.sim.onset.deep_blocks import deep_median
from meanmode.sim.watch.guard import say
from meanmode.sim.watch.watch_plan import WatchPlan

if TYPE_CHECKING:
    from meanmode.sim.onset.detector import Alarm, Detector
    from meanmode.sim.watch.watched_store import WatchedStore

Sink = Callable[[int, dict[str, float]], object]
"""Takes a step and a few scalars."""


class WatchedRows:
    """Hands out completed rows.

    Args:
        out: folder for a run store; None writes none.
        sink: called with each measured step and a few scalars; None for none.
        every: steps between measurements.

    Attributes:
        alarms: alarms of the detector so far.
    """

    def __init__(self, out: Path | None, sink: Sink | None, *, every: int) -> None:
        self.alarms: list[Alarm] = []
        self._out, self._sink, self._every = out, sink, every
        self._store: WatchedStore | None = None
        self._detector: Detector | None = None

    def hand_out(
        self,
        plan: WatchPlan,
        step: int,
        row: Mapping[str, Any],
        *,
        first: int,
        latest: Mapping[str, float] | None,
    ) -> None:
        """Hand out the row of a step.

        Args:
            plan: what is measured.
            step: number of the step.
            row: logged numbers and measured arrays.
            first: first step of this session.
            latest: scalars of the step for the sink; None if it was not measured.
        """
        alarm = self._alarm(step, row) if self._out is not None or self._sink is not None else None
        if self._out is not None:
            self._stored(self._out, plan, first).write(step, row)
            if alarm is not None:
                self._stored(self._out, plan, first).annotate(alarm.document())
        if self._sink is not None and (latest is not None or alarm is not None):
            scalars = {name: value for name, value in row.items() if isinstance(value, float)}
            said = {f"alarm/{alarm.kind}": 1.0} if alarm else {}
            self._sink(step, {**scalars, **(latest or {}), **said})

    def flush(self, *, now: bool) -> None:
        """Write held values to disk if the last time was long ago, or now."""
        if self._store is not None:
            self._store.flush(now=now)

    def finish(self) -> None:
        """Write everything and cut the plan to the last step."""
        if self._store is not None:
            self._store.finish()

    def _stored(self, out: Path, plan: WatchPlan, first: int) -> "WatchedStore":
        if self._store is None:
            from meanmode.sim.watch.watched_store import WatchedStore

            self._store = WatchedStore(out, plan, every=self._every, first=first)
        return self._store

    def _alarm(self, step: int, row: Mapping[str, Any]) -> "Alarm | None":
        from meanmode.sim.onset.detector import MAX_LOGIT, Detector
        from meanmode.sim.onset.training_onset import SIGNALS

        self._detector = self._detector or Detector()
        names = [name for name in (*SIGNALS, MAX_LOGIT) if name in row and name != "tcs"]
        names += [name for name in ("tcs_image", "tcs") if name in row and not np.isnan(row[name]).all()][:1]
        signals = {name: deep_median(row[name]) if np.ndim(row[name]) else row[name] for name in names}
        alarm = self._detector.update(step, signals)
        if alarm is not None:
            self.alarms.append(alarm)
            say(str(alarm))
        return alarm
