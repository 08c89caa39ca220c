"""When a run is measured: regularly, into the ring buffer, and at every step around a suspected event."""

# L blocks

import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dit.config import RunConfig

Row = dict[str, Any]
"""Name -> value of one step."""

COLLAPSED_TCS = 0.9
"""Token cosine of the front, as `sim.onset` has it."""

LEAST_HISTORY = 10
"""Steps before which no gradient norm is called unusual."""


def measured_blocks(run: RunConfig) -> tuple[int, ...]:
    """The blocks whose observables are taken, from 1."""
    depth, count = run.model.depth, run.training.telemetry_blocks
    if not 0 < count < depth:
        return tuple(range(1, depth + 1))
    return tuple(-(-depth * place // count) for place in range(1, count + 1))


def deep_median(values: NDArray[Any]) -> float:
    """Median of an observable over the measured blocks of the deeper half; NaN where none is measured."""
    deep = np.asarray(values)[len(values) // 2 :]
    found = deep[np.isfinite(deep)]
    return float(np.median(found)) if found.size else float("nan")


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """What was suspicious about a step.

    Attributes:
        step: which.
        signal: `grad_norm`, `tcs`, or `loss` where it is not finite.
        value: of the signal.
        reference: what it was compared with.
    """

    step: int
    signal: str
    value: float
    reference: float


class Watch:
    """When to measure, from what all processes know: the same answer on each, also after a resume.

    Args:
        run: the configuration.

    Attributes:
        until: last step that is measured because of an event.
        before: step and observables of the last measurement.
    """

    def __init__(self, run: RunConfig) -> None:
        self.training = run.training
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

    def notice(self, step: int, loss: float, norm: float, row: Row) -> Event | None:
        """An event, if this step is suspicious; none while one of the same signal is being watched.

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
        found = None
        if not np.isfinite(loss):
            found = Event(step=step, signal="loss", value=loss, reference=usual)
        elif norm > self.training.event_ratio * usual:
            found = Event(step=step, signal="grad_norm", value=norm, reference=usual)
        elif before < COLLAPSED_TCS <= self._tcs:
            found = Event(step=step, signal="tcs", value=self._tcs, reference=COLLAPSED_TCS)
        if found is None or step <= self._quiet.get(found.signal, 0):
            return None
        self.until = self._quiet[found.signal] = step + self.training.event_window
        return found

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
        rows: dict[str, dict[int, Row]] = {"ring": {}, "before": {}}
        for name, value in state.items():
            kind, *place = name.split(".", 2)
            if kind == "quiet":
                self._quiet[place[0]] = int(value)
            elif place:
                rows[kind].setdefault(int(place[0]), {})[place[1]] = value
        self._ring = deque(sorted(rows["ring"].items()))
        self.before = next(iter(rows["before"].items()), None)
