"""The detector: alarms at the onset of a collapse, from a run's own past, as it goes on or afterwards."""

import math
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from meanmode.sim.onset.training_onset import (
    BACK,
    INITIAL_STEPS,
    LEARNED,
    SIGNALS,
    deep_medians,
    token_cosine,
)
from meanmode.theory.meanfield.predicted_front import FRONT_COSINE

WINDOW = 40
"""Samples of a signal that are its past: long enough for a median and a spread, short enough to follow what
training does slowly."""


LATEST, PERSISTENT = 4, 3
"""A signal has moved when it is away in so many of its latest samples. A spike of one step, and the two that
a restart takes to settle, are not enough; and a collapse is seen three samples behind its onset."""


LEAST, FEW = 5, 2
"""Samples of the past without which nothing is judged; and with n of them a spread counts as 1 + FEW / n
times as large, since few show too small a one. So a signal that drifts evenly, which is off the median of n
older samples by n / 2 + LATEST - 1/2 steps of its drift, stays within `SPREADS` * 1.48 * (n + FEW) / 4."""


SPREADS = 2.5
"""Spreads (1.48 times the median absolute deviation, as of a normal distribution) beyond which a sample is
away: 1 in 160 on one side, so that three of four are 1 in 10^6."""


MOVED, MOVED_LOSS = 2.0, 1.15
"""Factors that a sample must be away by at least, however quiet the signal was; of the loss, which a collapse
cannot lift above its initial level."""


HALF = 0.5
"""Share of its initial level below which a loss that rises tells nothing: a network that has learned its few
samples by heart has a loss near zero, which multiplies now and then."""


FAR = 13.0
"""Factor by which signals of two kinds are off when they are alarm enough without the loss, as where it was
near its initial level before. Fitted: within three steps a collapse moved gradients by 15 and more, the first
homogeneous blocks of a run that went on learning by 11."""


QUIET = 20
"""Steps in a row without what an alarm needs, after which the next one can be raised."""


RESTART, STEPS = 10.0, 9
"""A step this many times as far behind the last one as usual (median of so many), or not behind it, is a
restart: the `LATEST` samples that follow are off, and left out."""


SMALLEST, LARGEST = 1e-30, 1e30
"""Beyond them values are as good as zero and as infinite."""


UNWATCHED = ("step", "epoch", "lr", "learning_rate", "tokens_seen", "wall_s", "data_wait_s")
"""What a schedule or a clock makes, and no training."""


UP, EITHER = 1, 0


GUESSED = "guessed_"
"""Before the parts of the state of a signal that is read as a cosine by guess."""


KINDS = {
    "loss": ("loss", UP),
    **dict.fromkeys(("tcs", "token_sim", "token_cosine", "rho"), ("tokens", UP)),
    **dict.fromkeys(("r_tr", "tr_ratio", "var_gain", "row_div", "mu_eff"), ("tokens", EITHER)),
    **dict.fromkeys(("retention", "leakage", "functional_step"), ("tokens", EITHER)),
    **dict.fromkeys(("g_", "grad", "writer_", "deep_", "global_"), ("gradients", EITHER)),
    **dict.fromkeys(("amplification", "kappa", "mode_ratio", "adjoint_tcs"), ("gradients", EITHER)),
}
"""Beginnings of names (`tcs_image`), or of parts of them (`train/loss`, `tcs.384`): what they speak of, and
the direction in which they move in a collapse. Other names are of the kind `other`. Signals of a kind say one
thing, and count once."""


COSINES = ("tcs", "token_sim", "token_cosine")
"""Judged by what is missing to 1."""


ROUNDING = 1e-3
"""By which a cosine, taken in half precision, may be above 1."""


Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Moved:
    """A signal that has moved.

    Attributes:
        signal: its name.
        first_step: from which on it is away.
        value: at the alarm, or when it was last measured.
        reference: median of its own past.
        factor: how many times the reference it is; of a TCS, 1 - TCS over that of the reference.
    """

    signal: str
    first_step: int
    value: float
    reference: float
    factor: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Alarm:
    """The onset of a collapse, as the detector sees it.

    Attributes:
        step: at which it is raised.
        moved: the signals that moved, the first one first.
    """

    step: int
    moved: tuple[Moved, ...]

    def document(self) -> dict[str, Any]:
        """As an event of the run store: the first signal, its value, and all that moved."""
        first = self.moved[0]
        return {
            "step": self.step,
            "signal": first.signal,
            "value": first.value,
            "moved": [asdict(of) for of in self.moved],
        }

    def __str__(self) -> str:
        said = (f"{of.signal} {of.factor:.3g} times from step {of.first_step}" for of in self.moved)
        return f"alarm at step {self.step}: {', '.join(said)}"


