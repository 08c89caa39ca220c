"""Runs that wait for a collapse, and the Poisson likelihood of their hazard in bins of steps (law O3)."""

# N steps, R runs, B bins of steps, G groups of runs

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize

from meanmode.theory.laws.rivals import sub_layer_sum

Array = NDArray[np.float64]

START = 20
"""Last step at which no run is at risk."""

BIN = 5
"""Steps per bin."""

REFERENCE_DEPTH, REFERENCE_RATE, REFERENCE_AGE = 16, 0.0116, 100.0
"""Depth, learning rate and age in steps at which the hazard per step is exp(level - youth)."""

PARAMETERS = {
    "level": (-30.0, 10.0),
    "steepness": (0.0, 60.0),
    "ageing": (-0.999, 10.0),
    "softening": (-3.0, 3.0),
    "youth": (0.0, 10.0),
}
"""Parameters of the hazard and the bounds of their fit; ageing is above -1 in law O3."""

OLDEST = 1e4
"""Largest value of the youth of a run, which is that of its first step at risk."""

FIRST_GUESS = (-6.0, 3.0, 0.0, 0.0, 0.1)
"""Parameters from which a fit starts, in the order of `PARAMETERS`."""

LARGEST_LOG_HAZARD = 50.0
"""Beyond it no run survives a step; the exponential would overflow."""


