"""Measured onset of a training run: the collapse label, from TCS and loss only, and its evidence."""

# N steps, M steps at which a signal was measured, L blocks

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from meanmode.sim.onset.deep_blocks import is_deep, medians
from meanmode.sim.store.run_reader import logged_mask
from meanmode.theory.meanfield.front import FRONT_COSINE

Array = NDArray[np.float64]


Evidence = dict[str, float | int | None]


INITIAL_STEPS = 10
"""Number of first losses whose median is the initial level."""


SMOOTHED_STEPS = 15
"""Window of the running median of the loss: it removes spikes of up to 7 steps and keeps jumps sharp."""


BACK = 0.85
"""Share of the initial level above which the smoothed loss is back. Of collapses that last 30 steps, in runs
whose loss is 2 +- 0.2 at first and 1.2 +- 0.2 before the collapse (noise of batches of four), a share of 0.9
would miss 4 in 100; this one misses 1 in 1000."""


LEARNED = 0.75
"""Share of the initial level below which the smoothed loss shows that the run has learned."""


DIVERGED = 2.0
"""Multiple of the initial level above which the smoothed loss has diverged. The initial level is the mean
square of the target, since the first prediction is near zero; a prediction as large as the target and
uncorrelated with it doubles that."""


SUSTAINED_STEPS, SUSTAINED_ROWS = 20, 3
"""Smallest stretch that counts, in steps and measured rows; fewer rows suffice if it reaches the last."""


WINDOW = 100
"""Steps on either side of the onset from which evidence is taken."""


MOVED, MOVED_LOSS = 3.0, 1.25
"""Factors, up or down, by which a signal must differ from its median before the onset to have moved; the
second for the loss, which a collapse does not lift above its initial level."""


