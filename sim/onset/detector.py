"""The detector: alarms at the onset of a collapse, from a run's own past, live or afterwards."""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from meanmode.sim.onset.training_onset import (
    BACK,
    DIVERGED,
    INITIAL_STEPS,
    SIGNALS,
    deep_medians,
    not_a_number,
    token_cosine,
)
from meanmode.sim.onset.watched_signal import (
    ALIKE,
    LASTING_ROWS,
    LATEST,
    PERSISTENT,
    RISEN,
    Moved,
    WatchedSignal,
    median,
    watched_kind,
)

COLLAPSE, BORN, DIVERGENCE = "collapse", "homogeneous from the start", "divergence"
NOT_A_NUMBER, GRADIENTS_DEAD, LOGITS = "not a number", "gradients dead", "attention logits"
KINDS_OF_ALARMS = (NOT_A_NUMBER, COLLAPSE, BORN, DIVERGENCE, GRADIENTS_DEAD, LOGITS)
"""Kinds of alarms, in the order in which evidence is sought."""


EARLY_WARNING = "early warning"
"""Kind of an alarm that the detector does not raise: a large probability of a collapse, before its onset."""


NOT_FINITE_ROWS, GRADIENT_ROWS = 3, 20
"""Consecutive rows without a finite loss, or without a finite gradient norm, that make an alarm. Training
with scaled 16-bit numbers skips single steps whose gradient is not finite, without harm."""


SUDDEN, SUDDEN_ROWS = 1.5, 2
"""Factor by which the loss must be up, and number of samples, for a collapse that is seen at once, as in runs
with large batches, whose signals are quiet."""


JUMPED, JUMPED_ALONE, JUMPED_GRADIENTS, EXPLODED = 1.5, 1.2, 3.0, 4.0
"""Factors by which the loss and gradients must be off for a divergence; the second for a loss if no token
cosine is known, which would say more; the last over its initial level, beyond what other data do for several
steps to a network that is sure of the old ones (up to 3.6 times in `watched_alarms`)."""


CENTERED, QUERIES = ("g_ctr",), ("grad_rms_q", "grad_rms_k")
"""Names of the gradients that die."""


MAX_LOGIT = "max_logit"
"""Name of the largest attention logit, which `Watch` measures."""


GLOBAL_NORMS = ("grad_norm", "train_grad_norm", "gradient_norm")
"""Names of the global gradient norm, one of which a run logs."""


QUIET = 20
"""Consecutive steps without evidence for an alarm before the next alarm can be raised."""


RESTART, STEPS = 10.0, 9
"""A step that comes this many times as far after the previous one as usual (the median of `STEPS` intervals),
or not after it, is a restart: the samples that follow it are off and are skipped."""


UNWATCHED = ("step", "epoch", "lr", "learning_rate", "tokens_seen", "wall_s", "data_wait_s")
"""Quantities set by a schedule or a clock rather than by training."""


GUESSED, SHARE = "guessed_", "share_"
"""Prefixes, within `Detector.state`, of the parts of a signal that is read as a cosine by guess, and of a
gradient divided by the global gradient norm."""


