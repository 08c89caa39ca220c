"""One signal as the detector watches it: its recent past, and how far its latest samples have moved away."""

import math
import re
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meanmode.sim.onset.training_onset import BACK, INITIAL_STEPS, LEARNED
from meanmode.theory.meanfield.predicted_front import FRONT_COSINE

WINDOW = 40
"""Samples in a signal's past: enough for a median and a spread, few enough to follow slow changes."""


LATEST, PERSISTENT = 4, 3
"""A signal has moved when `PERSISTENT` of its `LATEST` samples are away. A spike of one step, or the two
samples that a restart takes to settle, do not suffice; a collapse is seen three samples after its onset."""


LEAST, FEW = 5, 2
"""Nothing is judged with fewer than `LEAST` samples in the past; with n of them the spread counts as
1 + FEW / n times as large, since small samples underestimate it. So a signal that drifts evenly, and is off
the median of n older samples by n / 2 + LATEST - 1/2 steps of its drift, stays within
`SPREADS` * 1.48 * (n + FEW) / 4."""


SPREADS = 2.5
"""Spreads (1.48 times the median absolute deviation, as for a normal distribution) beyond which a sample is
away: 1 in 160 on one side, so that three of four are 1 in 10^6."""


MOVED, MOVED_LOSS = 2.0, 1.15
"""Smallest factors by which a sample can be away, however quiet the signal was; the second for the loss,
which a collapse cannot lift above its initial level."""


HALF = 0.5
"""Share of its initial level below which a rising loss says nothing: a network that has memorised its few
samples has a loss near zero, which multiplies now and then."""


SMALLEST, LARGEST = 1e-30, 1e30
"""Values beyond these count as zero and as infinite."""


UP, EITHER = 1, 0
"""Direction in which a signal moves in a collapse."""


KINDS = {
    "loss": ("loss", UP),
    **dict.fromkeys(("tcs", "token_sim", "token_cosine", "rho"), ("tokens", UP)),
    **dict.fromkeys(("r_tr", "tr_ratio", "var_gain", "row_div", "mu_eff"), ("tokens", EITHER)),
    **dict.fromkeys(("retention", "leakage", "functional_step"), ("tokens", EITHER)),
    **dict.fromkeys(("g_", "grad", "writer_", "deep_", "global_"), ("gradients", EITHER)),
    **dict.fromkeys(("amplification", "kappa", "mode_ratio", "adjoint_tcs"), ("gradients", EITHER)),
}
"""Beginning of a name (`tcs_image`), or of a part of it (`train/loss`, `tcs.384`) -> kind of the signal, and
its direction. Any other name is of the kind `other`. Signals of one kind carry the same evidence, which
counts once."""


COSINES = ("tcs", "token_sim", "token_cosine")
"""Signals judged by their distance from 1."""


ROUNDING = 1e-3
"""Amount by which a cosine computed in half precision may exceed 1."""


Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Moved:
    """A signal that has moved.

    Attributes:
        signal: name of the signal.
        first_step: step from which it has been away.
        value: its value at the alarm, or when it was last measured.
        reference: median of its own past.
        factor: value over reference; for a TCS, 1 - TCS over that of the reference.
    """

    signal: str
    first_step: int
    value: float
    reference: float
    factor: float


class WatchedSignal:
    """The past of a signal, and the deviation of its latest samples from it.

    Args:
        name: name under which the signal was logged; kind and direction follow from it.
        guessed: read the signal as a cosine although its name does not say so; a value beyond 1 ends that.
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
        """Judge a sample against the past, then add it to the past."""
        if self.guessed and abs(value) > 1 + ROUNDING:
            self.forget()
            self.skip = math.inf
        x = math.log(min(max(1 - value if self.cosine else value, SMALLEST), LARGEST))
        if self.skip:
            self.skip -= 1
            return
        self.value = value
        self.off.append(self._deviation(x))
        self.past.append(x)
        if len(self.first) < INITIAL_STEPS:
            self.first.append(x)
        if self.off[-1] and math.isnan(self.since):
            self.since = step
        elif not any(list(self.off)[PERSISTENT - LATEST - 1 :]):
            self.since = math.nan

    def _deviation(self, x: float) -> float:
        """Logarithm of the factor by which a sample differs from its past; 0 if it is not away."""
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
        """Whether a loss has returned to its initial level after falling below it by more than its noise."""
        initial = float(np.median(self.first))
        learned = self.lowest < initial + math.log(LEARNED)
        return learned and x > max(initial + math.log(BACK), self.lowest + noise)

    def moved(self, *, factor: float = 1.0, times: int = 1) -> bool:
        """Whether enough of the latest samples are away on the same side.

        Args:
            factor: smallest factor by which a sample must be away to count.
            times: multiple of `LATEST` samples to look at, and of `PERSISTENT` samples to require.
        """
        off = np.array(self.off)[-times * LATEST :]
        off = off[np.abs(off) >= math.log(factor)]
        return bool(max((off > 0).sum(), (off < 0).sum()) >= times * PERSISTENT)

    def at_front(self) -> bool:
        """Whether the signal is a cosine that has moved to the front in enough of the latest samples."""
        missing = np.exp([self.reference, *list(self.past)[-LATEST:]]) >= 1 - FRONT_COSINE
        return self.cosine and self.moved() and bool(missing[0]) and int((~missing[1:]).sum()) >= PERSISTENT

    def at_initial(self) -> bool:
        """Whether the latest samples of a loss are near its initial level, whatever came in between."""
        latest = list(self.past)[-LATEST:]
        return bool(latest and np.median(latest) > np.median(self.first) + math.log(BACK))

    def forget(self) -> None:
        """Start a new past; the initial level is kept."""
        self.past.clear()
        self.off.clear()
        self.lowest, self.since = math.inf, math.nan

    def restart(self) -> None:
        """Skip the samples that follow a restart of the run."""
        self.skip = max(self.skip, LATEST)
        self.off.clear()
        self.since = math.nan

    def report(self) -> Moved:
        """Describe how the signal has moved."""
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
        """Everything that `restore` needs, by part."""
        scalars = (self.lowest, self.since, self.value, self.reference, self.skip)
        return {
            "past": np.array(self.past),
            "off": np.array(self.off),
            "first": np.array(self.first),
            "about": np.array(scalars, dtype=np.float64),
        }

    def restore(self, part: str, values: Array) -> None:
        """Restore one part of a `state` in a new signal."""
        if part == "about":
            self.lowest, self.since, self.value, self.reference, self.skip = values.tolist()
        else:
            getattr(self, part).extend(values.tolist())
