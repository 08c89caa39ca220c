"""When a run is measured: regularly, into the ring buffer, and at every step around a suspected event."""

# L blocks

import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meanmode.dit.config.run_config import RunConfig
from meanmode.sim.onset.detector import Alarm, Detector
from meanmode.sim.onset.training_onset import SIGNALS, deep_median
from meanmode.theory.meanfield.predicted_front import FRONT_COSINE

Row = dict[str, Any]
"""Name -> value of one step."""


LEAST_HISTORY = 10
"""Steps before which no gradient norm is called unusual."""


def measured_blocks(run: RunConfig) -> tuple[int, ...]:
    """The blocks whose observables are taken, from 1."""
    depth, count = run.model.depth, run.training.telemetry_blocks
    if not 0 < count < depth:
        return tuple(range(1, depth + 1))
    return tuple(-(-depth * place // count) for place in range(1, count + 1))


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """What was suspicious about a step.

    Attributes:
        step: which.
        signal: `grad_norm`, `tcs`, `loss` where it is not finite, or what moved first to an alarm.
        value: of the signal.
        reference: what it was compared with.
    """

    step: int
    signal: str
    value: float
    reference: float


def _signals(row: Row) -> dict[str, float]:
    """What the detector is told of a measured step, as `meanmode.sim.onset.detector.alarms` takes it of a run."""
    names = [name for name in SIGNALS if name in row and name != "tcs"]
    names += [name for name in ("tcs_image", "tcs") if name in row][:1]
    return {name: deep_median(row[name]) for name in names}


class Watch:
    """When to measure, from what all processes know: the same answer on each, also after a resume.

    Args:
        run: the configuration.

    Attributes:
        until: last step that is measured because of an event.
        before: step and observables of the last measurement.
        detector: what raises the alarms.
    """

    def __init__(self, run: RunConfig) -> None:
        self.training = run.training
        self.detector = Detector()
        self.until = 0
        self._quiet: dict[str, int] = {}
        self._norms: deque[float] = deque(maxlen=run.training.event_window)
        self.before: tuple[int, Row] | None = None
        self._tcs = 0.0
        self._ring: deque[tuple[int, Row]] = deque()

    def regular(self, step: int) -> bool:
        """Whether this step is measured in any case, with its functional step."""
        every = self.training.telemetry_every
        return bool(every) and (step == 1 or step % every == 0)

    def stored(self, step: int) -> bool:
        """Whether this step is measured for the store."""
        return self.regular(step) or (self.training.telemetry_every > 0 and step <= self.until)

    def kept(self, step: int) -> bool:
        """Whether this step is measured for the ring buffer."""
        every = self.training.watch_every
        return bool(every) and step % every == 0

    def notice(self, step: int, loss: float, norm: float, row: Row) -> tuple[Event | None, Alarm | None]:
        """An event, if this step is suspicious, and an alarm, if it makes one, which is an event too.

        None of a signal of which an event is being watched.

        Args:
            step: which.
            loss: of the batch.
            norm: of the gradient before clipping.
            row: what was measured; may be empty.
        """
        usual = statistics.median(self._norms) if len(self._norms) >= LEAST_HISTORY else float("inf")
        before, cosines = self._tcs, row.get("tcs_image", row.get("tcs"))
        if cosines is not None:
            self._tcs = deep_median(cosines)
        self._norms.append(norm)
        found = []
        if not np.isfinite(loss):
            found.append(Event(step=step, signal="loss", value=loss, reference=usual))
        if norm > self.training.event_ratio * usual:
            found.append(Event(step=step, signal="grad_norm", value=norm, reference=usual))
        if before < FRONT_COSINE <= self._tcs:
            found.append(Event(step=step, signal="tcs", value=self._tcs, reference=FRONT_COSINE))
        alarm = self.detector.update(step, {"loss": loss, "grad_norm": norm, **_signals(row)})
        if alarm is not None:
            first = alarm.moved[0]
            found.append(Event(step=step, signal=first.signal, value=first.value, reference=first.reference))
        event = next((of for of in found if step > self._quiet.get(of.signal, 0)), None)
        if event is None and alarm is not None:
            event = found[-1]
        if event is not None:
            self.until = self._quiet[event.signal] = step + self.training.event_window
        return event, alarm

    def measured(self, step: int, row: Row, *, stored: bool) -> None:
        """Remember what was measured, in the ring buffer too unless it is stored anyway; it may be empty."""
        if row:
            self.before = (step, row)
            if not stored:
                self._ring.append((step, row))
        self._forget(step)

    def _forget(self, step: int) -> None:
        while self._ring and self._ring[0][0] <= step - self.training.event_window:
            self._ring.popleft()

    def released(self, step: int) -> list[tuple[int, Row]]:
        """What the ring buffer holds of the window before a step; it is empty then."""
        self._forget(step)
        rows, self._ring = list(self._ring), deque()
        return rows

    def state(self) -> dict[str, NDArray[Any]]:
        """All that `restore` needs."""
        found = {
            "until": np.array(self.until),
            **{f"quiet.{signal}": np.array(step) for signal, step in self._quiet.items()},
            "tcs": np.array(self._tcs),
            "norms": np.array(list(self._norms), dtype=np.float64),
            **{f"detector.{name}": value for name, value in self.detector.state().items()},
        }
        held = [("ring", *entry) for entry in self._ring]
        if self.before is not None:
            held.append(("before", *self.before))
        for kind, step, row in held:
            found |= {f"{kind}.{step}.{name}": np.asarray(value) for name, value in row.items()}
        return found

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on as the one whose `state` this is."""
        self.until, self._tcs = int(state["until"]), float(state["tcs"])
        self._norms.clear()
        self._norms.extend(state["norms"].tolist())
        seen = {name: value for name, value in state.items() if name.startswith("detector.")}
        if seen:  # a checkpoint of an earlier version has none
            self.detector.restore({name.removeprefix("detector."): value for name, value in seen.items()})
        rows: dict[str, dict[int, Row]] = {"ring": {}, "before": {}}
        for name, value in state.items():
            if name in seen:
                continue
            kind, *place = name.split(".", 2)
            if kind == "quiet":
                self._quiet[place[0]] = int(value)
            elif place:
                rows[kind].setdefault(int(place[0]), {})[place[1]] = value
        self._ring = deque(sorted(rows["ring"].items()))
        self.before = next(iter(rows["before"].items()), None)
