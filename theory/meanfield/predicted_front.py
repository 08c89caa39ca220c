"""The predicted collapse front: where the recursion's pair cosine reaches 0.9, and its spread."""

# W realisations (seeds), B batch, L blocks

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from meanmode.theory.meanfield.forward import Branch, MeanField, Merged, State
from meanmode.theory.setting import Setting

Array = NDArray[np.float64]


FRONT_COSINE = 0.9


HORIZON = 4096


REALISATIONS = 600


SETTLED = 1e-12


SubLayer = Callable[[State], Branch]


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One sub-layer: the state before it, its branch, and the merge."""

    before: State
    branch: Branch
    merged: Merged


def crossing(cosines: Array) -> Array:
    """First depth at which each profile reaches `FRONT_COSINE`, interpolated linearly; inf where never.

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


class Walkers:
    """Realisations of the stack at finite width: random walks around the mean recursion, no fitted constant.

    Samples of a batch are independent walkers: their means are nearly orthogonal, so shared weights act on
    them apart.

    Args:
        field: the recursion.
        realisations: how many seeds of one setting; 0 gives the mean recursions of all settings, without
            noise.
    """

    def __init__(self, field: MeanField, realisations: int) -> None:
        self.field = field
        self.random = np.random.default_rng(np.random.SeedSequence(0)) if realisations else None
        shape = (realisations, field.setting.batch) if realisations else (len(field.tokens), 1)
        self.state = field.start(shape, self.random)

    def cosine(self) -> Array:
        """The pair cosine of every sample now [W, B]."""
        return self.field.cosine(self.state.mean_energy)

    def step(self, sub_layer: SubLayer) -> Step:
        """Pass one sub-layer."""
        before, branch = self.state, sub_layer(self.state)
        merged = self.field.merge(before, branch, self.random)
        self.state = merged.state
        return Step(before=before, branch=branch, merged=merged)

    def blocks(self, depth: int) -> Iterator[Array]:
        """The cosines after blocks 0, 1, ..., depth, each [W, B]."""
        yield self.cosine()
        for _ in range(depth):
            self.step(self.field.attention)
            self.step(self.field.ffn)
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


def deterministic_fronts(settings: Sequence[Setting], horizon: int = HORIZON) -> list[float | None]:
    """Fronts of the mean recursions of many settings, followed at once, in blocks.

    None where the cosine settles below the front, or reaches it beyond `horizon` blocks.
    """
    fronts = np.full(len(settings), np.inf)
    finished = np.zeros(len(settings), dtype=bool)
    previous: Array | None = None
    for block, cosines in enumerate(Walkers(MeanField(*settings), 0).blocks(horizon)):
        cosine = cosines[:, 0]
        crossed = ~finished & (cosine >= FRONT_COSINE)
        if previous is None:
            fronts[crossed] = 0.0
        else:
            fronts[crossed] = block - 1 + crossing(np.stack([previous, cosine]))[crossed]
            finished |= np.abs(cosine - previous) < SETTLED
        finished |= crossed
        if finished.all():
            break
        previous = cosine
    return [float(front) if np.isfinite(front) else None for front in fronts]


def deterministic_front(setting: Setting) -> float | None:
    """The front of one mean recursion; None as in `deterministic_fronts`."""
    return deterministic_fronts([setting])[0]


def predict_front(setting: Setting, realisations: int = REALISATIONS) -> FrontPrediction:
    """The collapse front at initialisation with its spread over seeds (recursion without a fitted constant).

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
