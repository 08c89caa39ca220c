"""Onset of a run that was logged elsewhere: labels in rows, from the loss alone if there is nothing else."""

# R rows at which the loss was logged, M rows at which a signal was measured

from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from meanmode.sim.onset.training_onset import (
    BACK,
    DIVERGED,
    INITIAL_STEPS,
    LEARNED,
    MOVED,
    SMOOTHED_STEPS,
    SUSTAINED_ROWS,
    SUSTAINED_STEPS,
    WINDOW,
    Array,
    Onset,
    deep_medians,
    evidence_near,
    not_a_number,
    stretches,
    token_cosine,
)
from meanmode.sim.onset.watched_signal import BORN_ROWS, RISEN
from meanmode.theory.meanfield.front import FRONT_COSINE

LEAST_SMOOTHED = 3
"""Smallest window of the running median, in rows: it removes a spike of one row."""


SHARE_OF_LEVEL = 20
"""The level before training is taken from the first of this many rows, up to `INITIAL_STEPS` rows: in a short
log, later rows are those of a trained network."""


LASTING_ROWS = 5
"""Rows to the end of the log, after smoothing, for which a loss must stay up if it is below `DIVERGED` times
its first level."""


REGAINED, REGAINED_PUSHED = 0.5, 0.25
"""Share of what a loss had gained that it must lose for a divergence; the second if gradients moved too."""


@dataclass(frozen=True, kw_only=True)
class LossRows:
    """The loss of a log, row by row.

    Attributes:
        steps: steps of the rows [R].
        loss: loss, NaN where it is not finite [R].
        bad: whether the loss is not finite, or exactly 0 with a gradient norm that is not finite [R].
        smoothed: running median of the loss, the last one where there is none [R].
        spacing: usual number of steps between rows.
        level: first level of the loss; NaN without a finite loss, or if some are negative.
        known: whether this is the level before training: stated, or the log starts at its beginning.
    """

    steps: NDArray[np.int64]
    loss: Array
    bad: NDArray[np.bool_]
    smoothed: Array
    spacing: float
    level: float
    known: bool

    @property
    def row_steps(self) -> float:
        """Steps that a row stands for, at least 1."""
        return max(self.spacing, 1.0)


def log_onset(run: xr.Dataset) -> Onset:
    """Label a run that was logged elsewhere, by rules that count rows; an onset is a step that was logged.

    `mean_mode`: as in `meanmode.sim.onset.training_onset`, for `SUSTAINED_ROWS` rows that span
    `SUSTAINED_STEPS` steps or reach the end; for `BORN_ROWS` if the tokens were alike from the first row on.
    If the level before training is not known, the loss is back above `RISEN` times its first level.

    `plain_divergence`, whether or not a token cosine was logged: a loss that is not a number (or exactly 0
    with a gradient norm that is not) in the last `SUSTAINED_ROWS` rows or more; or above `DIVERGED` times its
    first level for as long at the end, or for `SUSTAINED_STEPS` rows anywhere; or, for `LASTING_ROWS` to the
    end, above `DIVERGED` times its lowest level, having lost `REGAINED` of what it had gained
    (`REGAINED_PUSHED` if the gradient norm moved for good, and never if it was logged and did not); or back
    at its initial level for `SUSTAINED_STEPS` rows to the end while a token cosine shows unlike tokens.

    Args:
        run: a run from `meanmode.sim.store.run_reader.open_run`. Its attribute `initial_loss`, if present, is
            the level before training.
    """
    rows = loss_rows(run)
    if rows is None:
        return Onset(step=None, kind="none", evidence={})
    name = cosine_name(run)
    steps, values = deep_medians(run, name) if name else (rows.steps[:0], rows.loss[:0])
    high = values > FRONT_COSINE
    window = WINDOW * rows.row_steps
    collapse = _collapse(rows, steps, high)
    divergence = _divergence(run, rows, steps, high)
    if collapse is not None and (divergence is None or collapse <= divergence + window):
        return Onset(step=collapse, kind="mean_mode", evidence=evidence_near(run, collapse, window))
    if divergence is not None:
        found = evidence_near(run, divergence, window)
        return Onset(step=divergence, kind="plain_divergence", evidence=found)
    return Onset(step=None, kind="none", evidence={})


def cosine_name(run: xr.Dataset) -> str | None:
    """Name of the token cosine of a run; None if it has none."""
    return token_cosine(run) if "tcs" in run or "tcs_image" in run else None


