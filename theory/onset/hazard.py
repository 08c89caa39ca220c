"""The hazard of a collapse under any schedule of the learning rate (law O3), fitted to waiting times."""

# N steps, R runs, K bootstrap samples

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from meanmode.theory.onset.hazard_likelihood import (
    LARGEST_LOG_HAZARD,
    PARAMETERS,
    REFERENCE_DEPTH,
    START,
    Array,
    BinnedRuns,
    RateSchedule,
    WaitingRuns,
    features,
    rates_of,
)

LAG = 10
"""Steps by which the hazard follows the smoothed rate, unless a fit says otherwise."""

SAMPLES = 200
"""Bootstrap samples of the runs."""

DRAWS = 20
"""Medians of several runs that are drawn for every bootstrap sample."""


@dataclass(frozen=True, kw_only=True)
class HazardForecast:
    """When runs under one schedule collapse. Steps are infinite where the schedule ends before.

    Attributes:
        median: step by which half of the runs have collapsed.
        median_low, median_high: interval of the median of several runs, from the error of the fit and the
            spread of the runs.
        run_low, run_high: interval of the step at which a single run collapses, also from both.
        share: probability of a collapse by the last step.
        share_low, share_high: its interval, from the error of the fit.
    """

    median: float
    median_low: float
    median_high: float
    run_low: float
    run_high: float
    share: float
    share_low: float
    share_high: float