class _Signal:
    """One signal: its past, and how far its latest samples are off.

    Args:
        name: of it.
        guessed: whether to read it as a cosine, which its name does not tell; a value beyond 1 ends that.
    """

    def __init__(self, name: str, *, guessed: bool = False) -> None:
        words = [word.removeprefix("train_").removeprefix("val_") for word in re.split("[/.:]", name.lower())]
        found = [known for word in words for prefix, known in KINDS.items() if word.startswith(prefix)]
        self.name = name
        self.kind, self.direction = found[0] if found else ("other", EITHER)
        self.guessed = guessed
        self.cosine = guessed or any(word.startswith(COSINES) for word in words)
        self.past: deque[float] = deque(maxlen=WINDOW + LATEST - 1)
        self.off: deque[float] = deque(maxlen=2 * LATEST)
        self.first: deque[float] = deque(maxlen=INITIAL_STEPS)
        self.lowest = math.inf
        self.since = self.value = self.reference = math.nan
        self.skip = 0.0

    def add(self, step: int, value: float) -> None:
        """Judge a sample, and remember it."""
        if self.guessed and abs(value) > 1 + ROUNDING:
            self.forget()
            self.skip = math.inf
        x = math.log(min(max(1 - value if self.cosine else value, SMALLEST), LARGEST))
        if self.skip:
            self.skip -= 1
            return
        self.value = value
        self.off.append(self._off(x))
        self.past.append(x)
        if len(self.first) < INITIAL_STEPS:
            self.first.append(x)
        if self.off[-1] and math.isnan(self.since):
            self.since = step
        elif not any(list(self.off)[PERSISTENT - LATEST - 1 :]):
            self.since = math.nan

    def _off(self, x: float) -> float:
        """Logarithm of the factor that a sample is off its past by; 0 where it is not away."""
        past = np.array(self.past)[: 1 - LATEST]
        if len(past) < LEAST:
            return 0.0
        self.reference = float(np.median(past))
        self.lowest = min(self.lowest, self.reference)
        noise = SPREADS * (1 + FEW / len(past)) * 1.4826 * float(np.median(np.abs(past - self.reference)))
        off = x - self.reference
        least = math.log(MOVED_LOSS if self.kind == "loss" else MOVED)
        if self.kind == "loss" and x < float(np.median(self.first)) + math.log(HALF):
            return 0.0
        if self.kind == "loss" and self._is_back(x, noise):
            return max(off, least)
        wrong_way = self.direction == UP and (off > 0) is self.cosine
        return 0.0 if wrong_way or abs(off) < max(noise, least) else off

    def _is_back(self, x: float, noise: float) -> bool:
        """Whether a loss is at its initial level again, after it had left it by more than its noise."""
        initial = float(np.median(self.first))
        learned = self.lowest < initial + math.log(LEARNED)
        return learned and x > max(initial + math.log(BACK), self.lowest + noise)

    def moved(self, *, factor: float = 1.0, times: int = 1) -> bool:
        """Whether enough of the latest samples are away on one side, by this factor at least.

        Args:
            factor: by which.
            times: how many times as many samples are asked.
        """
        off = np.array(self.off)[-times * LATEST :]
        off = off[np.abs(off) >= math.log(factor)]
        return bool(max((off > 0).sum(), (off < 0).sum()) >= times * PERSISTENT)

    def at_front(self) -> bool:
        """Whether it is a cosine that has moved to the front, in enough of the latest samples."""
        missing = np.exp([self.reference, *list(self.past)[-LATEST:]]) >= 1 - FRONT_COSINE
        return self.cosine and self.moved() and bool(missing[0]) and int((~missing[1:]).sum()) >= PERSISTENT

    def at_initial(self) -> bool:
        """Whether the latest samples of a loss are near its initial level, wherever they were between."""
        latest = list(self.past)[-LATEST:]
        return bool(latest and np.median(latest) > np.median(self.first) + math.log(BACK))

    def forget(self) -> None:
        """Begin a new past; the initial level stays."""
        self.past.clear()
        self.off.clear()
        self.lowest, self.since = math.inf, math.nan

    def restart(self) -> None:
        """Leave out what follows."""
        self.skip = max(self.skip, LATEST)
        self.off.clear()
        self.since = math.nan

    def report(self) -> Moved:
        """How it has moved."""
        reference = math.exp(self.reference)
        value = 1 - self.value if self.cosine else self.value
        return Moved(
            signal=self.name,
            first_step=int(self.since),
            value=self.value,
            reference=1 - reference if self.cosine else reference,
            factor=value / reference,
        )

    def state(self) -> dict[str, Array]:
        about = (self.lowest, self.since, self.value, self.reference, self.skip)
        return {
            "past": np.array(self.past),
            "off": np.array(self.off),
            "first": np.array(self.first),
            "about": np.array(about, dtype=np.float64),
        }

    def restore(self, part: str, values: Array) -> None:
        if part == "about":
            self.lowest, self.since, self.value, self.reference, self.skip = values.tolist()
        else:
            getattr(self, part).extend(values.tolist())


