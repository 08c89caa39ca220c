"""The functional-step law O2, fitted to measured ramps, and the onset at which the step grows too large."""

# M measurements per run, K windows of steps

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from meanmode.theory.laws.rivals import sub_layer_sum

Array = NDArray[np.float64]
HORIZON = 100_000

WINDOW = 30
"""Steps per window, within which the gain of a sub-layer is taken as constant."""

BEFORE = 5
"""Steps left out before the first onset of the fitted runs, where the collapse has already begun."""

EARLIEST = 10
"""First step that is used: the first steps of Adam have the same size whatever the gradient."""


@dataclass(frozen=True, kw_only=True)
class Ramp:
    """A measured run that collapsed under a linear ramp of the learning rate.

    Attributes:
        depth: number of blocks.
        onset: step of the collapse.
        steps: steps at which Delta was measured [M].
        rates: learning rates at these steps [M].
        functional_steps: Delta at these steps [M].
    """

    depth: int
    onset: int
    steps: NDArray[np.int64]
    rates: Array
    functional_steps: Array

    @property
    def slope(self) -> float:
        """Learning rate gained per step."""
        return float(self.rates[0] / self.steps[0])


@dataclass(frozen=True, kw_only=True)
class FunctionalLaw:
    """Delta = eta gamma(t) sqrt(2 L (1 + (2 L - 1) r)) (law O2); a run collapses when it reaches Delta_c.

    Attributes:
        centres: middle step of each window [K].
        gains: gamma in each window [K].
        coherence: r, the mean cosine between the changes that two sub-layers make to the last trunk.
        threshold: Delta_c, the Delta predicted by the law at the onset.
        scatter: standard deviation of the log onset step between runs of the same depth.
    """

    centres: Array
    gains: Array
    coherence: float
    threshold: float
    scatter: float

    @classmethod
    def fit(cls, runs: Sequence[Ramp]) -> "FunctionalLaw":
        """Fit the law to runs of several depths.

        gamma and r come from least squares of the logarithms over the windows before the first onset of all
        runs, using the geometric mean over the runs of each depth. Delta_c is the median over runs of the
        law's Delta at their onsets.

        Raises:
            ValueError: fewer than two depths, or no full window before the first onset.
        """
        depths = sorted({run.depth for run in runs})
        first_onset = min(run.onset for run in runs)
        edges = np.arange(EARLIEST, first_onset - BEFORE + 1, WINDOW)
        if len(depths) < 2 or len(edges) < 2:
            raise ValueError(
                f"the functional-step law needs runs of two depths with {WINDOW} steps before their onsets, "
                f"got depths {depths} and a first onset at step {first_onset}"
            )
        windows = list(itertools.pairwise(edges.tolist()))
        logs = np.array([[_mean_log(runs, depth, *window) for window in windows] for depth in depths])
        count = 2 * np.array(depths, float)

        def left(coherence: float) -> Array:
            expected = np.log(sub_layer_sum(count, coherence)) / 2
            return logs - expected[:, None]

        found = minimize_scalar(
            lambda coherence: float(left(coherence).var(axis=0).sum()),
            bounds=(0.0, 1.0),
            method="bounded",
            options={"xatol": 1e-6},
        )
        coherence = float(found.x)
        law = cls(
            centres=(edges[:-1] + edges[1:]) / 2,
            gains=np.exp(left(coherence).mean(axis=0)),
            coherence=coherence,
            threshold=math.nan,
            scatter=_scatter(runs, depths),
        )
        sizes = [float(law.size(run.depth, run.slope, np.array([run.onset]))[0]) for run in runs]
        return dataclasses.replace(law, threshold=float(np.median(sizes)))

    @classmethod
    def of_document(cls, document: Mapping[str, Any]) -> "FunctionalLaw":
        """Build the law from its constants, as stored in a forecast.

        Raises:
            ValueError: the document does not hold these constants.
        """
        try:
            constants: dict[str, Any] = {
                name: np.array(value) if isinstance(value, list) else value
                for name, value in document.items()
            }
            return cls(**constants)
        except (AttributeError, TypeError) as error:
            raise ValueError(f"not the constants of a functional-step law: {error}") from error

    def document(self) -> dict[str, Any]:
        """The constants of the law, JSON-serialisable."""
        return {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in vars(self).items()
        }

    def size(self, depth: float, slope: float, steps: Array | NDArray[np.int64]) -> Array:
        """Delta at these steps of a ramp; the first and last gains extend beyond the fitted windows."""
        gains = np.exp(np.interp(steps, self.centres, np.log(self.gains)))
        return slope * steps * gains * np.sqrt(sub_layer_sum(2.0 * depth, self.coherence))

    def critical_rate(self, depth: float, slope: float) -> float:
        """Learning rate at which a ramp collapses; infinite if it does not within `HORIZON` steps."""
        steps = np.arange(1, HORIZON, dtype=float)
        above = np.flatnonzero(self.size(depth, slope, steps) >= self.threshold)
        return slope * float(steps[above[0]]) if len(above) else math.inf

    def constant_rate(self, depth: float) -> float:
        """The lowest constant rate at which Delta reaches its threshold, at the time of the largest gain."""
        gain = float(self.gains.max()) * float(np.sqrt(sub_layer_sum(2.0 * depth, self.coherence)))
        return self.threshold / gain

    def scaled(self, pilots: Sequence["Ramp"]) -> "FunctionalLaw":
        """Transfer the law to a setting of which only pilots, the first steps of some runs, are known.

        All gains are multiplied by one factor: the geometric mean, over the pilots' measured steps, of the
        measured Delta over that of the law.

        Raises:
            ValueError: no Delta was measured from step `EARLIEST` on.
        """
        logs = [
            np.log(run.functional_steps / self.size(run.depth, run.slope, run.steps))[run.steps >= EARLIEST]
            for run in pilots
        ]
        if not logs or not np.concatenate(logs).size:
            raise ValueError(f"a pilot needs measurements of Delta from step {EARLIEST} on")
        factor = float(np.exp(np.concatenate(logs).mean()))
        return dataclasses.replace(self, gains=self.gains * factor)


