"""The detector: alarms at the onset of a collapse, from a run's own past, live or afterwards."""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from meanmode.sim.onset.training_onset import SIGNALS, deep_medians, token_cosine
from meanmode.sim.onset.watched_signal import Moved, WatchedSignal

FAR = 13.0
"""Factor by which signals of two kinds must be off to raise an alarm without the loss, as when the loss was
near its initial level anyway. Fitted: within three steps a collapse moved gradients by a factor of 15 or
more, the first homogeneous blocks of a run that kept learning by 11."""


QUIET = 20
"""Consecutive steps without evidence for an alarm before the next alarm can be raised."""


RESTART, STEPS = 10.0, 9
"""A step that comes this many times as far after the previous one as usual (the median of `STEPS` intervals),
or not after it, is a restart: the samples that follow it are off and are skipped."""


UNWATCHED = ("step", "epoch", "lr", "learning_rate", "tokens_seen", "wall_s", "data_wait_s")
"""Quantities set by a schedule or a clock rather than by training."""


GUESSED = "guessed_"
"""Prefix, within `Detector.state`, of the parts of a signal that is read as a cosine by guess."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Alarm:
    """The onset of a collapse, as the detector sees it.

    Attributes:
        step: step at which the alarm is raised.
        moved: the signals that moved, in the order in which they did.
    """

    step: int
    moved: tuple[Moved, ...]

    def document(self) -> dict[str, Any]:
        """The alarm as an event of the run store: its first signal with its value, and all that moved."""
        first = self.moved[0]
        return {
            "step": self.step,
            "signal": first.signal,
            "value": first.value,
            "moved": [asdict(of) for of in self.moved],
        }

    def __str__(self) -> str:
        said = (f"{of.signal} by a factor of {of.factor:.3g} from step {of.first_step}" for of in self.moved)
        return f"alarm at step {self.step}: {', '.join(said)}"


class Detector:
    """Alarms of a run, each from the steps up to it alone.

    A sample is away if its logarithm (for a cosine, that of 1 - TCS) differs from the median of the `WINDOW`
    samples of its signal before the `LATEST` ones by `SPREADS` of their spread and by a minimum factor, in
    the direction known for the signal; or if it is a loss that is back at its initial level after leaving it.
    A signal has moved when `PERSISTENT` of its `LATEST` samples are away on one side. An alarm is raised when

    * signals of two kinds have moved (`KINDS`), one of them the loss if it is logged; or
    * signals of two kinds have moved by the factor `FAR`; or
    * a token cosine has moved to the front while the loss, if logged, is near its initial level: the label of
      a collapse as far as its first samples show it (most runs that collapse early have not learned yet, so
      their loss does not move); or
    * the loss has moved for twice as long, or, if only one kind of signal is logged, two of its signals have
      (one, if there is only one).

    If no signal is known to be a token cosine, signals of unknown kind are judged as cosines too, by the
    third rule only, as long as they stay within 1.

    After an alarm the past of the loss starts anew, so that a loss that stays where it went is not reported
    again; the next alarm needs `QUIET` steps without any of this evidence.
    """

    def __init__(self) -> None:
        self._signals: dict[str, WatchedSignal] = {}
        self._guessed: dict[str, WatchedSignal] = {}
        self._steps: deque[int] = deque(maxlen=STEPS + 1)
        self._quiet = QUIET

    def update(self, step: int, values: Mapping[str, float]) -> Alarm | None:
        """Take in one step, and return an alarm if it raises one.

        Args:
            step: number of the step; steps may be missing.
            values: signal -> value; NaN or absent where not measured. Any name is accepted. Negative values
                of signals that are not cosines are ignored.
        """
        if self._restarts(step):
            for signal in self._readings():
                signal.restart()
        self._steps.append(step)
        for name, value in values.items():
            if name in UNWATCHED or math.isnan(value):
                continue
            signal = self._signals.setdefault(name, WatchedSignal(name))
            if signal.cosine or value >= 0:
                signal.add(step, float(value))
            if signal.kind == "other":
                self._guessed.setdefault(name, WatchedSignal(name, guessed=True)).add(step, float(value))
        moved = self._evidence()
        if not moved:
            self._quiet += 1
            return None
        raised, self._quiet = self._quiet >= QUIET, 0
        if not raised:
            return None
        moved.sort(key=lambda signal: (signal.since, -abs(signal.off[-1])))
        alarm = Alarm(step=step, moved=tuple(signal.report() for signal in moved))
        for signal in self._signals.values():
            if signal.kind == "loss":
                signal.forget()
        return alarm

    def _readings(self) -> list[WatchedSignal]:
        return [*self._signals.values(), *self._guessed.values()]

    def _restarts(self, step: int) -> bool:
        apart = np.diff(list(self._steps))
        if len(apart) and step <= self._steps[-1]:
            self._steps.clear()
            return True
        return len(apart) >= STEPS and step - self._steps[-1] > RESTART * float(np.median(apart))

    def _evidence(self) -> list[WatchedSignal]:
        """The signals that have moved, if they suffice for an alarm."""
        signals = self._signals.values()
        known = any(signal.cosine for signal in signals)
        cosines = [signal for signal in (signals if known else self._guessed.values()) if signal.at_front()]
        losses = [signal for signal in signals if signal.kind == "loss"]
        moved = [signal for signal in signals if signal.moved()]
        if cosines and all(loss.at_initial() for loss in losses):
            named = {signal.name for signal in cosines}
            return cosines + [signal for signal in moved if signal.name not in named]
        watched = {signal.kind for signal in signals}
        kinds = {signal.kind for signal in moved}
        far = {signal.kind for signal in moved if signal.moved(factor=FAR)}
        lasting = [signal for signal in moved if signal.moved(times=2)]
        alone = len(lasting) >= min(2, len(signals)) and len(watched) == 1
        if (
            (len(kinds) > 1 and ("loss" in kinds or "loss" not in watched))
            or len(far) > 1
            or alone
            or any(signal.kind == "loss" for signal in lasting)
        ):
            return moved
        return []

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything that `restore` needs."""
        found: dict[str, NDArray[Any]] = {
            "steps": np.array(self._steps, dtype=np.int64),
            "quiet": np.array(self._quiet),
        }
        for signal in self._readings():
            way = GUESSED if signal.guessed else ""
            found |= {f"{way}{part}.{signal.name}": values for part, values in signal.state().items()}
        return found

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Continue as the detector whose `state` is given."""
        self._signals.clear()
        self._guessed.clear()
        self._steps = deque(state["steps"].tolist(), maxlen=STEPS + 1)
        self._quiet = int(state["quiet"])
        for key, values in state.items():
            part, dot, name = key.partition(".")
            if not dot:
                continue
            guessed = part.startswith(GUESSED)
            group = self._guessed if guessed else self._signals
            signal = group.setdefault(name, WatchedSignal(name, guessed=guessed))
            signal.restore(part.removeprefix(GUESSED), values)


def alarms(run: xr.Dataset) -> list[Alarm]:
    """The alarms that the detector would have raised during a run.

    Args:
        run: a run from `meanmode.sim.store.run_reader.open_run`. The detector watches those of `SIGNALS` that
            were logged (observables of blocks as medians over the deeper half, the TCS of the image tokens
            where measured), or everything that was logged if none of them was.
    """
    names = [name for name in SIGNALS if name in run and name != "tcs"]
    if "tcs" in run or "tcs_image" in run:
        names.append(token_cosine(run))
    names = names or [str(name) for name in run.data_vars if "step" in run[name].dims]
    rows: dict[int, dict[str, float]] = {}
    for name in names:
        for step, value in zip(*deep_medians(run, name), strict=True):
            rows.setdefault(int(step), {})[name] = float(value)
    detector = Detector()
    found = (detector.update(step, rows[step]) for step in sorted(rows))
    return [alarm for alarm in found if alarm is not None]