class Detector:
    """Alarms of a run, from each step's past alone.

    A sample is away where its logarithm (that of 1 - TCS for a cosine) is off the median of the `WINDOW`
    samples of its signal before the `LATEST` ones, by `SPREADS` of their spread and by a least factor, in the
    direction known for it; or where it is a loss that is at its initial level again after it had left it. A
    signal has moved when `PERSISTENT` of its `LATEST` samples are away on one side. An alarm is raised when

    * signals of two kinds have moved (`KINDS`), the loss among them if there is one; or
    * signals of two kinds have moved by the factor `FAR`; or
    * a cosine of tokens has moved to the front while the loss, if there is one, is near its first level: the
      label of a collapse, as far as one sees it from its first samples (most runs that collapse early have
      not learned yet, so that their loss does not move); or
    * the loss, or the only kind there is, has moved for twice as long (there two signals, if there are two).

    Where no signal is known to be a cosine of tokens, one of a name that tells nothing is judged as such too,
    as long as it stays within 1; by the third rule alone.

    Behind an alarm the past of a loss begins anew, so that one that stays where it went is no news; and the
    next alarm needs `QUIET` steps without any of these before it.
    """

    def __init__(self) -> None:
        self._signals: dict[str, _Signal] = {}
        self._guessed: dict[str, _Signal] = {}
        self._steps: deque[int] = deque(maxlen=STEPS + 1)
        self._quiet = QUIET

    def update(self, step: int, values: Mapping[str, float]) -> Alarm | None:
        """An alarm, if this step makes one.

        Args:
            step: which; steps may be missing.
            values: signal -> number, NaN or none where it is not measured. Any name will do; of what is no
                cosine, negative numbers are left out.
        """
        if self._restarts(step):
            for signal in self._readings():
                signal.restart()
        self._steps.append(step)
        for name, value in values.items():
            if name in UNWATCHED or math.isnan(value):
                continue
            signal = self._signals.setdefault(name, _Signal(name))
            if signal.cosine or value >= 0:
                signal.add(step, float(value))
            if signal.kind == "other":
                self._guessed.setdefault(name, _Signal(name, guessed=True)).add(step, float(value))
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

    def _readings(self) -> list[_Signal]:
        return [*self._signals.values(), *self._guessed.values()]

    def _restarts(self, step: int) -> bool:
        apart = np.diff(list(self._steps))
        if len(apart) and step <= self._steps[-1]:
            self._steps.clear()
            return True
        return len(apart) >= STEPS and step - self._steps[-1] > RESTART * float(np.median(apart))

    def _evidence(self) -> list[_Signal]:
        """The signals that have moved, where they are enough for an alarm."""
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
        """All that `restore` needs."""
        found: dict[str, NDArray[Any]] = {
            "steps": np.array(self._steps, dtype=np.int64),
            "quiet": np.array(self._quiet),
        }
        for signal in self._readings():
            way = GUESSED if signal.guessed else ""
            found |= {f"{way}{part}.{signal.name}": values for part, values in signal.state().items()}
        return found

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on as the one whose `state` this is."""
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
            group.setdefault(name, _Signal(name, guessed=guessed)).restore(part.removeprefix(GUESSED), values)


def alarms(run: xr.Dataset) -> list[Alarm]:
    """The alarms of a run as they would have been raised while it went on.

    Args:
        run: of `meanmode.sim.store.sweep_store.open_run`; `SIGNALS` are watched where it has them, those of the blocks in medians
            over the deeper half, the TCS of the image tokens where it was measured; of a run that has none of
            these, whatever else is logged.
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