def _mean_log(runs: Sequence[Ramp], depth: int, start: int, stop: int) -> float:
    """Mean of ln(Delta / rate) over the runs of a depth and the measurements within a window."""
    values = [
        np.log(run.functional_steps / run.rates)[(run.steps >= start) & (run.steps < stop)]
        for run in runs
        if run.depth == depth
    ]
    return float(np.concatenate(values).mean())


def _scatter(runs: Sequence[Ramp], depths: Sequence[int]) -> float:
    """Standard deviation of the log onset step between runs of one depth, pooled over depths."""
    logs = [np.log([run.onset for run in runs if run.depth == depth]) for depth in depths]
    squares = sum(float(((of - of.mean()) ** 2).sum()) for of in logs)
    return float(np.sqrt(squares / max(sum(len(of) - 1 for of in logs), 1)))


def drawn_again(runs: Sequence[Ramp], random: np.random.Generator) -> list[Ramp]:
    """Bootstrap sample: for each depth, as many runs as given, drawn with replacement."""
    by_depth = [[run for run in runs if run.depth == of] for of in sorted({run.depth for run in runs})]
    return [group[index] for group in by_depth for index in random.integers(len(group), size=len(group))]


def forecast(
    runs: Sequence[Ramp],
    depth: float,
    slope: float,
    *,
    seeds: int,
    interval: float,
    pilots: Sequence[Ramp] = (),
    samples: int = 400,
) -> tuple[float, float, float]:
    """Forecast the median critical rate of several runs under a ramp; returns (median, low, high).

    The interval covers the error of the fit, from resampling the runs of each depth and the pilots, and the
    error of a median of `seeds` runs, sqrt(pi / 2) scatter / sqrt(seeds). It does not cover errors of the law
    itself.

    Args:
        runs: runs to fit the law to.
        depth: number of blocks of the predicted runs.
        slope: learning rate that their ramp gains per step.
        seeds: number of runs whose median is predicted.
        interval: coverage probability of the interval.
        pilots: first steps in the predicted setting, if it differs from that of the fitted runs (`scaled`).
        samples: number of bootstrap samples.
    """

    def fitted(chosen: Sequence[Ramp], first_steps: Sequence[Ramp]) -> FunctionalLaw:
        law = FunctionalLaw.fit(chosen)
        return law.scaled(first_steps) if first_steps else law

    law = fitted(runs, pilots)
    random = np.random.default_rng([int(depth), samples])
    found = []
    for _ in range(samples):
        again = fitted(drawn_again(runs, random), drawn_again(pilots, random))
        noise = random.normal() * (np.pi / 2 / seeds) ** 0.5 * law.scatter
        found.append(again.critical_rate(depth, slope) * np.exp(noise))
    low, high = np.quantile(found, [(1 - interval) / 2, (1 + interval) / 2])
    return law.critical_rate(depth, slope), float(low), float(high)
