"""The predicted collapse front: where the recursion's pair cosine reaches 0.9, and its spread."""

# W realisations (seeds), B batch, L blocks

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from theory.recursion import Branch, MeanField
from theory.setting import Setting

Array = NDArray[np.float64]

FRONT_COSINE = 0.9
HORIZON = 4096
REALISATIONS = 1000
ATTENTION_KURTOSIS, FFN_KURTOSIS = 4.0, 2.0
"""D times the relative variance of a branch mean's energy: 2 for each Gaussian matrix it passes."""


def crossing(cosines: Array) -> Array:
    """First depth at which each profile reaches `FRONT_COSINE`, interpolated linearly; inf where it never
    does.

    Args:
        cosines: pair cosines [L + 1, ...], block 0 first; NaN counts as not reached.
    """
    reached = cosines >= FRONT_COSINE
    first = reached.argmax(0)
    above = np.take_along_axis(cosines, first[None], 0)[0]
    below = np.take_along_axis(cosines, np.maximum(first - 1, 0)[None], 0)[0]
    with np.errstate(invalid="ignore", divide="ignore"):
        depth = np.where(first == 0, 0.0, first - 1 + (FRONT_COSINE - below) / (above - below))
    return np.where(reached.any(0), depth, np.inf)


SubLayer = Callable[[Array], Branch]


class Walkers:
    """Realisations of the mean mode at finite width: a multiplicative random walk around the mean recursion.

    The fluctuations have no fitted constant: the branch mean points in a random direction of D (first
    normal), its own energy fluctuates with the Gaussian matrices it passes (second normal), and the input's
    mean has a finite sample of features.

    Args:
        field: the recursion.
        realisations: how many seeds; 0 gives the mean recursion without noise.
    """

    def __init__(self, field: MeanField, realisations: int) -> None:
        self.field = field
        setting = field.setting
        self.random = np.random.default_rng(np.random.SeedSequence(0)) if realisations else None
        self.shape = (max(realisations, 1), setting.batch if realisations else 1)
        cosine, tokens = setting.input_cosine, field.tokens
        mean = np.full(self.shape, (1 + (tokens - 1) * cosine) / tokens)
        if self.random is not None:
            spread = np.sqrt(2 / field.width) * (cosine * (1 - cosine) + (1 - cosine) / tokens)
            mean = np.clip(mean + spread * self.random.standard_normal(self.shape), 0.0, 1.0)
        self.mean_energy = mean

    def cosine(self) -> Array:
        """The pair cosine of every sample now [W, B]."""
        return self.field.cosine(self.mean_energy)

    def step(self, branch: SubLayer, kurtosis: float) -> Branch:
        """Pass one sub-layer; returns the moments of its output."""
        noise = None if self.random is None else self.random.standard_normal((2, *self.shape))
        moments = branch(self.cosine())
        self.mean_energy = self.field.merge(self.mean_energy, moments, noise, kurtosis)
        return moments

    def blocks(self, depth: int) -> Iterator[Array]:
        """The cosines after blocks 0, 1, ..., depth, each [W, B]."""
        yield self.cosine()
        for _ in range(depth):
            self.step(self.field.attention, ATTENTION_KURTOSIS)
            self.step(self.field.ffn, FFN_KURTOSIS)
            yield self.cosine()


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontPrediction:
    """The front's distribution over seeds.

    Attributes:
        front: mean over realisations in blocks; None where fewer than half of them reach the front.
        front_std: standard deviation over realisations (one seed of `batch` samples each); None with `front`.
        front_deterministic: of the mean recursion; None where it has none within `HORIZON` blocks.
        samples: the front of every realisation, inf where it has none within the blocks that were followed.
    """

    front: float | None
    front_std: float | None
    front_deterministic: float | None
    samples: Array = field(repr=False)

    def within(self, depth: int) -> tuple[float, float, float]:
        """At a finite depth: the fraction of seeds that collapse, mean and std of min(front, depth)."""
        seen = np.minimum(self.samples, depth)
        return float(np.mean(self.samples <= depth)), float(seen.mean()), float(seen.std())


def deterministic_front(setting: Setting) -> float | None:
    """The front of the mean recursion; None where it settles below or lies beyond `HORIZON` blocks."""
    previous: float | None = None
    for block, cosines in enumerate(Walkers(MeanField(setting), 0).blocks(HORIZON)):
        cosine = float(cosines[0, 0])
        if cosine >= FRONT_COSINE:
            return 0.0 if previous is None else block - 1 + (FRONT_COSINE - previous) / (cosine - previous)
        if previous is not None and abs(cosine - previous) < 1e-12:
            return None
        previous = cosine
    return None


def predict_front(setting: Setting, realisations: int = REALISATIONS) -> FrontPrediction:
    """The collapse front at initialisation, with its spread over seeds (mean-field recursion, no fitted
    constant).

    Where the mean recursion has no front, the realisations are followed to the setting's depth, since
    fluctuations may carry some across. Heuristic: the walk keeps one cosine per sample and independent noise
    per sub-layer.
    """
    front = deterministic_front(setting)
    follow = setting.depth if front is None else min(int(3 * front) + 16, HORIZON)
    previous: Array | None = None
    samples = np.full(realisations, np.inf)
    for block, cosines in enumerate(Walkers(MeanField(setting), realisations).blocks(follow)):
        mean = cosines.mean(1)
        crossed = np.isinf(samples) & (mean >= FRONT_COSINE)
        samples[crossed] = (
            0.0 if previous is None else block - 1 + crossing(np.stack([previous, mean]))[crossed]
        )
        if np.isfinite(samples).all():
            break
        previous = mean
    reached = samples[np.isfinite(samples)]
    found = 2 * len(reached) >= realisations
    return FrontPrediction(
        front=float(reached.mean()) if found else None,
        front_std=float(reached.std()) if found else None,
        front_deterministic=front,
        samples=samples,
    )