SIGNALS = (
    *("g_mean", "g_ctr", "mode_ratio", "amplification", "grad_rms_q", "grad_rms_k", "tcs", "rho"),
    *("loss", "grad_norm"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Onset:
    """Whether, when and how a run failed.

    Attributes:
        step: step of the onset; None if there is none.
        kind: kind of failure; `mean_mode` is a signature, not a cause.
        evidence: signal -> `first_step`, from which it has moved away, and `ratio` of its medians after and
            before the onset; None where undetermined. Empty without an onset.
    """

    step: int | None
    kind: Literal["mean_mode", "plain_divergence", "none"]
    evidence: dict[str, Evidence]


def training_onset(run: xr.Dataset) -> Onset:
    """Label a run's collapse from TCS and loss only, and report how other signals moved around its onset.

    `mean_mode`: the median TCS (`tcs_image` where measured) over the measured blocks of the deeper half is
    above 0.9 while the smoothed loss is above `BACK` of its initial level, at every measured row of a stretch
    of at least `SUSTAINED_STEPS` steps and `SUSTAINED_ROWS` rows (fewer if it reaches the last row). The
    onset is the first step of the surrounding stretch of TCS above 0.9, unless that is more than `WINDOW`
    steps earlier: deep blocks were then homogeneous while the run still learned, and the onset is the step at
    which the loss is back.

    `plain_divergence`, unless a `mean_mode` began before it or at most `WINDOW` steps after it: a loss that
    is infinite; or NaN to the end (for longer than any earlier gap in its measurement); or above `DIVERGED`
    times its initial level for `SUSTAINED_STEPS`; or, after falling below `LEARNED` of that level, back above
    `BACK` of it to the end, for as long, while TCS was measured and not always above 0.9. The onset is the
    first such step.

    Evidence is sought within `WINDOW` steps of the onset, in medians over the same blocks and both writers. A
    signal has moved from the first row at which it differs from its median before the onset by the factor
    `MOVED` (`MOVED_LOSS`) for three rows or to the end of the window; a stretch that ends before the onset
    does not count. TCS is judged by 1 - TCS.

    Args:
        run: a run from `meanmode.sim.store.run_reader.open_run`. Its attribute `initial_loss`, if present,
            is the initial level of a run that does not start at the beginning of training; otherwise the
            initial level is the median of the first `INITIAL_STEPS` losses.

    Raises:
        ValueError: TCS or loss was not logged.
    """
    label = token_cosine(run)
    if "loss" not in run or not bool(run["loss"].notnull().any()):
        raise ValueError("the run has no loss: a collapse is labelled by TCS and loss, so it must log loss")
    every, loss = run["step"].values, run["loss"].values.astype(np.float64)
    level = _smoothed(loss) / initial_level(run)
    steps, values = deep_medians(run, label)
    high = values > FRONT_COSINE
    collapse = _collapse(steps, high, level[np.searchsorted(every, steps)] > BACK)
    divergence = _divergence(every, loss, level, steps, high)
    if collapse is not None and (divergence is None or collapse <= divergence + WINDOW):
        return Onset(step=collapse, kind="mean_mode", evidence=evidence_near(run, collapse))
    if divergence is not None:
        return Onset(step=divergence, kind="plain_divergence", evidence=evidence_near(run, divergence))
    return Onset(step=None, kind="none", evidence={})


def initial_level(run: xr.Dataset) -> float:
    """Loss before training: the run's attribute `initial_loss`, or the median of its first finite losses.

    Args:
        run: a run with a `loss`; the level is NaN if no loss is finite.
    """
    loss = run["loss"].values.astype(np.float64)
    finite = loss[np.isfinite(loss)][:INITIAL_STEPS]
    return float(run.attrs.get("initial_loss", np.median(finite) if len(finite) else np.nan))


def token_cosine(run: xr.Dataset) -> str:
    """Name of the TCS that labels a run: that of the image tokens where measured.

    Raises:
        ValueError: the run has no TCS.
    """
    for name in ("tcs_image", "tcs"):
        if name in run and bool(run[name].notnull().any()):
            return name
    if "tcs" in run:
        return "tcs"
    raise ValueError("the run has no TCS: a collapse is labelled by TCS and loss, so it must log tcs")


def not_a_number(run: xr.Dataset, name: str) -> NDArray[np.bool_]:
    """Rows at which NaN itself was logged [N], as far as the store says so.

    A run of our own logs its loss at every step, so there NaN counts from the last number to the end, if that
    is longer than any earlier gap in its measurement.

    Args:
        run: a run from `meanmode.sim.store.run_reader.open_run`.
        name: a scalar of the run.
    """
    missing = run[name].isnull().values
    if "import" in run.attrs:
        return missing & logged_mask(run, name)
    measured = np.flatnonzero(~missing)
    found = np.zeros(len(missing), bool)
    if len(measured) and len(missing) - 1 - measured[-1] >= max(np.diff(measured), default=1):
        found[measured[-1] + 1 :] = True
    return found


def _smoothed(loss: Array) -> Array:
    """Running median of the loss; long gaps keep the last value, NaN before the first one."""
    series = pd.Series(np.where(np.isfinite(loss), loss, np.nan))
    median = series.rolling(SMOOTHED_STEPS, center=True, min_periods=1).median()
    return median.ffill().to_numpy(np.float64)


def deep_medians(run: xr.Dataset, name: str) -> tuple[NDArray[np.int64], Array]:
    """Steps at which a signal was measured [M], and its medians over the blocks of the deeper half [M].

    Args:
        run: a run from `meanmode.sim.store.run_reader.open_run`.
        name: a variable of the run (the median is also over writers, if it has them), or `mode_ratio`,
            G_mean / G_ctr.
    """
    if name == "mode_ratio":
        with np.errstate(divide="ignore", invalid="ignore"):
            signal = run["g_mean"].astype(float) / run["g_ctr"]
    else:
        signal = run[name].astype(float)
    signal = signal.transpose("step", ...)
    if "block" in signal.dims:
        signal = signal.isel(block=is_deep(run["block"].values))
    rows = signal.values.reshape(signal.sizes["step"], int(np.prod(signal.shape[1:])))
    measured = ~np.isnan(rows).all(1)
    return run["step"].values[measured], medians(rows[measured])


def stretches(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and last index of every stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [(int(first), int(stop) - 1) for first, stop in edges.reshape(-1, 2)]


def _collapse(steps: NDArray[np.int64], high: NDArray[np.bool_], back: NDArray[np.bool_]) -> int | None:
    """First step of the sustained stretch of TCS above 0.9 with the loss back."""
    for first, last in stretches(high & back):
        rows_enough = last - first + 1 >= SUSTAINED_ROWS or last == len(steps) - 1
        if steps[last] - steps[first] + 1 >= SUSTAINED_STEPS and rows_enough:
            begin = next(begin for begin, end in stretches(high) if begin <= first <= end)
            return int(steps[begin if steps[first] - steps[begin] <= WINDOW else first])
    return None


def _divergence(
    every: NDArray[np.int64],
    loss: Array,
    level: Array,
    steps: NDArray[np.int64],
    high: NDArray[np.bool_],
) -> int | None:
    """First step of a failure that shows in the loss.

    Args:
        every: all steps [N].
        loss: loss at every step [N].
        level: smoothed loss over its initial level [N].
        steps: steps at which TCS was measured [M].
        high: whether TCS was above 0.9 [M].
    """
    found = list(every[np.isinf(loss)][:1])
    measured = np.flatnonzero(~np.isnan(loss))
    if len(loss) - 1 - measured[-1] >= max(np.diff(measured), default=1):
        found.append(every[measured[-1] + 1])
    found += [
        every[first] for first, last in stretches(level > DIVERGED) if last - first + 1 >= SUSTAINED_STEPS
    ]
    learned = np.logical_or.accumulate(level < LEARNED)
    for first, last in stretches((level > BACK) & learned)[-1:]:
        lasting = last == len(level) - 1 and last - first + 1 >= SUSTAINED_STEPS
        if lasting and not high[steps >= every[first]].all():
            found.append(every[first])
    return int(min(found)) if found else None


def evidence_near(run: xr.Dataset, onset: int, window: float = WINDOW) -> dict[str, Evidence]:
    """Signal -> when it moved away, and how far, within a window of steps on either side of an onset."""
    evidence = {}
    for signal in SIGNALS:
        name = token_cosine(run) if signal == "tcs" and ("tcs" in run or "tcs_image" in run) else signal
        if all(part in run for part in (("g_mean", "g_ctr") if signal == "mode_ratio" else (name,))):
            steps, values = deep_medians(run, name)
            near = np.abs(steps - onset) <= window
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
    for first, last in stretches(away):
        if steps[last] >= onset and (last - first + 1 >= SUSTAINED_ROWS or last == len(steps) - 1):
            first_step = int(steps[first])
            break
    return {"first_step": first_step, "ratio": float(ratio) if np.isfinite(ratio) else None}
