"""Scores of survival forecasts: Brier score, AUROC, calibration, with intervals."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from meanmode.sweeps.statistics.censoring import INTERVAL, resamples

Array = NDArray[np.float64]

BINS = 5
"""Bins of a calibration, with equal counts."""


def survival_curve(times: Array, collapsed: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Kaplan-Meier estimate of P(T > t): times, starting at 0, and values.

    Args:
        times: waiting time of every run, or its length if it did not collapse [N].
        collapsed: which runs collapsed [N].
    """
    sample = stats.CensoredData(uncensored=times[collapsed], right=times[~collapsed])
    found = stats.ecdf(sample).sf
    return np.insert(found.quantiles, 0, 0.0), np.insert(found.probabilities, 0, 1.0)


def share_interval(hits: int, runs: int) -> tuple[float, float]:
    """Wilson interval of a share of runs."""
    low, high = stats.binomtest(hits, runs).proportion_ci(INTERVAL, "wilson")
    return float(low), float(high)


def drawn_counts(runs: int) -> Array:
    """Count of each run in every resample [1 + R, N]; row 0 is the original sample."""
    drawn = [np.bincount(row, minlength=runs) for row in resamples(runs)]
    return np.stack([np.ones(runs, int), *drawn]).astype(float)


def brier(probabilities: Array, outcomes: NDArray[np.bool_], counts: Array) -> Array:
    """Brier score, the mean squared difference of probability and outcome, for every resample [R]."""
    return counts @ (probabilities - outcomes) ** 2 / counts.sum(-1)


def auroc(probabilities: Array, outcomes: NDArray[np.bool_], counts: Array) -> Array:
    """P(a collapsed run has a higher probability than one that did not), ties half, per resample [R].

    NaN where all runs have the same outcome.
    """
    higher, lower = probabilities[outcomes], probabilities[~outcomes]
    wins = np.heaviside(higher[:, None] - lower, 0.5)
    ones, zeros = counts[:, outcomes], counts[:, ~outcomes]
    pairs = ones.sum(-1) * zeros.sum(-1)
    won = ((ones @ wins) * zeros).sum(-1)
    return np.divide(won, pairs, out=np.full(len(counts), np.nan), where=pairs > 0)


def with_interval(values: Array) -> dict[str, float | None]:
    """Value of a statistic on the original sample, and the middle 90 % of its resamples (`drawn_counts`)."""
    low, high = (np.nanquantile(values[1:], (1 + side * INTERVAL) / 2) for side in (-1, 1))
    return {
        name: float(value) if np.isfinite(value) else None
        for name, value in (("value", values[0]), ("low", low), ("high", high))
    }


def calibration(probabilities: Array, outcomes: NDArray[np.bool_], counts: Array) -> list[dict[str, Any]]:
    """Mean predicted probability and share that collapsed, in bins of equal count. One row per bin."""
    rows = []
    for members in np.array_split(np.argsort(probabilities, kind="stable"), BINS):
        drawn = counts[:, members]
        share = np.divide(
            drawn @ outcomes[members], drawn.sum(-1), out=np.full(len(drawn), np.nan), where=drawn.any(-1)
        )
        rows.append(
            {"runs": len(members), "predicted": float(probabilities[members].mean()), **with_interval(share)}
        )
    return rows
