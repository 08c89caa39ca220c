"""One signal as the detector watches it: its recent past, and how far its latest samples have moved away."""

import math
import re
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from meanmode.sim.onset.training_onset import (
    BACK,
    INITIAL_STEPS,
    LEARNED,
    SUSTAINED_ROWS,
    SUSTAINED_STEPS,
)
from meanmode.theory.meanfield.front import FRONT_COSINE

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


HALF = math.log(0.5)
"""Level over the initial one, as a logarithm, below which a rising loss says nothing: a network that has
memorised its few samples has a loss near zero, which multiplies now and then."""


SIGNAL_MOVED, LOSS_MOVED = math.log(MOVED), math.log(MOVED_LOSS)
LEARNED_LEVEL, BACK_LEVEL = math.log(LEARNED), math.log(BACK)


SMALLEST, LARGEST = 1e-30, 1e30
"""Values beyond these count as zero and as infinite."""


UP, EITHER = 1, 0
"""Direction in which a signal moves in a collapse."""


KINDS = {
    "loss": ("loss", UP),
    "max_logit": ("logits", UP),
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


FRONT_ROWS = 4
"""Consecutive samples of a cosine above the front that make an alarm: as many as there are within three steps
of an onset. Fewer count where they span `SUSTAINED_STEPS`, as for the label."""


RISEN = 1.25
"""Multiple of the first losses of a log that starts late above which the loss has risen."""


BORN_ROWS = 10
"""Samples above the front from the first on that make an alarm: some runs whose tokens are alike at the start
become unlike and learn."""


DEAD, DEAD_ROWS = 1e-2, 3
"""Share of its first samples below which a gradient, over the global norm, is dead, and samples it takes."""


GONE = 1e-3
"""The same share where a single sample decides, behind a front: in runs of BERT and ViT that are homogeneous
before they learn, and learn, the query gradients stay above 5e-3 of their share; where they never learn, they
fall below 1e-4 within two measurements."""


ALIKE = 1e-3
"""1 - TCS behind a front below which tokens are taken to be alike for good: 17 of 20 runs of BERT that never
learned were below within two measurements, none of 8 that were homogeneous and learned (least: 1.6e-3)."""


LASTING_ROWS = 20
"""Samples above the front that make an alarm although gradients live, in a run that has learned nothing."""


BEGUN, FEWEST = 0.95, 3
"""Share of its level in the first `FEWEST` samples below which the loss shows that a run has begun to learn.
Of the runs of `detector_unseen`, 99 in 100 were below .91 before they collapsed; BERT and ViT that became
homogeneous before they learned were above .975."""


LARGE_LOGIT, LOGIT_GROWTH, LOGIT_ROWS = 100.0, 10.0, 3
"""Attention logit, and multiple of its first samples, above which attention picks single tokens, and samples
it takes: exp(-100) is below the resolution of single precision, and bfloat16 cannot tell 100 from 100.2."""


FALLS = 0.75
"""Share of the highest of its latest samples below which a loss that has jumped falls again."""


SCALARS = (
    *("lowest", "since", "value", "reference", "skip"),
    *("rows", "front_rows", "front_step", "front_high"),
)
"""Attributes of a signal that are single numbers, in the order of its state."""


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

    def change(self) -> str:
        """How far the signal has moved, in words."""
        if known_name(self.signal)[2]:
            return f"{self.signal} at {self.value:.3g} (median before: {self.reference:.3g})"
        return f"{self.signal} by a factor of {self.factor:.3g}"


@cache
def known_name(name: str) -> tuple[str, int, bool]:
    """Kind and direction of a signal, and whether it is a token cosine, from the name it was logged under."""
    words = [word.removeprefix("train_").removeprefix("val_") for word in re.split("[/.:]", name.lower())]
    found = [known for word in words for prefix, known in KINDS.items() if word.startswith(prefix)]
    kind, direction = found[0] if found else ("other", EITHER)
    return kind, direction, any(word.startswith(COSINES) for word in words)


def watched_kind(name: str) -> str:
    """Kind of a signal, from the name it was logged under."""
    return known_name(name)[0]


def median(values: Collection[float]) -> float:
    """Median of a few numbers, faster than that of numpy."""
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


class WatchedSignal:
    """The past of a signal, and the deviation of its latest samples from it.

    Args:
        name: name under which the signal was logged; kind and direction follow from it.
        guessed: read the signal as a cosine although its name does not say so; a value beyond 1 ends that.
    """

    def __init__(self, name: str, *, guessed: bool = False) -> None:
        self.name = name
        self.kind, self.direction, cosine = known_name(name)
        self.guessed = guessed
        self.cosine = guessed or cosine
        self.past: deque[float] = deque(maxlen=WINDOW + LATEST - 1)
        self.off: deque[float] = deque(maxlen=2 * LATEST)
        self.first: deque[float] = deque(maxlen=INITIAL_STEPS)
        self.lowest = math.inf
        self.since = self.value = self.reference = math.nan
        self.skip = 0.0
        self.rows = self.front_rows = 0.0
        self.front_step = math.nan
        self.front_high = -math.inf

    def add(self, step: int, value: float, *, initial: bool = True) -> None:
        """Judge a sample against the past, then add it to the past.

        Args:
            step: number of the step.
            value: the sample.
            initial: whether it can be one of the first samples, whose median is the initial level.
        """
        if self.guessed and abs(value) > 1 + ROUNDING:
            self.forget()
            self.skip = math.inf
        x = math.log(min(max(1 - value if self.cosine else value, SMALLEST), LARGEST))
        if self.skip:
            self.skip -= 1
            return
        self.value = value
        self.rows += 1
        if self.cosine:
            self._follow_front(step, value)
        self.off.append(self._deviation(x))
        self.past.append(x)
        if initial and len(self.first) < INITIAL_STEPS:
            self.first.append(x)
        if self.off[-1] and math.isnan(self.since):
            self.since = step
        elif not any(list(self.off)[PERSISTENT - LATEST - 1 :]):
            self.since = math.nan

    def _follow_front(self, step: int, value: float) -> None:
        """Count the consecutive samples of a cosine that are above the front."""
        if value <= FRONT_COSINE:
            self.front_rows, self.front_step, self.front_high = 0.0, math.nan, -math.inf
            return
        self.front_rows += 1
        self.front_high = max(self.front_high, value)
        if self.front_rows == 1:
            self.front_step = float(step)

    def _deviation(self, x: float) -> float:
        """Logarithm of the factor by which a sample differs from its past; 0 if it is not away."""
        past = list(self.past)[: 1 - LATEST]
        if len(past) < LEAST:
            return 0.0
        self.reference = reference = median(past)
        self.lowest = min(self.lowest, reference)
        off = x - reference
        loss = self.kind == "loss"
        least = LOSS_MOVED if loss else SIGNAL_MOVED
        if loss and x < median(self.first) + HALF:
            return 0.0
        learned = loss and self.lowest < median(self.first) + LEARNED_LEVEL
        if not learned and (abs(off) < least or (self.direction == UP and (off > 0) is self.cosine)):
            return 0.0
        spread = median([abs(of - reference) for of in past])
        noise = SPREADS * (1 + FEW / len(past)) * 1.4826 * spread
        # a loss that has learned and is back at its initial level
        if learned and x > max(median(self.first) + BACK_LEVEL, self.lowest + noise):
            return max(off, least)
        wrong_way = self.direction == UP and (off > 0) is self.cosine
        return 0.0 if wrong_way or abs(off) < max(noise, least) else off

    def moved(self, *, factor: float = 1.0, times: int = 1) -> bool:
        """Whether enough of the latest samples are away on the same side.

        Args:
            factor: smallest factor by which a sample must be away to count.
            times: multiple of `LATEST` samples to look at, and of `PERSISTENT` samples to require.
        """
        if not any(self.off):
            return False
        off, least = list(self.off)[-times * LATEST :], math.log(factor)
        up = sum(of > 0 and of >= least for of in off)
        down = sum(of < 0 and of <= -least for of in off)
        return max(up, down) >= times * PERSISTENT

    def born(self) -> bool:
        """Whether the signal is a cosine that has been above the front since its first sample."""
        return self.cosine and 0 < self.front_rows == self.rows

    def at_front(self, step: int) -> bool:
        """Whether the signal is a cosine that stays above the front: for `FRONT_ROWS` samples, or fewer that
        span `SUSTAINED_STEPS`; for `BORN_ROWS` if it has been there since its first sample.
        """
        if not self.cosine or not self.front_rows:
            return False
        steps = step - self.front_step + 1
        if self.born():
            return self.front_rows >= BORN_ROWS and steps >= SUSTAINED_STEPS
        return self.front_rows >= FRONT_ROWS or (
            self.front_rows >= SUSTAINED_ROWS and steps >= SUSTAINED_STEPS
        )

    def near_initial(self, least: float, *, rows: int = 2 * LATEST, every: bool = False) -> bool:
        """Whether the latest samples are above a level, given as a logarithm over the initial one.

        Args:
            least: the level.
            rows: number of samples.
            every: ask it of all samples rather than of their median, or of the median of the `LATEST` ones.
        """
        latest = list(self.past)[-rows:]
        if not latest:
            return False
        level = median(self.first) + least
        if every:
            return len(latest) == rows and min(latest) > level
        return max(median(latest), median(latest[-LATEST:])) > level

    def has_begun(self) -> bool:
        """Whether the signal is a loss that has been below `BEGUN` of its first samples, in the median."""
        earliest = list(self.first)[:FEWEST]
        return bool(earliest) and self.lowest < median(earliest) + math.log(BEGUN)

    def dead(self) -> bool:
        """Whether the latest samples are far below the first ones."""
        latest = list(self.past)[-DEAD_ROWS:]
        full = len(self.first) == INITIAL_STEPS and len(latest) == DEAD_ROWS
        return full and bool(max(latest) < median(self.first) + math.log(DEAD))

    def gone(self) -> bool:
        """Whether the latest sample is far below the first ones."""
        return bool(self.first) and self.past[-1] < median(self.first) + math.log(GONE)

    def falls(self) -> bool:
        """Whether the latest sample is well below the highest of the latest ones."""
        latest = list(self.past)[-2 * LATEST :]
        return bool(latest) and latest[-1] < max(latest) + math.log(FALLS)

    def saturates(self) -> bool:
        """Whether the latest samples are attention logits that pick single tokens, unlike the first ones."""
        latest = list(self.past)[-LOGIT_ROWS:]
        if len(latest) < LOGIT_ROWS or not self.first:
            return False
        least = max(math.log(LARGE_LOGIT), median(self.first) + math.log(LOGIT_GROWTH))
        return min(latest) > least

    def away(self, *, rows: int, factor: float, either: bool = False) -> bool:
        """Whether each of the latest samples is away upwards, or either way, by at least a factor."""
        latest = [abs(of) if either else of for of in list(self.off)[-rows:]]
        return len(latest) == rows and min(latest) >= math.log(factor)

    def forget(self) -> None:
        """Start a new past; the initial level is kept."""
        self.past.clear()
        self.off.clear()
        self.lowest, self.since = math.inf, math.nan

    def restart(self) -> None:
        """Skip the samples that follow a restart of the run."""
        self.skip = max(self.skip, LATEST)
        self.off.clear()
        self.since, self.front_rows, self.front_step = math.nan, 0.0, math.nan
        self.front_high = -math.inf

    def report(self, step: int) -> Moved:
        """Describe how the signal has moved up to a step."""
        known = not math.isnan(self.reference)
        level = self.reference if known else median(self.first) if self.first else 0.0
        reference, since = math.exp(level), self.front_step if self.front_rows else self.since
        if self.front_rows and not math.isnan(self.since):
            since = min(since, self.since)
        value = 1 - self.value if self.cosine else self.value
        return Moved(
            signal=self.name,
            first_step=step if math.isnan(since) else int(since),
            value=self.value,
            reference=1 - reference if self.cosine else reference,
            factor=value / reference,
        )

    def state(self) -> dict[str, Array]:
        """Everything that `restore` needs, by part."""
        scalars = [getattr(self, name) for name in SCALARS]
        return {
            "past": np.array(self.past),
            "off": np.array(self.off),
            "first": np.array(self.first),
            "about": np.array(scalars, dtype=np.float64),
        }

    def restore(self, part: str, values: Array) -> None:
        """Restore one part of a `state` in a new signal."""
        if part == "about":
            # the state of an earlier version has fewer
            for name, value in zip(SCALARS, values.tolist(), strict=False):
                setattr(self, name, value)
        else:
            getattr(self, part).extend(values.tolist())
