"""The hazard of a collapse under any schedule of the learning rate (law O3), fitted to waiting times."""

# N steps, R runs, K bootstrap samples

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq

from meanmode.theory.onset.hazard_likelihood import (
    LARGEST_LOG_HAZARD,
    PARAMETERS,
    REFERENCE_DEPTH,
    Array,
    BinnedRuns,
    RateSchedule,
    WaitingRuns,
    features,
    mixed_hazard,
    rates_of,
    run_variance,
)

DELAY, SPREAD = 30.0, 0.03
"""Delay and spread of the hazard, unless a fit says otherwise; chosen by scores of ramps as well."""

SAMPLES = 200
"""Bootstrap samples of the runs."""

LARGEST_FACTOR = 1e6
"""Largest factor of the rates that is tried."""

NEAR = 1.5
"""Range of the logarithm of that factor, around its best value, in which those of bootstrap samples lie."""

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
    """Rate of collapses per step, h = A (eta G)^b t^c (law O3), and what is observed beyond the law.

    ln h(t) = level + steepness (L / 16)^(-softening) ln[eta(t - d) G(L) / (0.0116 G(16))]
    + ageing ln[(t - d) / 100] - youth [100 / (t - d)]^2, and h = 0 up to step 20. eta is the learning rate;
    G(L) = sqrt(2 L (1 + (2 L - 1) r)) is that of law O2; d = delay 0.0116 G(16) / (eta(t) G(L)). With
    H = sum of h up to t and v = spread L / 16, a run survives step t with probability (1 + v H)^(-1 / v).

    Beyond the law, all of them observations: a run moves a fixed distance from what makes it collapse to its
    onset (delay); none collapses while its writers, zero at first, are small (youth); b falls with the depth
    (softening); and the hazards of runs differ by a factor, gamma-distributed, of variance v (spread).

    Attributes:
        level: ln A, at the reference.
        steepness: b at 16 blocks.
        ageing: c.
        softening: exponent by which b falls with the depth.
        coherence: r of law O2.
        youth: how much young runs are protected: the factor of [100 / (t - d)]^2.
        delay: steps from what makes a collapse to its onset, at the reference.
        spread: variance of the hazard between runs of 16 blocks; it grows in proportion to the depth.
        samples: the five parameters, fitted to bootstrap samples of the runs [K, 5].

    Raises:
        ValueError: a negative delay or spread.
    """

    level: float
    steepness: float
    ageing: float
    softening: float
    youth: float
    coherence: float
    delay: float = DELAY
    spread: float = SPREAD
    samples: Array = field(default_factory=lambda: np.empty((0, len(PARAMETERS))))

    def __post_init__(self) -> None:
        for name in ("delay", "spread"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, got {getattr(self, name)}")

    @classmethod
    def fit(
        cls,
        runs: Sequence[WaitingRuns],
        *,
        coherence: float,
        delay: float = DELAY,
        spread: float = SPREAD,
        fixed: Mapping[str, float] | None = None,
        samples: int = SAMPLES,
    ) -> "Hazard":
        """Fit the hazard to runs by the likelihood of their collapses in bins of 5 steps.

        Args:
            runs: groups of runs; the bootstrap draws as many runs as given from every group.
            coherence: r of law O2.
            delay, spread: constants of the hazard that are not fitted.
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
        binned = BinnedRuns.of(runs, coherence=coherence, delay=delay)
        found = binned.fitted(binned.runs.astype(float), held, spread=spread)
        random = np.random.default_rng([int(binned.runs.sum()), samples])
        drawn = [
            binned.fitted(binned.drawn(random), held, spread=spread, start=found) for _ in range(samples)
        ]
        return cls(
            **dict(zip(PARAMETERS, found.tolist(), strict=True)),
            coherence=coherence,
            delay=delay,
            spread=spread,
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

        Infinite where no factor up to `LARGEST_FACTOR` suffices.

        Raises:
            ValueError: a probability that is not between 0 and 1, or as `rates_of`.
        """
        rates, needed = rates_of(schedule, steps), _needed(probability)

        def missing(log_factor: float) -> float:
            return float(self._at_factor(rates, depth, log_factor, self._values[None])[0]) - needed

        end = math.log(LARGEST_FACTOR)
        if missing(end) < 0:
            return math.inf
        return math.exp(brentq(missing, -end, end))

    def factors(self, rates: ArrayLike, depth: float, probability: float) -> Array:
        """`factor` for every bootstrap sample [K], by interpolation near the factor of the fit."""
        known, needed = rates_of(rates), _needed(probability)
        middle = self.factor(known, depth, probability)
        if math.isinf(middle):
            return np.full(len(self.samples), np.inf)
        tried = math.log(middle) + np.linspace(-NEAR, NEAR, 41)
        found = np.array([self._at_factor(known, depth, at, self.samples) for at in tried])
        logs = np.log(np.maximum(found, np.finfo(float).tiny))  # nearly a straight line, of slope b
        return np.array([math.exp(np.interp(math.log(needed), of, tried)) for of in logs.T])

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
        cumulated = np.cumsum(np.exp(logs))[at]
        variance = run_variance(self.spread, runs.depth)
        survived = -mixed_hazard(cumulated, variance)
        return np.where(runs.collapsed, survived + logs[at] - np.log1p(variance * cumulated), survived)

    @property
    def _values(self) -> Array:
        return np.array([getattr(self, name) for name in PARAMETERS], float)

    def _log_hazards(self, rates: Array, depth: float, values: Array) -> Array:
        """ln h at every step for several values of the parameters [K, N]."""
        log_rate, log_age, young = features(rates, depth, coherence=self.coherence, delay=self.delay)
        level, steepness, ageing, softening, youth = values.T[..., None]
        idle = np.isneginf(log_rate)
        slope = steepness * (depth / REFERENCE_DEPTH) ** -softening
        logs = level + slope * np.where(idle, 0.0, log_rate) + ageing * log_age - youth * young
        return np.where(idle, -np.inf, np.minimum(logs, LARGEST_LOG_HAZARD))

    def _cumulated(self, rates: Array, depth: float, values: Array) -> Array:
        """Cumulated hazard of a mixture of runs at every step, for several sets of parameters [K, N]."""
        own = np.cumsum(np.exp(self._log_hazards(rates, depth, values)), axis=1)
        return mixed_hazard(own, run_variance(self.spread, depth))

    def _at_factor(self, rates: Array, depth: float, log_factor: float, values: Array) -> Array:
        """Hazard cumulated to the last step under all rates times a factor, per set of parameters [K]."""
        return self._cumulated(math.exp(log_factor) * rates, depth, values)[:, -1]


def _needed(probability: float) -> float:
    """Cumulated hazard at which runs have collapsed with a probability."""
    if not 0 < probability < 1:
        raise ValueError(f"a probability must lie between 0 and 1, got {probability}")
    return -math.log1p(-probability)


def _reached(cumulated: Array, needed: Array) -> Array:
    """Steps at which a cumulated hazard reaches values, between steps; infinite where it does not."""
    steps, total = np.arange(len(cumulated) + 1.0), np.concatenate([[0.0], cumulated])
    return np.interp(needed, total, steps, right=np.inf)
