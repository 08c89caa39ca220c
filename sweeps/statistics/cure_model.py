"""Waiting times with runs that never collapse: the Weibull mixture cure model, by maximum likelihood."""

# N runs

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize

Array = NDArray[np.float64]


BOUNDS = ((-12.0, 12.0), (-12.0, 12.0), (-2.0, 16.0), (-6.0, 6.0), (-2.0, 3.0))
"""Of the five parameters: a likelihood that grows without end, where no run or every run of some predictor is
cured, ends at a cured share of 6e-6 or so."""


STARTS = tuple(itertools.product((-3.0, 0.0), (-1.0, 0.0, 1.0)))
"""Intercept and slope of the cured share from which the fit begins: the likelihood has several maxima."""


LARGEST_LOG_HAZARD = 50.0
"""Behind which nobody is left; a Weibull far out would overflow."""


@dataclass(frozen=True, kw_only=True)
class CureModel:
    """P(T > t) = c + (1 - c) exp(-(t / s)^k): a share c never collapses, the others after a Weibull time.

    With z the predictor less `mean` over `spread`: logit c = cured[0] + cured[1] z and
    ln s = scale[0] + scale[1] z; the shape k is common.

    Attributes:
        mean: of the predictor over the fitted runs.
        spread: its standard deviation there, 1 where they have the same.
        cured: intercept and slope of the logit of the cured share.
        scale: intercept and slope of the logarithm of the Weibull's scale.
        shape: k.
        log_likelihood: of the fitted runs, summed.
    """

    mean: float
    spread: float
    cured: tuple[float, float]
    scale: tuple[float, float]
    shape: float
    log_likelihood: float

    @classmethod
    def fit(cls, predictor: ArrayLike, times: ArrayLike, collapsed: ArrayLike) -> "CureModel":
        """Fit it, from several starts.

        Args:
            predictor: of every run [N].
            times: waiting time of every run [N], of one that did not collapse how long it was watched.
            collapsed: which did [N].

        Raises:
            ValueError: fewer collapses than parameters, a time that is not positive, or an unknown predictor.
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
        """Of every run [N]: the log density of its waiting time, or of its being longer."""
        return _log_likelihoods(
            self._parameters, self._standard(predictor), np.asarray(times, float), np.asarray(collapsed, bool)
        )

    def survival(self, predictor: ArrayLike, times: ArrayLike) -> Array:
        """P(T > t) of runs of a predictor; the two broadcast."""
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
