"""The half rate: the constant learning rate at which half of the runs collapse."""

# R runs, N rates, M x S grid of half rates and spreads, K resamples

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, log_expit

from meanmode.sweeps.statistics.censoring import INTERVAL, Estimate, resamples

Array = NDArray[np.float64]


MIDDLES, SPREADS = 401, np.geomspace(0.02, 1.0, 41)
"""Number of half rates tried between the lowest and the highest rate, and spreads of ln rate tried. Runs
whose outcomes are perfectly separated by the rate get the smallest spread, and a half rate in between."""


AT_ONCE = 50
"""Resamples whose likelihoods are in memory at the same time."""


@dataclass(frozen=True, kw_only=True)
class HalfRate:
    """P(collapse) = 1 / (1 + (half rate / rate)^(1 / spread)), by maximum likelihood over a grid.

    Attributes:
        half: the half rate with its bootstrap interval over runs; NaN where it is not inside the range of
            rates tried, or where shares do not rise with the rate (the spread is the largest one). An end of
            the interval outside of that range is 0 or infinite.
        spread: spread of ln rate at the maximum.
    """

    half: Estimate
    spread: float

    @classmethod
    def fit(cls, rates: ArrayLike, collapsed: ArrayLike) -> "HalfRate":
        """Fit the half rate.

        Args:
            rates: learning rate of every run [R].
            collapsed: which runs collapsed [R].

        Raises:
            ValueError: fewer than two different rates, or a rate that is not positive.
        """
        if not (np.asarray(rates, float) > 0).all():
            raise ValueError("a half rate needs positive rates: leave out runs without one")
        each, position = np.unique(np.asarray(rates, float), return_inverse=True)
        if len(each) < 2:
            raise ValueError(f"a half rate lies between rates: give runs at two or more, got {len(each)}")
        runs = len(position)
        draws = np.concatenate([np.arange(runs)[None], resamples(runs)])
        counts = np.stack([(position[draws] == at).sum(1) for at in range(len(each))])
        hits = np.stack(
            [((position == at) & np.asarray(collapsed, bool))[draws].sum(1) for at in range(len(each))]
        )
        halves, spreads = most_likely(each, counts, hits)
        value, found = float(halves[0]), halves[1:]
        low, high = np.quantile(found, [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2], method="inverted_cdf")
        inside = 0 < value < np.inf and spreads[0] < SPREADS[-1]
        return cls(
            half=Estimate(
                value=value if inside else np.nan,
                at_least=value if inside else float(each[-1] if value == np.inf else 0.0),
                low=float(low),
                high=float(high),
                error=float(found.std()) if 0 < found.min() and found.max() < np.inf else np.nan,
            ),
            spread=float(spreads[0]),
        )


def probabilities(rates: ArrayLike, half_rates: ArrayLike, spread: float) -> Array:
    """P(collapse) at learning rates; rates and half rates broadcast."""
    return expit(np.log(np.asarray(rates, float) / half_rates) / spread)


def most_likely(rates: Array, counts: NDArray[np.int64], hits: NDArray[np.int64]) -> tuple[Array, Array]:
    """Half rate and spread of largest likelihood [K]; a half rate outside of the range is 0 or infinite.

    Args:
        rates: the rates tried, increasing [N].
        counts: number of runs at each rate [N, K].
        hits: number of these that collapsed [N, K].
    """
    logs = np.log(rates)
    middles = np.linspace(logs[0], logs[-1], MIDDLES)
    scaled = ((logs - middles[:, None, None]) / SPREADS[:, None]).reshape(-1, len(rates))
    logarithms = np.concatenate([log_expit(scaled), log_expit(-scaled)], axis=1)
    outcomes = np.concatenate([hits, counts - hits]).astype(float)
    parts = np.array_split(outcomes, math.ceil(outcomes.shape[1] / AT_ONCE), axis=1)
    best = np.concatenate([(logarithms @ part).argmax(0) for part in parts])
    middle, spread = np.unravel_index(best, (MIDDLES, len(SPREADS)))
    ends = np.select([middle == 0, middle == MIDDLES - 1], [0.0, np.inf], np.exp(middles[middle]))
    return ends, SPREADS[spread]
