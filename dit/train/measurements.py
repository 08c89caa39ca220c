"""Decides when to measure a run: regularly, into a ring buffer, and at every step around an event."""

import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meanmode.dit.config.run_config import RunConfig
from meanmode.dit.config.training_config import FUNCTIONAL_STEP
from meanmode.dit.config.warning_premises import broken_premises
from meanmode.sim.observe.observable_names import observable_dims, without_suffix
from meanmode.sim.onset.deep_blocks import deep_median
from meanmode.sim.onset.detector import EARLY_WARNING, Alarm, Detector
from meanmode.sim.onset.early_warning import HORIZONS, RecentSignals
from meanmode.sim.onset.training_onset import SIGNALS
from meanmode.sim.onset.watched_signal import Moved
from meanmode.theory.meanfield.front import FRONT_COSINE

Row = dict[str, Any]
"""Observables of one step by name."""


COLLAPSE_CHANCE = "collapse_chance"
"""Name of the probability of the early warning in a row."""


LEAST_HISTORY = 10
"""Gradient norms needed before one can be called unusual."""


def measured_blocks(run: RunConfig) -> tuple[int, ...]:
    """Return the numbers (from 1) of the blocks to measure."""
    depth, count = run.model.depth, run.training.telemetry_blocks
    if not 0 < count < depth:
        return tuple(range(1, depth + 1))
    return tuple(-(-depth * number // count) for number in range(1, count + 1))


def measured_observables(run: RunConfig) -> dict[str, tuple[str, ...]]:
    """Return the observables of blocks to measure, with the suffixes of segments, and their dimensions."""
    dims = observable_dims(run.model.setting(run.training.batch), backward=True)
    return {name: of for name, of in dims.items() if run.training.observes(without_suffix(name))}


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """A suspicious step.

    Attributes:
        step: number of the step.
        signal: signal that raised suspicion: `grad_norm`, `tcs`, a non-finite `loss`, or, for an alarm, the
            signal that moved first.
        value: value of the signal.
        reference: usual or critical value with which it was compared.
    """

    step: int
    signal: str
    value: float
    reference: float


def _signals(row: Row) -> dict[str, float]:
    """Return the signals of a measured step for the detector, as `alarms` reads them from a store."""
    names = [name for name in SIGNALS if name in row and name != "tcs"]
    names += [name for name in ("tcs_image", "tcs") if name in row][:1]
    return {name: deep_median(row[name]) for name in names}


class TelemetryWatch:
    """Decides which steps to measure, alike on all processes and after a resume; finds events and alarms.

    Args:
        run: configuration of the run.

    Attributes:
        until: last step to be measured because of an event.
        before: step and observables of the last measurement.
        crossed: whether the token cosine rose above that of the front at the last step that was noticed.
        detector: detector that raises the alarms.
        recent: signals that the early warning reads.
    """

    def __init__(self, run: RunConfig) -> None:
        self.run, self.training = run, run.training
        self.detector, self.recent = Detector(), RecentSignals()
        self._warned = -run.training.event_window
        self.until = 0
        self._quiet: dict[str, int] = {}
        self._norms: deque[float] = deque(maxlen=run.training.event_window)
        self.before: tuple[int, Row] | None = None
        self.crossed = False
        self._tcs = 0.0
        self._ring: deque[tuple[int, Row]] = deque()

    def regular(self, step: int) -> bool:
        """Whether this step has a regular measurement, including the functional step."""
        every = self.training.telemetry_every
        return bool(every) and (step == 1 or step % every == 0)

    def stored(self, step: int) -> bool:
        """Whether this step is measured and stored."""
        return self.regular(step) or (self.training.telemetry_every > 0 and step <= self.until)

    def kept(self, step: int) -> bool:
        """Whether this step is measured at least for the ring buffer."""
        every = self.training.watch_every
        return bool(every) and step % every == 0

    def notice(self, step: int, loss: float, norm: float, row: Row) -> tuple[Event | None, Alarm | None]:
        """Return the event of this step, if it is suspicious, and its alarm, if it raises one.

        Every alarm comes with an event. After an event, its signal causes no other within the event window.

        Args:
            step: number of the step.
            loss: loss of the batch.
            norm: global gradient norm before clipping.
            row: observables of the step; may be empty.
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
        self.crossed = before < FRONT_COSINE <= self._tcs
        if self.crossed:
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

    def forecast(self, step: int, row: Row) -> Alarm | None:
        """Add the probability of a collapse to a stored row; return an alarm if `alarm_chance` asks for one.

        A row without a functional step gets none. It is NaN where the early warning has nothing to say: in
        the first steps, once tokens are alike, and where the configuration breaks its premises.

        Args:
            step: number of the step.
            row: observables of the step, including the functional step where it was taken.
        """
        cosine = deep_median(row["tcs_image"] if "tcs_image" in row else row["tcs"])
        self.recent.add(step, cosine, row.get(FUNCTIONAL_STEP, np.nan))
        if FUNCTIONAL_STEP not in row:
            return None
        silent = bool(broken_premises(self.run, step))
        chance = float("nan") if silent else self.recent.chance(HORIZONS[-1])
        row[COLLAPSE_CHANCE] = chance
        least, due = self.training.alarm_chance, self._warned + self.training.event_window
        if least is None or step < due or not chance >= least:
            return None
        self._warned = step
        moved = Moved(
            signal=COLLAPSE_CHANCE, first_step=step, value=chance, reference=least, factor=chance / least
        )
        return Alarm(step=step, moved=(moved,), kind=EARLY_WARNING)

    def measured(self, step: int, row: Row, *, stored: bool) -> None:
        """Remember the observables of a step, if any; the ring buffer keeps those that are not stored."""
        if row:
            self.before = (step, row)
            if not stored:
                self._ring.append((step, row))
        self._forget(step)

    def _forget(self, step: int) -> None:
        while self._ring and self._ring[0][0] <= step - self.training.event_window:
            self._ring.popleft()

    def released(self, step: int) -> list[tuple[int, Row]]:
        """Empty the ring buffer and return its steps within the window before this step."""
        self._forget(step)
        rows, self._ring = list(self._ring), deque()
        return rows

    def state(self) -> dict[str, NDArray[Any]]:
        """Return the state for `restore`, as arrays by name."""
        found = {
            "until": np.array(self.until),
            **{f"quiet.{signal}": np.array(step) for signal, step in self._quiet.items()},
            "tcs": np.array(self._tcs),
            "norms": np.array(list(self._norms), dtype=np.float64),
            **{f"detector.{name}": value for name, value in self.detector.state().items()},
            "warned": np.array(self._warned),
            **{f"recent.{name}": value for name, value in self.recent.state().items()},
        }
        held = [("ring", *entry) for entry in self._ring]
        if self.before is not None:
            held.append(("before", *self.before))
        for kind, step, row in held:
            found |= {f"{kind}.{step}.{name}": np.asarray(value) for name, value in row.items()}
        return found

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Restore a `state`."""
        self.until, self._tcs = int(state["until"]), float(state["tcs"])
        self._norms.clear()
        self._norms.extend(state["norms"].tolist())
        parts = {}
        for part in ("detector.", "recent."):
            of = {name: value for name, value in state.items() if name.startswith(part)}
            parts |= of
            if of:  # checkpoints of earlier versions have none
                restored = self.detector if part == "detector." else self.recent
                restored.restore({name.removeprefix(part): value for name, value in of.items()})
        self._warned = int(state.get("warned", np.array(self._warned)))
        rows: dict[str, dict[int, Row]] = {"ring": {}, "before": {}}
        for name, value in state.items():
            if name in parts:
                continue
            kind, *rest = name.split(".", 2)
            if kind == "quiet":
                self._quiet[rest[0]] = int(value)
            elif rest:
                rows[kind].setdefault(int(rest[0]), {})[rest[1]] = value
        self._ring = deque(sorted(rows["ring"].items()))
        self.before = next(iter(rows["before"].items()), None)