@dataclass(frozen=True, kw_only=True)
class Hazard:
    """Rate of collapses per step, h = A (eta G)^b t^c (law O3), with a lag and a b that depends on the depth.

    ln h(t) = level + steepness (L / 16)^(-softening) ln[eta'(t - lag) G(L) / (0.0116 G(16))]
    + ageing ln[(t - lag) / 100], and h = 0 up to step 20. eta' is the moving average of the learning rate
    with decay 0.9, from 0 at step 0; G(L) = sqrt(2 L (1 + (2 L - 1) r)) is that of law O2. A run survives
    step t with probability exp(-sum of h up to t). That b falls with the depth is an observation.

    Attributes:
        level: ln A, at the reference.
        steepness: b at 16 blocks.
        ageing: c.
        softening: exponent by which b falls with the depth.
        coherence: r of law O2.
        lag: steps by which the hazard follows the smoothed rate.
        samples: the first four, fitted to bootstrap samples of the runs [K, 4].

    Raises:
        ValueError: a lag after the first step at risk.
    """

    level: float
    steepness: float
    ageing: float
    softening: float
    coherence: float
    lag: int = LAG
    samples: Array = field(default_factory=lambda: np.empty((0, len(PARAMETERS))))

    def __post_init__(self) -> None:
        if not 0 <= self.lag <= START:
            raise ValueError(f"lag must be 0 to {START} steps, got {self.lag}")

    @classmethod
    def fit(
        cls,
        runs: Sequence[WaitingRuns],
        *,
        coherence: float,
        lag: int = LAG,
        fixed: Mapping[str, float] | None = None,
        samples: int = SAMPLES,
    ) -> "Hazard":
        """Fit the hazard to runs by the Poisson likelihood of the collapses in bins of 5 steps.

        Args:
            runs: groups of runs; the bootstrap draws as many runs as given from every group.
            coherence: r of law O2.
            lag: steps by which the hazard follows the smoothed rate.
            fixed: parameters that are not fitted, with their values.
            samples: number of bootstrap samples.

        Raises:
            ValueError: no collapse, a collapse before anybody is at risk, or a softening to be fitted to
                runs of one depth.
        """
        held = dict(fixed or {})
        depths = sorted({group.depth for group in runs})
        if "softening" not in held and len(depths) < 2:
            raise ValueError(f"the softening needs runs of two depths, got {depths}: fix it, or give more")
        binned = BinnedRuns.of(runs, coherence=coherence, lag=lag)
        found = binned.fitted(binned.counts(), held)
        random = np.random.default_rng([sum(map(len, binned.counts())), samples])
        drawn = [binned.fitted(binned.drawn(random), held, found) for _ in range(samples)]
        level, steepness, ageing, softening = found.tolist()
        return cls(
            level=level,
            steepness=steepness,
            ageing=ageing,
            softening=softening,
            coherence=coherence,
            lag=lag,
            samples=np.array(drawn).reshape(samples, len(PARAMETERS)),
        )

    @classmethod
    def of_document(cls, document: Mapping[str, Any]) -> "Hazard":
        """Build the hazard from its constants, as stored in a forecast.

        Raises:
            ValueError: the document does not hold these constants.
        """
        try:
            constants: dict[str, Any] = dict(document)
            samples = np.array(constants.pop("samples"), float).reshape(-1, len(PARAMETERS))
            return cls(samples=samples, **constants)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not the constants of a hazard: {error}") from error

    def document(self) -> dict[str, Any]:
        """The constants of the hazard, JSON-serialisable."""
        return {**vars(self), "samples": self.samples.tolist()}

    def survival(self, schedule: RateSchedule | ArrayLike, depth: float, steps: int | None = None) -> Array:
        """P(no collapse up to step t), t = 1, 2, ... [N].

        Args:
            schedule: a schedule, or the learning rate of every step.
            depth: number of blocks.
            steps: number of steps; None for all of an array.

        Raises:
            ValueError: as `rates_of`.
        """
        return np.exp(-self._cumulated(rates_of(schedule, steps), depth, self._values[None])[0])

    def median(self, schedule: RateSchedule | ArrayLike, depth: float, steps: int | None = None) -> float:
        """Step by which half of the runs have collapsed, between two steps; infinite if fewer do.

        Raises:
            ValueError: as `rates_of`.
        """
        cumulated = self._cumulated(rates_of(schedule, steps), depth, self._values[None])[0]
        return float(_reached(cumulated, np.array([math.log(2)]))[0])

    def factor(
        self, schedule: RateSchedule | ArrayLike, depth: float, probability: float, steps: int | None = None
    ) -> float:
        """The factor of all rates at which runs collapse by the last step with a probability.

        Rates times f multiply the cumulated hazard by f^b (law O3). Infinite where nobody is at risk.

        Raises:
            ValueError: a probability that is not between 0 and 1, or as `rates_of`.
        """
        return float(self._factors(rates_of(schedule, steps), depth, probability, self._values[None])[0])

    def factors(self, rates: ArrayLike, depth: float, probability: float) -> Array:
        """`factor` for every bootstrap sample [K]."""
        return self._factors(rates_of(rates), depth, probability, self.samples)

    def shares(self, rates: ArrayLike, depth: float) -> Array:
        """P(collapse by the last step) for every bootstrap sample [K]."""
        return np.asarray(-np.expm1(-self._cumulated(rates_of(rates), depth, self.samples)[:, -1]))

    def forecast(
        self, rates: ArrayLike, depth: float, *, last_step: int, seeds: int, interval: float
    ) -> HazardForecast:
        """Forecast runs of a schedule, with intervals from the bootstrap samples.

        Args:
            rates: learning rate of every step, also beyond the last step if the schedule goes on [N].
            depth: number of blocks.
            last_step: step at which the share of collapsed runs is taken.
            seeds: number of runs whose median is forecast.
            interval: coverage probability of the intervals.

        Raises:
            ValueError: fewer than two bootstrap samples, or rates that end before the last step.
        """
        known = rates_of(rates)
        if len(self.samples) < 2:
            raise ValueError("intervals need bootstrap samples: fit the hazard with samples")
        if len(known) < last_step:
            raise ValueError(f"the rates of {len(known)} steps do not reach the last step {last_step}")
        random = np.random.default_rng([round(depth), len(known), seeds])
        again = self._cumulated(known, depth, self.samples)
        medians = [np.median(_reached(of, random.exponential(size=(DRAWS, seeds))), axis=1) for of in again]
        ends = np.array([(1 - interval) / 2, (1 + interval) / 2])
        median_low, median_high = np.quantile(medians, ends, method="inverted_cdf")
        # a single run is of the mixture of the samples
        mixed = -np.log(np.maximum(np.exp(-again).mean(0), np.finfo(float).tiny))
        run_low, run_high = _reached(mixed, -np.log1p(-ends))
        share_low, share_high = np.quantile(-np.expm1(-again[:, last_step - 1]), ends)
        return HazardForecast(
            median=self.median(known, depth),
            median_low=float(median_low),
            median_high=float(median_high),
            run_low=float(run_low),
            run_high=float(run_high),
            share=float(1 - self.survival(known, depth)[last_step - 1]),
            share_low=float(share_low),
            share_high=float(share_high),
        )

    def log_scores(self, runs: WaitingRuns) -> Array:
        """Log score of every run [R]: ln(h P(T > t)) at its collapse, or ln P(T > t) at its last step."""
        logs = self._log_hazards(runs.rates, runs.depth, self._values[None])[0]
        at = runs.times.astype(int) - 1
        survived = -np.cumsum(np.exp(logs))[at]
        return np.where(runs.collapsed, survived + logs[at], survived)

    @property
    def _values(self) -> Array:
        return np.array([getattr(self, name) for name in PARAMETERS], float)

    def _log_hazards(self, rates: Array, depth: float, values: Array) -> Array:
        """ln h at every step for several values of the parameters [K, N]."""
        log_rate, log_age = features(rates, depth, coherence=self.coherence, lag=self.lag)
        level, steepness, ageing, softening = values.T[..., None]
        idle = np.isneginf(log_rate)
        slope = steepness * (depth / REFERENCE_DEPTH) ** -softening
        logs = level + slope * np.where(idle, 0.0, log_rate) + ageing * log_age
        return np.where(idle, -np.inf, np.minimum(logs, LARGEST_LOG_HAZARD))

    def _cumulated(self, rates: Array, depth: float, values: Array) -> Array:
        return np.cumsum(np.exp(self._log_hazards(rates, depth, values)), axis=1)

    def _factors(self, rates: Array, depth: float, probability: float, values: Array) -> Array:
        if not 0 < probability < 1:
            raise ValueError(f"a probability must lie between 0 and 1, got {probability}")
        slopes = values[:, 1] * (depth / REFERENCE_DEPTH) ** -values[:, 3]
        with np.errstate(divide="ignore"):
            needed = -math.log1p(-probability) / self._cumulated(rates, depth, values)[:, -1]
            return np.asarray(needed ** (1 / slopes))


def _reached(cumulated: Array, needed: Array) -> Array:
    """Steps at which a cumulated hazard reaches values, between steps; infinite where it does not."""
    steps, total = np.arange(len(cumulated) + 1.0), np.concatenate([[0.0], cumulated])
    return np.interp(needed, total, steps, right=np.inf)
