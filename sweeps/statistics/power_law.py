"""A power law in depth or slope, fitted to runs, with prediction intervals."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from meanmode.sweeps.statistics.censoring import INTERVAL

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """ln eta_c = a + b ln L by ordinary least squares over runs.

    Attributes:
        intercept: intercept a.
        exponent: exponent b.
        exponent_error: standard error of b.
        scatter: residual standard deviation of a run.
        freedom: degrees of freedom, runs - 2.
        mean_log: mean of ln L.
        spread: sum of squared deviations of ln L.
        runs: number of fitted runs.
    """

    intercept: float
    exponent: float
    exponent_error: float
    scatter: float
    freedom: int
    mean_log: float
    spread: float
    runs: int

    @classmethod
    def fit(cls, depths: Array, rates: Array) -> "PowerLaw":
        """Fit the law.

        Raises:
            ValueError: fewer than two depths, or fewer than three runs.
        """
        x, y = np.log(depths), np.log(rates)
        if len(set(depths.tolist())) < 2 or len(x) < 3:
            raise ValueError("a law of the depth needs runs of at least two depths, three in all")
        found = stats.linregress(x, y)
        residuals = y - (found.intercept + found.slope * x)
        freedom = len(x) - 2
        return cls(
            intercept=float(found.intercept),
            exponent=float(found.slope),
            exponent_error=float(found.stderr),
            scatter=float(np.sqrt((residuals**2).sum() / freedom)),
            freedom=freedom,
            mean_log=float(x.mean()),
            spread=float(((x - x.mean()) ** 2).sum()),
            runs=len(x),
        )

    def predict(self, depth: float, seeds: int) -> tuple[float, float, float]:
        """Predicted median critical rate of `seeds` runs at a depth, and its `INTERVAL`.

        The interval contains the error of the fit and that of a median of that many runs,
        sqrt(pi / 2) scatter / sqrt(n); it does not allow for a law that bends outside of the fitted depths.
        """
        x = math.log(depth)
        line = self.intercept + self.exponent * x
        variance = self.scatter**2 * (
            1 / self.runs + (x - self.mean_log) ** 2 / self.spread + math.pi / 2 / seeds
        )
        half = float(stats.t.ppf((1 + INTERVAL) / 2, self.freedom)) * math.sqrt(variance)
        return math.exp(line), math.exp(line - half), math.exp(line + half)
