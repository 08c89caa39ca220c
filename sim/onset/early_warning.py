"""Early warning: the probability that a run collapses within some steps, from its own measured signals."""

# N rows, F features, H horizons

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit

from meanmode.theory.meanfield.front import FRONT_COSINE

Array = NDArray[np.float64]

HORIZONS = (25, 50)
"""Steps within which a collapse is forecast."""

SHORT, LONG, MEDIAN = 10, 30, 25
"""Windows in steps, each ending with the row itself: of the two mean token cosines, and of the median
functional step."""

LEAST = 2
"""Measurements that the shortest window of each signal needs."""

MOST_STEPS = 5
"""Largest interval between measurements at which every window holds `LEAST` of them."""

FEATURES = (f"x{SHORT}", f"x{LONG}", f"ln_delta{MEDIAN}")
"""-ln(1 - TCS) of the mean token cosine of 10 and of 30 steps, and ln of the median functional step of 25."""

RATE_STEPS = (100, 149)
"""First and last of the steps from whose functional steps the critical rate is forecast."""

RATE_LEAST = 5
"""Measurements that such a forecast needs."""

RATE_CONSTANT = -0.553
"""ln of the median functional step at the critical rate, had it grown in proportion to the rate from
`RATE_STEPS` on: median over the 72 ramps of `critical_rate_depth` (8 to 32 blocks)."""


def warning_features(steps: ArrayLike, cosines: ArrayLike, functional_steps: ArrayLike) -> Array:
    """Features of every row [N, F], in the order of `FEATURES`; NaN where the forecast is silent.

    It is silent where a window holds too few measurements, before the windows are full, and where the mean
    cosine of `SHORT` steps is above that of the front: tokens are alike then, and there is nothing left to
    forecast.

    Args:
        steps: numbers of the logged steps, ascending [N].
        cosines: median token cosine of the deeper half of the blocks, NaN where not measured [N].
        functional_steps: functional step of each update, NaN where not measured [N].
    """
    at = np.asarray(steps, np.int64)
    if not len(at):
        return np.empty((0, len(FEATURES)))
    index = pd.to_timedelta(at - at[0], unit="ns")
    tcs = pd.Series(np.asarray(cosines, np.float64), index)
    delta = pd.Series(np.asarray(functional_steps, np.float64), index)
    short = tcs.rolling(f"{SHORT}ns", min_periods=LEAST).mean().to_numpy(np.float64)
    long = tcs.rolling(f"{LONG}ns", min_periods=LEAST).mean().to_numpy(np.float64)
    median = delta.rolling(f"{MEDIAN}ns", min_periods=LEAST).median().to_numpy(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.stack([-np.log1p(-short), -np.log1p(-long), np.log(median)], axis=1)
    silent = np.isnan(found).any(1) | (short > FRONT_COSINE) | (at < at[0] + LONG - 1)
    found[silent] = np.nan
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class EarlyWarning:
    """A logistic model per horizon: P(collapse within H steps) = 1 / (1 + exp(-(b_0 + sum_f b_f x_f))).

    Attributes:
        coefficients: horizon in steps -> intercept, then one coefficient per feature.
    """

    coefficients: Mapping[int, tuple[float, ...]]

    @classmethod
    def fit(cls, features: Array, left: Array, known: Array) -> "EarlyWarning":
        """Fit by maximum likelihood, every row with the same weight.

        Args:
            features: features of the rows [N, F]; rows that are not finite are left out.
            left: steps from each row to the onset of the collapse, infinite without one [N].
            known: steps from each row to the planned end of its run [N]; a horizon uses only rows for which
                it ends before that, whether the run collapsed or not.
        """
        finite = np.isfinite(features).all(1)
        found = {}
        for horizon in HORIZONS:
            rows = finite & (known >= horizon)
            found[horizon] = _logistic(features[rows], left[rows] <= horizon)
        return cls(coefficients=found)

    def probability(self, features: Array, horizon: int) -> Array:
        """Probability of an onset within the next `horizon` steps [N]; NaN where a feature is NaN.

        Args:
            features: features of the rows [N, F].
            horizon: one of `HORIZONS`.
        """
        first, *rest = self.coefficients[horizon]
        chance: Array = expit(first + features @ np.array(rest))
        return chance

    def document(self) -> dict[str, Any]:
        """The model as a JSON document."""
        return {str(horizon): list(values) for horizon, values in self.coefficients.items()}


def _logistic(features: Array, outcomes: NDArray[np.bool_]) -> tuple[float, ...]:
    """Coefficients of a logistic regression, intercept first [1 + F]."""
    design = np.column_stack([np.ones(len(features)), features])

    def loss(coefficients: Array) -> tuple[float, Array]:
        z = design @ coefficients
        value = np.mean(np.logaddexp(0, z) - outcomes * z)
        return float(value), design.T @ (expit(z) - outcomes) / len(z)

    start = np.zeros(design.shape[1])
    return tuple(minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-7}).x.tolist())


