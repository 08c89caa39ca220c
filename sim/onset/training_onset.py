"""Measured onset of a training run: the label of its collapse, from TCS and loss only, and the evidence."""

# N steps, M steps at which a signal was measured

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from meanmode.theory.meanfield.predicted_front import FRONT_COSINE

Array = NDArray[np.float64]


Evidence = dict[str, float | int | None]


INITIAL_STEPS = 10
"""Losses whose median is the initial level."""


SMOOTHED_STEPS = 15
"""Steps of the running median of the loss: at most 7 of them, a spike, are passed over; a jump stays one."""


BACK = 0.85
"""Share of the initial level above which the smoothed loss is back. Of collapses 30 steps long in runs whose
loss is 2 +- 0.2 and 1.2 +- 0.2 before (as batches of four are), 0.9 misses 4 in 100, and this one in 1000."""


LEARNED = 0.75
"""Share of the initial level below which the smoothed loss shows that the run had learned."""


DIVERGED = 2.0
"""Multiple of the initial level above which the smoothed loss has diverged. The initial level is the mean
square of what is to be predicted, since the first prediction is near zero and tells nothing; one that is as
large as its target and tells nothing doubles it."""


SUSTAINED_STEPS, SUSTAINED_ROWS = 20, 3
"""A stretch that counts: at least so many steps, and so many measured rows unless it reaches the last one."""


WINDOW = 100
"""Steps on either side of the onset that evidence is taken from."""


MOVED, MOVED_LOSS = 3.0, 1.25
"""Factor by which a signal has moved away from its median before the onset, up or down; of the loss, which a
collapse does not lift above its initial level."""


