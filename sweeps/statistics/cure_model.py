"""Waiting times when some runs never collapse: the Weibull mixture cure model, by maximum likelihood."""

# N runs

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize

Array = NDArray[np.float64]


BOUNDS = ((-12.0, 12.0), (-12.0, 12.0), (-2.0, 16.0), (-6.0, 6.0), (-2.0, 3.0))
"""Bounds of the five parameters. A likelihood that grows without bound, as when no run or every run at some
value of the predictor is cured, stops at a cured share of about 6e-6."""


STARTS = tuple(itertools.product((-3.0, 0.0), (-1.0, 0.0, 1.0)))
"""Intercepts and slopes of the cured share from which fits start: the likelihood has several maxima."""


LARGEST_LOG_HAZARD = 50.0
"""Beyond it no run survives; the tail of a Weibull would overflow."""


@dataclass(frozen=True, kw_only=True)
class CureModel:
    """P(T > t) = c + (1 - c) exp(-(t / s)^k): a share c never collapses, the rest after a Weibull time.

    With z = (predictor - `mean`) / `spread`: logit c = cured[0] + cured[1] z and
    ln s = scale[0] + scale[1] z; the shape k is shared.

    Attributes:
        mean: mean of the predictor over the fitted runs.
        spread: its standard deviation over them, 1 if it does not vary.
        cured: intercept and slope of the logit of the cured share.
        scale: intercept and slope of the logarithm of the Weibull scale.
        shape: Weibull shape k.
        log_likelihood: sum over the fitted runs.
    """

    mean: float
    spread: float
    cured: tuple[float, float]
    scale: tuple[float, float]
    shape: float
    log_likelihood: float

    @classmethod
    def fit(cls, predictor: ArrayLike, times: ArrayLike, collapsed: ArrayLike) -> "CureModel":
        """Fit the model, from several starts.

        Args:
            predictor: its value for every run [N].
            times: waiting time of every run, or its length if it did not collapse [N].
            collapsed: which runs collapsed [N].

        Raises:
            ValueError: fewer collapses than parameters, a time that is not positive, or a predictor that is
                not finite.
        """
        x, t, events = np.asarray(predictor, float), np.asarray(times, float), np.asarray(collapsed, bool)
        if events.sum() < len(BOUNDS):
            raise ValueError(f"a cure model needs at least {len(BOUNDS)} collapses, got {events.sum()}")
        if not (t > 0).all():
            raise ValueError(f"waiting times must be positive, got {t.min():g}")
        if not np.isfinite(x).all():
            raise ValueError(f"the predictor of {(~np.isfinite(x)).sum()} runs is not finite: leave them out")
        mean, spread = float(x.mean()), float(x.std()) or 1.0
        z = (x - mean) / spread
        middle = math.log(np.median(t[events]))
        found = min(
            (
                optimize.minimize(
                    lambda values: -_log_likelihoods(values, z, t, events).mean(),
                    (*start, middle, 0.0, 0.0),
                    bounds=BOUNDS,
                    method="L-BFGS-B",
                )
                for start in STARTS
            ),
            key=lambda one: one.fun,
        )
        a, b, c, d, log_shape = map(float, found.x)
        return cls(
            mean=mean,
            spread=spread,
            cured=(a, b),
            scale=(c, d),
            shape=math.exp(log_shape),
            log_likelihood=-float(found.fun) * len(t),
        )

    def log_likelihoods(self, predictor: ArrayLike, times: ArrayLike, collapsed: ArrayLike) -> Array:
        """Log likelihood of every run [N]: of its waiting time, or of a longer one if it did not collapse."""
        return _log_likelihoods(
            self._parameters, self._standard(predictor), np.asarray(times, float), np.asarray(collapsed, bool)
        )

    def survival(self, predictor: ArrayLike, times: ArrayLike) -> Array:
        """P(T > t) at values of the predictor; the two arguments broadcast."""
        x, t = np.broadcast_arrays(np.asarray(predictor, float), np.asarray(times, float))
        return np.exp(_log_likelihoods(self._parameters, self._standard(x), t, np.zeros(t.shape, bool)))

    @property
    def _parameters(self) -> tuple[float, ...]:
        return (*self.cured, *self.scale, math.log(self.shape))

    def _standard(self, predictor: ArrayLike) -> Array:
        return (np.asarray(predictor, float) - self.mean) / self.spread


def _log_likelihoods(parameters: ArrayLike, z: Array, times: Array, collapsed: NDArray[np.bool_]) -> Array:
    intercept, slope, scale, scale_slope, log_shape = np.asarray(parameters, float)
    logit, shape = intercept + slope * z, math.exp(log_shape)
    log_cured, log_others = -np.logaddexp(0, -logit), -np.logaddexp(0, logit)
    log_time = np.log(np.maximum(times, np.finfo(float).tiny))
    log_hazard = np.minimum(shape * (log_time - scale - scale_slope * z), LARGEST_LOG_HAZARD)
    survived = log_others - np.exp(log_hazard)
    density = survived + log_shape + log_hazard - log_time
    return np.where(collapsed, density, np.logaddexp(log_cured, survived))