def loss_rows(run: xr.Dataset) -> LossRows | None:
    """The loss of a run at the rows at which it was logged; None if it has none."""
    if "loss" not in run or run["loss"].dims != ("step",):
        return None
    loss = run["loss"].values.astype(np.float64)
    here = ~np.isnan(loss) | not_a_number(run, "loss")
    if not here.any():
        return None
    bad = ~np.isfinite(loss)
    if "grad_norm" in run and run["grad_norm"].dims == ("step",):
        norm = run["grad_norm"].values.astype(np.float64)
        bad |= (loss == 0) & (np.isinf(norm) | not_a_number(run, "grad_norm"))
    steps, loss, bad = run["step"].values[here], np.where(bad, np.nan, loss)[here], bad[here]
    spacing = float(np.median(np.diff(steps))) if len(steps) > 1 else 1.0
    finite = loss[~bad][: int(np.clip(len(loss) // SHARE_OF_LEVEL, 1, INITIAL_STEPS))]
    stated = run.attrs.get("initial_loss")
    level = float(np.median(finite)) if len(finite) else np.nan
    # of a loss below zero, such as a log likelihood, no ratio means anything
    if (loss < 0).any():
        level, stated = np.nan, None
    return LossRows(
        steps=steps,
        loss=loss,
        bad=bad,
        smoothed=_smoothed(loss, spacing),
        spacing=spacing,
        level=level if stated is None else float(stated),
        known=stated is not None or bool(steps[0] <= INITIAL_STEPS * max(spacing, 1.0)),
    )


def _smoothed(loss: Array, spacing: float) -> Array:
    """Running median over the rows of `SMOOTHED_STEPS` steps, at least `LEAST_SMOOTHED` and an odd number."""
    rows = max(int(SMOOTHED_STEPS / max(spacing, 1.0)), LEAST_SMOOTHED)
    median = pd.Series(loss).rolling(rows | 1, center=True, min_periods=1).median()
    return median.ffill().to_numpy(np.float64)


def _collapse(rows: LossRows, steps: NDArray[np.int64], high: NDArray[np.bool_]) -> int | None:
    """First step of the sustained stretch of TCS above 0.9 with the loss back."""
    at = np.clip(np.searchsorted(rows.steps, steps, side="right") - 1, 0, None)
    back = rows.smoothed[at] > (BACK if rows.known else RISEN) * rows.level
    for first, last in stretches(high & back):
        begin = next(begin for begin, end in stretches(high) if begin <= first <= end)
        count = last - first + 1
        if count < (BORN_ROWS if begin == 0 else SUSTAINED_ROWS):
            continue
        if steps[last] - steps[first] + 1 >= SUSTAINED_STEPS or last == len(steps) - 1:
            near = steps[first] - steps[begin] <= WINDOW * rows.row_steps
            return int(steps[begin if near else first])
    return None


def _divergence(
    run: xr.Dataset, rows: LossRows, steps: NDArray[np.int64], high: NDArray[np.bool_]
) -> int | None:
    """First step of a failure that shows in the loss."""
    last = len(rows.loss) - 1
    found = [first for first, end in stretches(rows.bad) if end == last and end - first + 1 >= SUSTAINED_ROWS]
    ended = found[0] if found else last + 1
    smoothed, loss = rows.smoothed[:ended], rows.loss[:ended]
    for first, end in stretches(smoothed > DIVERGED * rows.level):
        high_rows = _after(loss > DIVERGED * rows.level, first, end)
        if end - first + 1 >= SUSTAINED_STEPS or (end == ended - 1 and len(high_rows) >= SUSTAINED_ROWS):
            found += high_rows[:1]
    lowest = np.minimum.accumulate(smoothed)
    lost = (smoothed - lowest) / np.maximum(rows.level - lowest, 1e-300)
    pushed = _norm_moved(run, rows)
    share = REGAINED if pushed is None else REGAINED_PUSHED if pushed else np.inf
    found += _lasting(loss, (smoothed > DIVERGED * lowest) & (lost > share), LASTING_ROWS)
    if rows.known and len(steps):
        learned = np.minimum.accumulate(smoothed) < LEARNED * rows.level
        returned = _lasting(loss, learned & (lost > BACK) & (smoothed > BACK * rows.level), SUSTAINED_STEPS)
        found += [first for first in returned if not high[steps >= rows.steps[first]].all()]
    return int(rows.steps[min(found)]) if found else None


def _after(mask: NDArray[np.bool_], first: int, end: int) -> list[int]:
    """Rows of a stretch at which a mask holds."""
    return [int(row) for row in np.flatnonzero(mask[first : end + 1]) + first]


def _lasting(loss: Array, mask: NDArray[np.bool_], least: int) -> list[int]:
    """First row of the stretch that reaches the last row, if it is long enough, at which the loss is up."""
    found = stretches(mask)[-1:]
    if not found or found[0][1] != len(mask) - 1 or found[0][1] - found[0][0] + 1 < least:
        return []
    first = found[0][0]
    # the running median may rise a row or more before the loss does
    later = loss[first:]
    if not np.isfinite(later).any():
        return []
    return _after(loss >= 0.5 * (loss[max(first - 1, 0)] + np.nanmedian(later)), first, len(mask) - 1)[:1]


def _norm_moved(run: xr.Dataset, rows: LossRows) -> bool | None:
    """Whether the gradient norm is off by `MOVED` in the last rows; None if it was not logged."""
    if "grad_norm" not in run or run["grad_norm"].dims != ("step",):
        return None
    norm = pd.Series(run["grad_norm"].values).dropna()
    if len(norm) < 2 * LASTING_ROWS:
        return None
    before, after = norm[:-LASTING_ROWS].median(), norm[-LASTING_ROWS:].median()
    return bool(after > MOVED * before or after < before / MOVED)


def remarks(run: xr.Dataset) -> list[str]:
    """What shows in the last rows of a log and is too short for a verdict, one sentence each."""
    rows = loss_rows(run)
    if rows is None:
        return []
    found: list[str] = []
    for first, end in stretches(rows.bad)[-1:]:
        if end == len(rows.bad) - 1 and end - first + 1 < SUSTAINED_ROWS:
            found.append(
                f"the loss is not a number from step {rows.steps[first]} on: too few rows for a verdict"
            )
    recent = rows.loss[-SUSTAINED_STEPS:]
    if (
        np.isfinite(rows.level)
        and len(recent) > 2 * LASTING_ROWS
        and np.isfinite(recent[:-LASTING_ROWS]).any()
    ):
        usual = np.nanmedian(recent[:-LASTING_ROWS])
        up = stretches(recent > DIVERGED * usual)[-1:]
        if up and up[0][1] == len(recent) - 1 and len(recent) - up[0][0] < LASTING_ROWS:
            step = rows.steps[len(rows.steps) - len(recent) + up[0][0]]
            found.append(
                f"the loss is up {recent[-1] / usual:.1f} times from step {step} on, in the last "
                f"{len(recent) - up[0][0]} rows: too few for a verdict"
            )
    return found
