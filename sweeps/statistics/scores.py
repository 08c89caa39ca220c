"""Scores of survival forecasts: Brier score, AUROC, calibration, with intervals."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from meanmode.sweeps.statistics.censoring import INTERVAL, resamples

Array = NDArray[np.float64]

BINS = 5
"""Of a calibration, of equal count."""


def survival_curve(times: Array, collapsed: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Kaplan-Meier estimate of P(T > t): the times at which it is given, from 0 on, and its values.

    Args:
        times: of every run [N], of one that did not collapse how long it was watched.
        collapsed: which did [N].
    """
    sample = stats.CensoredData(uncensored=times[collapsed], right=times[~collapsed])
    found = stats.ecdf(sample).sf
    return np.insert(found.quantiles, 0, 0.0), np.insert(found.probabilities, 0, 1.0)


def drawn_counts(runs: int) -> Array:
    """How often each run is in every resample [1 + R, N]; the first are the runs themselves."""
    drawn = [np.bincount(row, minlength=runs) for row in resamples(runs)]
    return np.stack([np.ones(runs, int), *drawn]).astype(float)


def brier(probabilities: Array, outcomes: NDArray[np.bool_], counts: Array) -> Array:
    """Mean squared difference of probability and outcome, of every resample [R]."""
    return counts @ (probabilities - outcomes) ** 2 / counts.sum(-1)


def auroc(probabilities: Array, outcomes: NDArray[np.bool_], counts: Array) -> Array:
    """P(a run that collapsed has the larger probability than one that did not), ties half, of resamples [R].

    NaN where all runs came out alike.
    """
    higher, lower = probabilities[outcomes], probabilities[~outcomes]
    wins = np.heaviside(higher[:, None] - lower, 0.5)
    ones, zeros = counts[:, outcomes], counts[:, ~outcomes]
    pairs = ones.sum(-1) * zeros.sum(-1)
    won = ((ones @ wins) * zeros).sum(-1)
    return np.divide(won, pairs, out=np.full(len(counts), np.nan), where=pairs > 0)


def with_interval(values: Array) -> dict[str, float | None]:
    """A statistic of `drawn_counts`: that of the runs themselves, and the middle 90 % of the others."""
    low, high = (np.nanquantile(values[1:], (1 + side * INTERVAL) / 2) for side in (-1, 1))
    return {
        name: float(value) if np.isfinite(value) else None
        for name, value in (("value", values[0]), ("low", low), ("high", high))
    }


def calibration(probabilities: Array, outcomes: NDArray[np.bool_], counts: Array) -> list[dict[str, Any]]:
    """Bins of equal count, by probability: their mean probability and the share that collapsed."""
    rows = []
    for places in np.array_split(np.argsort(probabilities, kind="stable"), BINS):
        drawn = counts[:, places]
        share = np.divide(
            drawn @ outcomes[places], drawn.sum(-1), out=np.full(len(drawn), np.nan), where=drawn.any(-1)
        )
        rows.append(
            {"runs": len(places), "predicted": float(probabilities[places].mean()), **with_interval(share)}
        )
    return rows