COUNTS = ("quiet", "first_step", "loss_rows", "norm_rows", "bad_step", "noted", "gone_step")
"""Counts of a detector: rows without evidence, first step, rows without a finite loss and without a finite
gradient norm, the step of the first such row, rows until the next note can be made, and the latest step at
which centered and query gradients were gone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Alarm:
    """The onset of a collapse, as the detector sees it.

    Attributes:
        step: step at which the alarm is raised.
        moved: the signals that moved, in the order in which they did.
        kind: one of `KINDS_OF_ALARMS`, or `EARLY_WARNING`.
    """

    step: int
    moved: tuple[Moved, ...]
    kind: str = COLLAPSE

    def document(self) -> dict[str, Any]:
        """The alarm as an event of the run store: its first signal with its value, and all that moved."""
        first = self.moved[0]
        return {
            "step": self.step,
            "kind": self.kind,
            "signal": first.signal,
            "value": first.value,
            "moved": [asdict(of) for of in self.moved],
        }

    def __str__(self) -> str:
        said = (f"{of.change()} from step {of.first_step}" for of in self.moved)
        return f"alarm at step {self.step}: {self.kind}, {', '.join(said)}"


class Detector:
    """Alarms of a run, each from the rows up to it alone. A row is one logged step; any names are accepted.

    A sample is away if its logarithm (for a cosine, that of 1 - TCS) differs from the median of the `WINDOW`
    samples of its signal before the `LATEST` ones by `SPREADS` of their spread and by a minimum factor, in
    the direction known for the signal; or if it is a loss that is back at its initial level after leaving it.
    A signal has moved when `PERSISTENT` of its `LATEST` samples are away on one side. An alarm is raised for
    the first of these kinds (`KINDS_OF_ALARMS`) for which there is evidence:

    * not a number: the loss was not finite, or was exactly 0 with a gradient norm that is not finite, in
      `NOT_FINITE_ROWS` consecutive rows; or the gradient norm alone was not finite in `GRADIENT_ROWS`;
    * collapse: a token cosine stays above the front (`WatchedSignal.at_front`) while the loss, if logged, is
      near its initial level: the label of a collapse as far as its first samples show it. While the loss has
      never been below `BEGUN`, many networks become homogeneous for a while and learn later; then tokens must
      have been alike to `ALIKE`, or the centered and the query or key gradients, divided by the global
      gradient norm, below `GONE` of their first samples, or it takes `LASTING_ROWS` samples. Two suffice
      if the loss is up by `SUDDEN` and a gradient off by `JUMPED_GRADIENTS` in both. If the cosine has been
      above the front since its first sample, the kind is homogeneous from the start;
    * divergence: the loss is above `DIVERGED` times its initial level for `LATEST` samples; or up by `JUMPED`
      (`JUMPED_ALONE` if no token cosine is logged) for as long, or by `DIVERGED` for `PERSISTENT` samples,
      while gradients have moved by `JUMPED_GRADIENTS`; or, if no gradient is logged, up by `DIVERGED` for
      twice as long. If a token cosine is logged and no signal of the tokens has moved, it takes twice as many
      samples, of which the last is not well below the highest: a loss that jumps and falls is that of other
      data, unless it is above `EXPLODED` times its initial level for `PERSISTENT` samples;
    * gradients dead, if no token cosine is logged: the centered writer gradients and those of queries or
      keys, each divided by the global gradient norm, are below `DEAD` of their first samples, three in a row;
    * attention logits: the largest logit is above 100 and ten times its first samples, three in a row.

    A loss that moves for long without any of this is a note, not an alarm. In a log that starts late, near
    its initial level means above `RISEN` times its first losses.

    If no signal is known to be a token cosine, signals of unknown kind are judged as cosines too, as long as
    they stay within 1.

    After an alarm the past of the loss starts anew, so that a loss that stays where it went is not reported
    again; the next alarm needs `QUIET` rows without evidence.

    Attributes:
        notes: step and text of everything that was noticed without being an alarm.
    """

    def __init__(self) -> None:
        self.notes: list[tuple[int, str]] = []
        self._groups: dict[str, dict[str, WatchedSignal]] = {"": {}, GUESSED: {}, SHARE: {}}
        self._signals = self._groups[""]
        self._guessed = self._groups[GUESSED]
        self._shares = self._groups[SHARE]
        self._steps: deque[int] = deque(maxlen=STEPS + 1)
        self._counts = dict.fromkeys(COUNTS, 0)
        self._counts["quiet"] = QUIET

    def update(self, step: int, values: Mapping[str, float]) -> Alarm | None:
        """Take in one row, and return an alarm if it raises one.

        Args:
            step: number of the step; steps may be missing.
            values: signal -> value; absent where not measured. NaN counts as absent, except for a loss and a
                gradient norm, where it was logged. Negative values of signals that are not cosines are
                ignored.
        """
        if self._restarts(step):
            for signal in self._readings():
                signal.restart()
        self._counts["first_step"] = self._counts["first_step"] or max(step, 1)
        self._steps.append(step)
        self._count_not_finite(step, values)
        self._add(step, values)
        kind, moved = self._evidence(step)
        if not kind:
            self._counts["quiet"] += 1
            self._note(step)
            return None
        raised, self._counts["quiet"] = self._counts["quiet"] >= QUIET, 0
        if not raised:
            return None
        found = sorted((signal.report(step) for signal in moved), key=lambda of: of.first_step)
        if kind == NOT_A_NUMBER:
            since = self._counts["bad_step"]
            found = [replace(of, first_step=since, value=values.get(of.signal, math.nan)) for of in found]
        for signal in self._signals.values():
            if signal.kind == "loss":
                signal.forget()
        return Alarm(step=step, kind=kind, moved=tuple(found))

    def _add(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if name in UNWATCHED or (math.isnan(value) and watched_kind(name) != "loss"):
                continue
            signal = self._signals.setdefault(name, WatchedSignal(name))
            if math.isnan(value):
                continue
            if signal.cosine or value >= 0:
                signal.add(step, float(value))
            if signal.kind == "other":
                self._guessed.setdefault(name, WatchedSignal(name, guessed=True)).add(step, float(value))
        norm = next((values[name] for name in GLOBAL_NORMS if name in values), math.nan)
        front = any(signal.cosine and signal.front_rows for signal in self._signals.values())
        gone = []
        for name in CENTERED + QUERIES:
            if norm > 0 and values.get(name, 0.0) > 0:
                share = self._shares.setdefault(name, WatchedSignal(name))
                share.add(step, float(values[name]) / norm, initial=not front)
                gone += [name] if share.gone() else []
        if set(CENTERED) & set(gone) and set(QUERIES) & set(gone):
            self._counts["gone_step"] = step

    def _readings(self) -> list[WatchedSignal]:
        return [signal for group in self._groups.values() for signal in group.values()]

    def _restarts(self, step: int) -> bool:
        if len(self._steps) > 1 and step <= self._steps[-1]:
            self._steps.clear()
            return True
        return len(self._steps) > STEPS and step - self._steps[-1] > RESTART * self._spacing()

    def _spacing(self) -> float:
        """Usual number of steps between rows; NaN if there is one row or none."""
        steps = list(self._steps)
        apart = [after - before for before, after in pairwise(steps)]
        return median(apart) if apart else math.nan

    def _count_not_finite(self, step: int, values: Mapping[str, float]) -> None:
        losses = {name: value for name, value in values.items() if watched_kind(name) == "loss"}
        norms = [values[name] for name in GLOBAL_NORMS if name in values]
        no_norm = bool(norms) and not any(math.isfinite(value) for value in norms)
        if losses:
            bad = not any(math.isfinite(value) and not (value == 0 and no_norm) for value in losses.values())
            self._counts["loss_rows"] = self._counts["loss_rows"] + 1 if bad else 0
        if norms:
            self._counts["norm_rows"] = self._counts["norm_rows"] + 1 if no_norm else 0
        if 1 in (self._counts["loss_rows"], self._counts["norm_rows"]):
            self._counts["bad_step"] = step

    def _evidence(self, step: int) -> tuple[str, list[WatchedSignal]]:
        """Kind of the alarm for which there is evidence, empty if none, and the signals that show it."""
        signals = list(self._signals.values())
        moved = [signal for signal in signals if signal.moved()]
        losses = [signal for signal in signals if signal.kind == "loss"]
        if self._counts["loss_rows"] >= NOT_FINITE_ROWS or self._counts["norm_rows"] >= GRADIENT_ROWS:
            return NOT_A_NUMBER, losses or signals[:1]
        known = [signal for signal in signals if signal.cosine]
        fronts = self._fronts(step, known, losses)
        if fronts:
            named = {signal.name for signal in fronts}
            born = all(signal.born() for signal in fronts)
            return BORN if born else COLLAPSE, fronts + [of for of in moved if of.name not in named]
        if self._diverges(known, losses, moved):
            return DIVERGENCE, moved or losses
        dead = [] if known else [signal for signal in self._shares.values() if signal.dead()]
        if any(of.name in CENTERED for of in dead) and any(of.name in QUERIES for of in dead):
            return GRADIENTS_DEAD, [self._signals[of.name] for of in dead]
        large = [signal for signal in signals if signal.kind == "logits" and signal.saturates()]
        return (LOGITS, large) if large else ("", [])

    def _fronts(
        self,
        step: int,
        known: list[WatchedSignal],
        losses: list[WatchedSignal],
    ) -> list[WatchedSignal]:
        """The cosines that show a collapse."""
        high = [signal for signal in (known or self._guessed.values()) if signal.front_rows >= SUDDEN_ROWS]
        if not high:
            return []
        late = self._counts["first_step"] > INITIAL_STEPS * self._spacing()
        least = math.log(RISEN if late else BACK)
        if any(not loss.near_initial(least) for loss in losses):
            return []
        fronts = [signal for signal in high if signal.at_front(step) and self._cannot_learn(signal, losses)]
        gradients = [of for of in self._signals.values() if of.kind == "gradients"]
        pushed = any(of.away(rows=SUDDEN_ROWS, factor=JUMPED_GRADIENTS, either=True) for of in gradients)
        sudden = losses and pushed and all(of.away(rows=SUDDEN_ROWS, factor=SUDDEN) for of in losses)
        return fronts or [of for of in high if known and sudden and not of.born()]

    def _cannot_learn(self, front: WatchedSignal, losses: list[WatchedSignal]) -> bool:
        """Whether a front says that the run fails: not if it has learned nothing yet, with gradients alive.

        Unknown gradient shares count as alive: runs that log no gradient norm pass through a front and learn
        as often as others.
        """
        learned = any(loss.has_begun() for loss in losses)
        if learned or not losses or front.born() or front.front_rows >= LASTING_ROWS:
            return True
        return 1 - front.front_high < ALIKE or self._counts["gone_step"] >= front.front_step

    def _diverges(
        self, known: list[WatchedSignal], losses: list[WatchedSignal], moved: list[WatchedSignal]
    ) -> bool:
        gradients = [signal for signal in self._signals.values() if signal.kind == "gradients"]
        pushed = any(of.kind == "gradients" and of.moved(factor=JUMPED_GRADIENTS) for of in moved)
        # tokens that stay as they are: other data, perhaps, which the run learns as soon
        alone = bool(known) and not any(of.kind == "tokens" for of in moved)
        rows, few = (2 * LATEST, 2 * LATEST) if alone else (LATEST, PERSISTENT)
        if alone and any(of.near_initial(math.log(EXPLODED), rows=PERSISTENT, every=True) for of in losses):
            return True
        return any(
            loss.near_initial(math.log(DIVERGED), rows=rows, every=True)
            or (pushed and loss.away(rows=rows, factor=JUMPED if known else JUMPED_ALONE))
            or (pushed and loss.away(rows=few, factor=DIVERGED))
            or (not gradients and loss.away(rows=2 * LATEST, factor=DIVERGED))
            for loss in losses
            if not (alone and loss.falls())
        )

    def _note(self, step: int) -> None:
        jumped = [of for of in self._signals.values() if of.kind == "loss" and of.moved(times=2)]
        if jumped and not self._counts["noted"]:
            self.notes.append((step, f"{jumped[0].name} has moved and stays, without a sign of a failure"))
        self._counts["noted"] = QUIET if jumped else max(self._counts["noted"] - 1, 0)

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything that `restore` needs."""
        found: dict[str, NDArray[Any]] = {"steps": np.array(self._steps, dtype=np.int64)}
        found |= {name: np.array(count) for name, count in self._counts.items()}
        for group, signals in self._groups.items():
            for name, signal in signals.items():
                found |= {f"{group}{part}.{name}": values for part, values in signal.state().items()}
        return found

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Continue as the detector whose `state` is given."""
        for signals in self._groups.values():
            signals.clear()
        self._steps = deque(state["steps"].tolist(), maxlen=STEPS + 1)
        # the state of an earlier version has fewer counts
        self._counts = {name: int(state.get(name, np.array(0))) for name in COUNTS}
        for key, values in state.items():
            part, dot, name = key.partition(".")
            if not dot:
                continue
            group = next((group for group in (GUESSED, SHARE) if part.startswith(group)), "")
            signals = self._groups[group]
            signal = signals.setdefault(name, WatchedSignal(name, guessed=group == GUESSED))
            signal.restore(part.removeprefix(group), values)


def alarms(run: xr.Dataset) -> list[Alarm]:
    """The alarms that the detector would have raised during a run; see `watched`."""
    return watched(run)[0]


def watched(run: xr.Dataset) -> tuple[list[Alarm], list[tuple[int, str]]]:
    """The alarms that the detector would have raised during a run, and its notes.

    Args:
        run: a run from `meanmode.sim.store.run_reader.open_run`. The detector watches those of `SIGNALS` that
            were logged (observables of blocks as medians over the deeper half, the TCS of the image tokens
            where measured) and other gradients of an imported run, or everything if none of them was logged.
    """
    detector = Detector()
    found = (detector.update(step, values) for step, values in watched_rows(run))
    return [alarm for alarm in found if alarm is not None], detector.notes


def watched_rows(run: xr.Dataset) -> list[tuple[int, dict[str, float]]]:
    """Steps of a run and the values that the detector is shown; NaN of a loss or norm where it was logged."""
    names = [name for name in (*SIGNALS, MAX_LOGIT) if name in run and name != "tcs"]
    if "tcs" in run or "tcs_image" in run:
        names.append(token_cosine(run))
    if "import" in run.attrs:
        scalars = [str(name) for name in run.data_vars if run[name].dims == ("step",)]
        names += [name for name in scalars if name not in names and watched_kind(name) == "gradients"]
    names = names or [str(name) for name in run.data_vars if "step" in run[name].dims]
    rows: dict[int, dict[str, float]] = {}
    for name in names:
        steps, values = deep_medians(run, name)
        for step, value in zip(steps.tolist(), values.tolist(), strict=True):
            rows.setdefault(step, {})[name] = value
        if run[name].dims == ("step",) and (name in GLOBAL_NORMS or watched_kind(name) == "loss"):
            nan = not_a_number(run, name)
            for step in run["step"].values[nan].tolist():
                rows.setdefault(step, {})[name] = math.nan
    return sorted(rows.items())