class RateSchedule(Protocol):
    """A schedule that knows its learning rate at every step."""

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 1."""


@dataclass(frozen=True, kw_only=True)
class WaitingRuns:
    """Runs of one depth under one schedule.

    Attributes:
        depth: number of blocks.
        rates: learning rate of steps 1, 2, ... up to the last of any run [N].
        times: step of the collapse, or the last step of a run that did not collapse [R].
        collapsed: which runs collapsed [R].
    """

    depth: int
    rates: Array
    times: Array
    collapsed: NDArray[np.bool_]


def rates_of(schedule: RateSchedule | ArrayLike, steps: int | None = None) -> Array:
    """Learning rates of steps 1 to `steps` of a schedule, or of all steps of an array [N].

    Raises:
        ValueError: a schedule without a number of steps, an array that is shorter, or rates that are
            negative or not finite.
    """
    if hasattr(schedule, "rate"):
        if steps is None:
            raise ValueError("a schedule has no end: say for how many steps")
        rates = np.array([schedule.rate(step) for step in range(1, steps + 1)], float)
    else:
        rates = np.asarray(schedule, float)[:steps]
    if rates.ndim != 1 or not len(rates) or len(rates) < (steps or 1):
        raise ValueError(
            f"learning rates must be an array of one per step, for {steps or 1} steps or more, got the "
            f"shape {rates.shape}"
        )
    if not (np.isfinite(rates) & (rates >= 0)).all():
        raise ValueError("learning rates must be finite and not negative")
    return rates


def run_variance(spread: float, depth: ArrayLike) -> Array:
    """Variance between runs of the factor of their hazard, of mean 1; it grows in proportion to the depth."""
    return np.asarray(spread * np.asarray(depth, float) / REFERENCE_DEPTH)


def mixed_hazard(cumulated: Array, variance: ArrayLike) -> Array:
    """Cumulated hazard of a mixture of runs, -ln E exp(-z H) = ln(1 + v H) / v for a gamma variable z.

    Args:
        cumulated: H, of a run with z = 1.
        variance: v, that of z, whose mean is 1; H itself where it is 0.
    """
    v = np.asarray(variance, float)
    tiny = v < 1e-12
    return np.where(tiny, cumulated, np.log1p(v * cumulated) / np.where(tiny, 1.0, v))


def features(rates: Array, depth: float, *, coherence: float, delay: float) -> tuple[Array, Array, Array]:
    """ln[eta G / (0.0116 G(16))], ln(a / 100) and (100 / a)^2 of every step [N]; the first -inf: not at risk.

    What is seen at step t began d = delay * 0.0116 G(16) / (eta(t) G) steps before: a run drifts towards its
    collapse by a fixed distance, the sum of the rates. eta is the learning rate at that step, between steps,
    and a = t - d its age. G is that of law O2.
    """
    ratio = sub_layer_sum(2.0 * depth, coherence) / sub_layer_sum(2.0 * REFERENCE_DEPTH, coherence)
    sizes = rates * math.sqrt(ratio) / REFERENCE_RATE
    steps = np.arange(1.0, len(rates) + 1)
    with np.errstate(divide="ignore"):
        age = steps - (delay / sizes if delay else 0.0)
        log_rate = np.log(np.interp(age, np.arange(len(rates) + 1.0), np.concatenate([[0.0], sizes])))
    log_rate = np.where((steps > START) & (age > 0), log_rate, -np.inf)
    age = np.maximum(age, 1.0)
    return log_rate, np.log(age / REFERENCE_AGE), np.minimum((REFERENCE_AGE / age) ** 2, OLDEST)


@dataclass(frozen=True, kw_only=True)
class BinnedRuns:
    """Collapses and steps at risk of every run in bins, with the features at the middle of each bin.

    Attributes:
        log_depth: ln(L / 16) [G, 1].
        log_rate, log_age, youth: features [G, B]; 0 where nobody is at risk.
        collapses, at_risk: of every run, 0 beyond the runs of a group [G, R, B].
        runs: which of these are runs [G, R].
    """

    log_depth: Array
    log_rate: Array
    log_age: Array
    youth: Array
    collapses: Array
    at_risk: Array
    runs: NDArray[np.bool_]

    @classmethod
    def of(cls, runs: Sequence[WaitingRuns], *, coherence: float, delay: float) -> "BinnedRuns":
        """Count collapses and steps at risk.

        Raises:
            ValueError: no collapse, or one before anybody is at risk.
        """
        ends = [float(time) for group in runs for time in group.times[group.collapsed]]
        if not ends:
            raise ValueError("a hazard is fitted to collapses, and none of the runs collapsed")
        if min(ends) <= START:
            raise ValueError(f"no run is at risk up to step {START}, but one collapsed at step {min(ends):g}")
        edges = np.arange(START, max(float(group.times.max()) for group in runs), BIN)
        middles = edges.astype(int) + (BIN + 1) // 2
        found, most = [], max(len(group.times) for group in runs)
        collapses, at_risk = np.zeros((2, len(runs), most, len(edges)))
        known = np.arange(most) < np.array([[len(group.times)] for group in runs])
        for number, group in enumerate(runs):
            times, at = group.times[:, None], np.minimum(middles, len(group.rates)) - 1
            whole = features(group.rates, group.depth, coherence=coherence, delay=delay)
            idle = np.isneginf(whole[0][at])
            found.append([np.where(idle, 0.0, of[at]) for of in whole])
            inside = (times > edges) & (times <= edges + BIN) & group.collapsed[:, None]
            collapses[number, known[number]] = np.where(idle, 0.0, inside)
            at_risk[number, known[number]] = np.where(idle, 0.0, np.clip(times - edges, 0, BIN))
        log_rate, log_age, youth = np.moveaxis(np.array(found), 1, 0)
        return cls(
            log_depth=np.log([[group.depth / REFERENCE_DEPTH] for group in runs]),
            log_rate=log_rate,
            log_age=log_age,
            youth=youth,
            collapses=collapses,
            at_risk=at_risk,
            runs=known,
        )

    def drawn(self, random: np.random.Generator) -> Array:
        """How often a bootstrap sample holds each run, with as many runs of every group as given [G, R]."""
        return np.array([random.multinomial(of.sum(), of / of.sum()) for of in self.runs], float)

    def fitted(
        self,
        counts: Array,
        fixed: Mapping[str, float],
        *,
        spread: float,
        start: Array | None = None,
    ) -> Array:
        """The parameters of largest likelihood, in the order of `PARAMETERS` [5].

        With v the variance between runs, a run with the cumulated hazard H and d collapses (0 or 1)
        contributes sum(ln h at its collapse) - (d + 1 / v) ln(1 + v H): a gamma mixture of Poisson
        processes, and the Poisson likelihood itself where v is 0.

        Args:
            counts: how often each run is counted [G, R].
            fixed: parameters that are not fitted, with their values.
            spread: variance between runs at 16 blocks.
            start: parameters to start from.
        """
        collapses, hits = np.einsum("gr,grb->gb", counts, self.collapses), self.collapses.sum(2)
        total = max(float(collapses.sum()), 1.0)
        variances = run_variance(spread, REFERENCE_DEPTH * np.exp(self.log_depth))
        values = np.array(FIRST_GUESS) if start is None else start.copy()
        for at, name in enumerate(PARAMETERS):
            values[at] = fixed.get(name, values[at])
        free = [at for at, name in enumerate(PARAMETERS) if name not in fixed]

        def loss(tried: Array) -> tuple[float, Array]:
            values[free] = tried
            level, steepness, ageing, softening, youth = values
            rise = np.exp(-softening * self.log_depth) * self.log_rate
            logs = level + steepness * rise + ageing * self.log_age - youth * self.youth
            logs = np.minimum(logs, LARGEST_LOG_HAZARD)
            hazards = np.exp(logs)
            cumulated = np.matmul(self.at_risk, hazards[..., None])[..., 0]
            lost = float((counts * mixed_hazard(cumulated, variances) * (1 + variances * hits)).sum())
            # a run that has survived a large hazard is likely to have a small one
            weights = counts * (1 + variances * hits) / (1 + variances * cumulated)
            expected = np.matmul(weights[:, None], self.at_risk)[:, 0] * hazards
            by = (1.0, rise, self.log_age, -steepness * self.log_depth * rise, -self.youth)
            slopes = np.array([float(((expected - collapses) * of).sum()) for of in by])
            return (lost - float((collapses * logs).sum())) / total, slopes[free] / total

        found = minimize(
            loss,
            values[free],
            jac=True,
            bounds=[list(PARAMETERS.values())[at] for at in free],
            method="L-BFGS-B",
            options={"ftol": 1e-13, "gtol": 1e-8},
        )
        values[free] = found.x
        return values.copy()