SIGNALS = (
    *("g_mean", "g_ctr", "mode_ratio", "amplification", "grad_rms_q", "grad_rms_k", "tcs", "rho"),
    *("loss", "grad_norm"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Onset:
    """Whether, when and how a run failed.

    Attributes:
        step: the onset; None where there is none.
        kind: `mean_mode` is a signature and no cause.
        evidence: signal -> `first_step` at which it has moved away, and `ratio` of its medians behind and
            before the onset; None where that cannot be said. Empty without an onset.
    """

    step: int | None
    kind: Literal["mean_mode", "plain_divergence", "none"]
    evidence: dict[str, Evidence]


def training_onset(run: xr.Dataset) -> Onset:
    """The label of a run's collapse (TCS and loss only), and how other signals moved around its onset.

    `mean_mode`: the median TCS (`tcs_image` where measured) over the measured blocks behind half the depth is
    above 0.9 while the smoothed loss is above `BACK` of its initial level, at every measured row of a stretch
    of at least `SUSTAINED_STEPS` steps and `SUSTAINED_ROWS` rows (fewer where it reaches the last row). The
    onset is the first step of the stretch of TCS above 0.9 around it; where that is more than `WINDOW` steps
    earlier, deep blocks had been homogeneous while the run learned, and the onset is where the loss is back.

    `plain_divergence`, unless a `mean_mode` began before it or at most `WINDOW` steps behind it: a loss that
    is infinite, or NaN to the end (for longer than it was ever unmeasured before); or above `DIVERGED` times
    its initial level for `SUSTAINED_STEPS`; or, after it had fallen below `LEARNED` of that level, back above
    `BACK` of it to the end, for as long, while TCS was measured and not always above 0.9. The onset is the
    first such step.

    Evidence is looked for within `WINDOW` steps of the onset, in medians over the same blocks and both
    writers. A signal has moved from the first row on from which it is off its median before the onset by the
    factor `MOVED` (`MOVED_LOSS`) for three rows or to the window's end; what was over before the onset does
    not count. TCS is judged by 1 - TCS.

    Args:
        run: of `meanmode.sim.store.sweep_store.open_run`. Its attribute `initial_loss`, where there is one, is the initial level
            of a run that does not begin with the training; else it is the median of the first
            `INITIAL_STEPS` losses.

    Raises:
        ValueError: neither a TCS nor a loss to label it by.
    """
    label = token_cosine(run)
    if "loss" not in run or not bool(run["loss"].notnull().any()):
        raise ValueError("the run has logged no loss: a collapse is labelled by TCS and loss")
    every, loss = run["step"].values, run["loss"].values.astype(np.float64)
    level = _smoothed(loss) / initial_level(run)
    steps, values = deep_medians(run, label)
    high = values > FRONT_COSINE
    collapse = _collapse(steps, high, level[np.searchsorted(every, steps)] > BACK)
    divergence = _divergence(every, loss, level, steps, high)
    if collapse is not None and (divergence is None or collapse <= divergence + WINDOW):
        return Onset(step=collapse, kind="mean_mode", evidence=_evidence(run, collapse))
    if divergence is not None:
        return Onset(step=divergence, kind="plain_divergence", evidence=_evidence(run, divergence))
    return Onset(step=None, kind="none", evidence={})


def initial_level(run: xr.Dataset) -> float:
    """The loss before training: the run's `initial_loss`, or the median of its first losses; NaN without any.

    Args:
        run: that has logged its loss.
    """
    loss = run["loss"].values.astype(np.float64)
    finite = loss[np.isfinite(loss)][:INITIAL_STEPS]
    return float(run.attrs.get("initial_loss", np.median(finite) if len(finite) else np.nan))


def token_cosine(run: xr.Dataset) -> str:
    """The TCS that labels: of the image tokens where it is measured."""
    for name in ("tcs_image", "tcs"):
        if name in run and bool(run[name].notnull().any()):
            return name
    if "tcs" in run:
        return "tcs"
    raise ValueError("the run has no TCS: a collapse is labelled by TCS and loss, so it must log tcs")


def _smoothed(loss: Array) -> Array:
    """Running median of the loss, and its last value where it was not measured for long; NaN before any."""
    series = pd.Series(np.where(np.isfinite(loss), loss, np.nan))
    median = series.rolling(SMOOTHED_STEPS, center=True, min_periods=1).median()
    return median.ffill().to_numpy(np.float64)


def deep_medians(run: xr.Dataset, name: str) -> tuple[NDArray[np.int64], Array]:
    """Steps at which a signal was measured [M], and its medians over the blocks of the deeper half [M].

    Args:
        run: of `meanmode.sim.store.sweep_store.open_run`.
        name: a variable of it, over both writers where it has them; or `mode_ratio`, G_mean / G_ctr.
    """
    if name == "mode_ratio":
        with np.errstate(divide="ignore", invalid="ignore"):
            signal = run["g_mean"].astype(float) / run["g_ctr"]
    else:
        signal = run[name].astype(float)
    signal = signal.transpose("step", ...)
    if "block" in signal.dims:
        signal = signal.isel(block=_deep(run["block"].values))
    rows = signal.values.reshape(signal.sizes["step"], -1)
    measured = ~np.isnan(rows).all(1)
    return run["step"].values[measured], _medians(rows[measured])


def deep_median(values: ArrayLike) -> float:
    """Median of an observable [L + 1, ...] over the blocks of the deeper half; NaN where none is measured."""
    rows = np.asarray(values, dtype=np.float64)
    rows = rows[_deep(np.arange(len(rows)))].reshape(1, -1)
    return float(_medians(rows)[0]) if not np.isnan(rows).all() else float("nan")


def _deep(blocks: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which blocks are behind half the depth."""
    return blocks > blocks.max() / 2


def _medians(rows: Array) -> Array:
    """Medians of rows that each hold a number, what is not measured left out."""
    return np.nanmedian(rows, axis=1) if len(rows) else np.empty(0)


def _stretches(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and last place of every stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [(int(first), int(stop) - 1) for first, stop in edges.reshape(-1, 2)]


def _collapse(steps: NDArray[np.int64], high: NDArray[np.bool_], back: NDArray[np.bool_]) -> int | None:
    """First step of the sustained stretch of TCS above 0.9 with the loss back."""
    for first, last in _stretches(high & back):
        rows_enough = last - first + 1 >= SUSTAINED_ROWS or last == len(steps) - 1
        if steps[last] - steps[first] + 1 >= SUSTAINED_STEPS and rows_enough:
            begin = next(begin for begin, end in _stretches(high) if begin <= first <= end)
            return int(steps[begin if steps[first] - steps[begin] <= WINDOW else first])
    return None


def _divergence(
    every: NDArray[np.int64],
    loss: Array,
    level: Array,
    steps: NDArray[np.int64],
    high: NDArray[np.bool_],
) -> int | None:
    """First step of a failure that the loss shows.

    Args:
        every: step [N].
        loss: of every step [N].
        level: smoothed, over its initial level [N].
        steps: at which TCS was measured [M].
        high: where it was above 0.9 [M].
    """
    found = list(every[np.isinf(loss)][:1])
    measured = np.flatnonzero(~np.isnan(loss))
    if len(loss) - 1 - measured[-1] >= max(np.diff(measured), default=1):
        found.append(every[measured[-1] + 1])
    found += [
        every[first] for first, last in _stretches(level > DIVERGED) if last - first + 1 >= SUSTAINED_STEPS
    ]
    learned = np.logical_or.accumulate(level < LEARNED)
    for first, last in _stretches((level > BACK) & learned)[-1:]:
        lasting = last == len(level) - 1 and last - first + 1 >= SUSTAINED_STEPS
        if lasting and not high[steps >= every[first]].all():
            found.append(every[first])
    return int(min(found)) if found else None


def _evidence(run: xr.Dataset, onset: int) -> dict[str, Evidence]:
    """Signal -> when it moved away, and how far."""
    evidence = {}
    for signal in SIGNALS:
        name = token_cosine(run) if signal == "tcs" else signal
        if all(part in run for part in (("g_mean", "g_ctr") if signal == "mode_ratio" else (name,))):
            steps, values = deep_medians(run, name)
            near = np.abs(steps - onset) <= WINDOW
            evidence[signal] = _moved(signal, steps[near], values[near], onset)
    return evidence


def _moved(signal: str, steps: NDArray[np.int64], values: Array, onset: int) -> Evidence:
    """When a signal moved away from its median before the onset, and the ratio of its medians."""
    before, after = values[steps < onset], values[steps >= onset]
    if not len(before) or not len(after):
        return {"first_step": None, "ratio": None}
    reference, changed = float(np.median(before)), float(np.median(after))
    ratio = changed / reference if reference != 0 else np.inf
    judged, judge = (1 - values, 1 - reference) if signal == "tcs" else (values, reference)
    factor = MOVED_LOSS if signal == "loss" else MOVED
    away = (judged > factor * judge) | (judged < judge / factor)
    first_step = None
    for first, last in _stretches(away):
        if steps[last] >= onset and (last - first + 1 >= SUSTAINED_ROWS or last == len(steps) - 1):
            first_step = int(steps[first])
            break
    return {"first_step": first_step, "ratio": float(ratio) if np.isfinite(ratio) else None}
