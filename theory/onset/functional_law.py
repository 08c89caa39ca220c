"""The functional step against depth, fitted on measured ramps, and the onset where it is too large."""

# R runs, M measurements of a run, K windows of steps

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
"""Steps of a window, within which the gain of a sub-layer counts as constant."""


BEFORE = 5
"""Steps before the first onset of the fitted runs that are left out: there the collapse has begun."""


EARLIEST = 10
"""Measured steps before it are left out: Adam's first steps are of equal size whatever the gradient."""


@dataclass(frozen=True, kw_only=True)
class Ramp:
    """A measured run that collapsed under a ramp.

    Attributes:
        depth: blocks.
        onset: step.
        steps: at which Delta was measured [M].
        rates: of these steps [M].
        functional_steps: Delta [M].
    """

    depth: int
    onset: int
    steps: NDArray[np.int64]
    rates: Array
    functional_steps: Array

    @property
    def slope(self) -> float:
        """Learning rate gained a step."""
        return float(self.rates[0] / self.steps[0])


@dataclass(frozen=True, kw_only=True)
class FunctionalLaw:
    """Delta = eta gamma(t) sqrt(2 L (1 + (2 L - 1) r)), law O2: collapse where it reaches Delta_c.

    Attributes:
        centres: middle step of every window [K].
        gains: gamma of every window [K].
        coherence: r, the mean cosine of the changes that two sub-layers make to the last trunk.
        threshold: Delta_c, of the law's own Delta, at the onset.
        scatter: standard deviation of the logarithm of the onset step between runs of one depth.
    """

    centres: Array
    gains: Array
    coherence: float
    threshold: float
    scatter: float

    @classmethod
    def fit(cls, runs: Sequence[Ramp]) -> "FunctionalLaw":
        """Fit it to runs of several depths.

        gamma and r by least squares of the logarithms over windows that every depth has before its first
        onset; a window of a depth is the geometric mean over its runs. Delta_c is the median over runs of
        what the law gives at their onsets.

        Raises:
            ValueError: runs of fewer than two depths, or without Delta.
        """
        depths = sorted({run.depth for run in runs})
        first_onset = min(run.onset for run in runs)
        edges = np.arange(EARLIEST, first_onset - BEFORE + 1, WINDOW)
        if len(depths) < 2 or len(edges) < 2:
            raise ValueError(
                f"the law of the functional step needs runs of two depths with {WINDOW} steps before their "
                f"onsets, got depths {depths} and a first onset at step {first_onset}"
            )
        windows = list(itertools.pairwise(edges))
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
        """The law of its constants, as in a forecast.

        Raises:
            ValueError: no such constants.
        """
        try:
            return cls(
                **{
                    name: np.array(value) if isinstance(value, list) else value
                    for name, value in document.items()
                }
            )
        except (AttributeError, TypeError) as error:
            raise ValueError(f"these are no constants of the law of the functional step: {error}") from error

    def document(self) -> dict[str, Any]:
        """Its constants, JSON-serialisable."""
        return {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in vars(self).items()
        }

    def size(self, depth: float, slope: float, steps: Array) -> Array:
        """Delta at these steps of a ramp; the first and the last gain hold for ever."""
        gains = np.exp(np.interp(steps, self.centres, np.log(self.gains)))
        return slope * steps * gains * np.sqrt(sub_layer_sum(2.0 * depth, self.coherence))

    def critical_rate(self, depth: float, slope: float) -> float:
        """Learning rate at which a ramp collapses; infinite where it does not within `HORIZON` steps."""
        steps = np.arange(1, HORIZON, dtype=float)
        above = np.flatnonzero(self.size(depth, slope, steps) >= self.threshold)
        return slope * float(steps[above[0]]) if len(above) else math.inf

    def constant_rate(self, depth: float) -> float:
        """The lowest constant rate at which Delta reaches its threshold, where the gain is largest."""
        gain = float(self.gains.max()) * float(np.sqrt(sub_layer_sum(2.0 * depth, self.coherence)))
        return self.threshold / gain

    def scaled(self, pilots: Sequence["Ramp"]) -> "FunctionalLaw":
        """The law of a setting of which only the first steps of some runs are known: all gains by one factor.

        The factor is the geometric mean, over runs and their measured steps, of Delta over the law's.

        Raises:
            ValueError: no Delta was measured in the pilots.
        """
        logs = [
            np.log(run.functional_steps / self.size(run.depth, run.slope, run.steps))[run.steps >= EARLIEST]
            for run in pilots
        ]
        if not logs or not np.concatenate(logs).size:
            raise ValueError(f"a pilot needs measurements of Delta behind step {EARLIEST}")
        factor = float(np.exp(np.concatenate(logs).mean()))
        return dataclasses.replace(self, gains=self.gains * factor)


def _mean_log(runs: Sequence[Ramp], depth: int, start: int, stop: int) -> float:
    """ln of Delta over the rate, mean over the runs of a depth and the measurements of a window."""
    values = [
        np.log(run.functional_steps / run.rates)[(run.steps >= start) & (run.steps < stop)]
        for run in runs
        if run.depth == depth
    ]
    return float(np.concatenate(values).mean())


def _scatter(runs: Sequence[Ramp], depths: Sequence[int]) -> float:
    """Pooled over depths."""
    logs = [np.log([run.onset for run in runs if run.depth == depth]) for depth in depths]
    squares = sum(float(((of - of.mean()) ** 2).sum()) for of in logs)
    return float(np.sqrt(squares / max(sum(len(of) - 1 for of in logs), 1)))


def drawn_again(runs: Sequence[Ramp], random: np.random.Generator) -> list[Ramp]:
    """As many runs of every depth, drawn with replacement."""
    by_depth = [[run for run in runs if run.depth == of] for of in sorted({run.depth for run in runs})]
    return [group[place] for group in by_depth for place in random.integers(len(group), size=len(group))]


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
    """Median critical rate of some runs under a ramp, and its interval.

    The interval holds the error of the fit, by resampling the runs of every depth (and the pilots), and that
    of a median of that many runs, sqrt(pi / 2) scatter / sqrt(seeds); that the law may be wrong is not in it.

    Args:
        runs: the law is fitted on.
        depth: blocks.
        slope: of the ramp.
        seeds: runs whose median is predicted.
        interval: probability of the interval.
        pilots: first steps of the setting, where it is another than the fitted ones (`scaled`).
        samples: of the bootstrap.
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