WARNING = EarlyWarning(coefficients={25: (-1.469, 1.731, 2.388, 2.369), 50: (-0.379, 2.447, 1.799, 2.487)})
"""The forecast in use, fitted to every fifth step of 907 runs of `waiting_time`, `waiting_time_low` and
`critical_rate_depth`: 8 to 32 blocks of width 16, constant rates, and ramps of one slope. The features, and
that every row counts the same, were chosen by leaving out depths and schedules of these runs."""


def reforecast(steps: ArrayLike, rates: ArrayLike, functional_steps: ArrayLike) -> float:
    """Critical rate of a ramp of a run's setting, from its functional steps in `RATE_STEPS`; NaN if unknown.

    eta_c = exp(k) / median(Delta / eta): the rate at which Delta, growing in proportion to the rate, reaches
    what it had in the measured ramps at their collapse.

    Args:
        steps: numbers of the logged steps [N].
        rates: learning rates of these steps [N].
        functional_steps: functional steps, NaN where not measured [N].
    """
    at, eta = np.asarray(steps), np.asarray(rates, np.float64)
    delta = np.asarray(functional_steps, np.float64)
    used = (at >= RATE_STEPS[0]) & (at <= RATE_STEPS[1]) & (delta > 0) & (eta > 0)
    if used.sum() < RATE_LEAST or not (at >= RATE_STEPS[1]).any():
        return float("nan")
    return float(np.exp(RATE_CONSTANT) / np.median(delta[used] / eta[used]))


def silence(steps: ArrayLike, cosines: ArrayLike, functional_steps: ArrayLike) -> str:
    """Why there is no forecast at the last row, in words; empty if there is one.

    Args:
        steps, cosines, functional_steps: as for `warning_features`.
    """
    at = np.asarray(steps, np.int64)
    tcs, delta = np.asarray(cosines, np.float64), np.asarray(functional_steps, np.float64)
    if np.isnan(tcs).all():
        return "no token cosine is measured: log tcs"
    if np.isnan(delta).all():
        return "the functional step is not measured: it must be among the observables"
    if np.isfinite(warning_features(at, tcs, delta)[-1, :2]).all():
        return ""
    recent = at > at[-1] - SHORT
    cosine = float(np.nanmean(tcs[recent])) if not np.isnan(tcs[recent]).all() else float("nan")
    if cosine > FRONT_COSINE:
        return f"tokens are alike already: the mean token cosine of {SHORT} steps is {cosine:.3f}"
    if at[-1] < at[0] + LONG - 1:
        return f"the run has {at[-1] - at[0] + 1} of the {LONG} steps that it needs"
    return (
        f"measurements are too far apart: a token cosine and a functional step every {MOST_STEPS} steps are "
        f"needed (telemetry_every={MOST_STEPS})"
    )


class RecentSignals:
    """The last measured signals of a run in training, and the probability that they give."""

    def __init__(self) -> None:
        self._rows: dict[int, tuple[float, float]] = {}
        self._first: int | None = None

    def add(self, step: int, cosine: float, functional_step: float) -> None:
        """Take in a measured step; NaN for what was not measured.

        Args:
            step: number of the step, larger than any before.
            cosine: median token cosine of the deeper half of the blocks.
            functional_step: functional step of the update.
        """
        self._first = step if self._first is None else self._first
        self._rows[step] = (cosine, functional_step)
        self._rows = {at: row for at, row in self._rows.items() if at > step - LONG}

    def chance(self, horizon: int) -> float:
        """P(collapse within `horizon` steps) at the last step; NaN where the forecast is silent."""
        if self._first is None:
            return float("nan")
        # the first step of the run tells whether the windows are full
        rows = {self._first: (np.nan, np.nan), **self._rows}
        signals = np.array(list(rows.values()), np.float64)
        features = warning_features(list(rows), signals[:, 0], signals[:, 1])
        return float(WARNING.probability(features, horizon)[-1])

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything that `restore` needs."""
        first = [] if self._first is None else [self._first]
        rows = [(step, *row) for step, row in self._rows.items()]
        return {
            "first": np.array(first, np.int64),
            "rows": np.array(rows, np.float64).reshape(-1, 3),
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Continue with the signals whose `state` is given."""
        self._first = int(state["first"][0]) if len(state["first"]) else None
        self._rows = {int(step): (cosine, delta) for step, cosine, delta in state["rows"].tolist()}
