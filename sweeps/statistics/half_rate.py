"""The half rate: the constant learning rate at which half of the runs of a depth collapse."""

# R runs, N rates, M x S grid of half rates and spreads, K resamples

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, log_expit

from meanmode.sweeps.statistics.censoring import INTERVAL, Estimate, resamples

Array = NDArray[np.float64]


MIDDLES, SPREADS = 401, np.geomspace(0.02, 1.0, 41)
"""Half rates that are tried between the lowest and the highest rate, and spreads of ln rate; runs that are
parted by their rate without an exception get the least spread, and the half rate between the two."""


AT_ONCE = 50
"""Resamples whose likelihoods are in memory together."""


@dataclass(frozen=True, kw_only=True)
class HalfRate:
    """P(collapse) = 1 / (1 + (half rate / rate)^(1 / spread)), by maximum likelihood over a grid.

    Attributes:
        half: the half rate with its bootstrap interval over runs; NaN where it is outside of the rates tried
            or at an end of them, and where shares do not rise with the rate (the spread is the largest one);
            an end of the interval is 0 or infinite where that is outside.
        spread: of ln rate, at the maximum.
    """

    half: Estimate
    spread: float

    @classmethod
    def fit(cls, rates: ArrayLike, collapsed: ArrayLike) -> "HalfRate":
        """Fit it.

        Args:
            rates: of every run [R].
            collapsed: which did [R].

        Raises:
            ValueError: runs of fewer than two rates, or a rate that is not positive.
        """
        if not (np.asarray(rates, float) > 0).all():
            raise ValueError("a half rate is of positive rates: leave out what has none")
        each, place = np.unique(np.asarray(rates, float), return_inverse=True)
        if len(each) < 2:
            raise ValueError(f"a half rate lies between rates: give runs of two or more, got {len(each)}")
        runs = len(place)
        draws = np.concatenate([np.arange(runs)[None], resamples(runs)])
        counts = np.stack([(place[draws] == at).sum(1) for at in range(len(each))])
        hits = np.stack(
            [((place == at) & np.asarray(collapsed, bool))[draws].sum(1) for at in range(len(each))]
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
    """P(collapse) at a rate; the two broadcast."""
    return expit(np.log(np.asarray(rates, float) / half_rates) / spread)


def most_likely(rates: Array, counts: NDArray[np.int64], hits: NDArray[np.int64]) -> tuple[Array, Array]:
    """Half rate and spread of the largest likelihood [K], 0 or infinite where no rate tried lies beyond it.

    Args:
        rates: tried, increasing [N].
        counts: runs at each [N, K].
        hits: of them, those that collapsed [N, K].
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
