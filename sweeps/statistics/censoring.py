"""Medians of right-censored runs, with bootstrap intervals."""

# R runs, K resamples

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


INTERVAL = 0.9
"""Coverage of every interval."""


RESAMPLES = 2000
"""Bootstrap resamples of the runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """One number per run, or a lower bound where it is censored.

    Attributes:
        low: the numbers, or their lower bounds [R].
        high: the numbers, or infinity [R].
    """

    low: Array
    high: Array

    @classmethod
    def of(cls, values: ArrayLike, ends: ArrayLike) -> "Samples":
        """Samples of positive numbers.

        Args:
            values: the numbers, NaN where censored [R].
            ends: lower bounds of the censored numbers, NaN where nothing is known [R].
        """
        known, last = np.asarray(values, float), np.asarray(ends, float)
        censored, exceeded = np.isnan(known), np.where(np.isnan(last), 0.0, last)
        return cls(low=np.where(censored, exceeded, known), high=np.where(censored, np.inf, known))

    def __len__(self) -> int:
        return len(self.low)

    def medians(self, draws: NDArray[np.int64]) -> tuple[Array, Array]:
        """Smallest and largest possible median of every resample [K, R]."""
        return np.median(self.low[draws], axis=1), np.median(self.high[draws], axis=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A statistic of runs with its bootstrap `INTERVAL`.

    Attributes:
        value: the statistic; NaN where censored runs leave it open, or without runs.
        at_least: lower bound of the statistic; equal to `value` where that is known.
        low: lower end of the interval; NaN for fewer than two runs.
        high: upper end of the interval; infinite where censored runs leave it open.
        error: standard deviation over resamples; NaN where a resample leaves the statistic open.
    """

    value: float
    at_least: float
    low: float
    high: float
    error: float


def resamples(count: int) -> NDArray[np.int64]:
    """Indices of runs drawn with replacement [K, R]; the same for every statistic of this many runs."""
    return np.random.default_rng([count, RESAMPLES]).integers(count, size=(RESAMPLES, count))


def estimated(samples: Samples) -> Estimate:
    """The median over runs, with its interval."""
    return _estimate(len(samples), samples.medians)


def estimated_ratio(samples: Samples, baseline: Samples) -> Estimate:
    """The median divided by a baseline's; run i of both shares its seed, so both are resampled alike.

    Raises:
        ValueError: different numbers of runs.
    """
    if len(samples) != len(baseline):
        raise ValueError(
            f"a paired ratio needs as many runs on both sides, got {len(samples)} and {len(baseline)}"
        )

    def ratios(draws: NDArray[np.int64]) -> tuple[Array, Array]:
        (low, high), (low_base, high_base) = samples.medians(draws), baseline.medians(draws)
        # a baseline of which nothing is known gives a division by zero: the ratio is open
        with np.errstate(divide="ignore"):
            return low / high_base, high / low_base

    return _estimate(len(samples), ratios)


def _estimate(count: int, statistic: Callable[[NDArray[np.int64]], tuple[Array, Array]]) -> Estimate:
    if not count:
        return Estimate(value=np.nan, at_least=np.nan, low=np.nan, high=np.nan, error=np.nan)
    (least,), (most,) = statistic(np.arange(count)[None])
    value, low, high, error = float(least) if least == most else np.nan, np.nan, np.nan, np.nan
    if count > 1:
        lows, highs = statistic(resamples(count))
        # an interpolated quantile would lie between a number and infinity
        low = float(np.quantile(lows, (1 - INTERVAL) / 2, method="inverted_cdf"))
        high = float(np.quantile(highs, (1 + INTERVAL) / 2, method="inverted_cdf"))
        error = float(highs.std()) if np.isfinite(highs).all() and (lows == highs).all() else np.nan
    return Estimate(value=value, at_least=float(least), low=low, high=high, error=error)
