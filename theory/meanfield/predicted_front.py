"""The predicted collapse front: where the recursion's pair cosine reaches 0.9, and its spread."""

# W realisations (seeds), B batch, L blocks

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from meanmode.theory.meanfield.coverage import follows_gram, why_not_covered
from meanmode.theory.meanfield.forward import Branch, MeanField, Merged, State
from meanmode.theory.meanfield.front import FRONT_COSINE, FrontPrediction, crossing
from meanmode.theory.meanfield.gram import GramField, forecast_realisations
from meanmode.theory.setting import Setting

Array = NDArray[np.float64]
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


class Walkers:
    """Realisations of a stack of finite width: random walks around the mean recursion, no fitted constant.

    The samples of a batch are independent walkers: their means are nearly orthogonal, so the shared weights
    act on each independently.

    Args:
        field: the recursion.
        realisations: number of seeds of one setting; 0 follows the mean recursions of all settings of the
            field, without noise.
    """

    def __init__(self, field: MeanField, realisations: int) -> None:
        self.field = field
        self.random = np.random.default_rng(np.random.SeedSequence(0)) if realisations else None
        shape = (realisations, field.setting.batch) if realisations else (len(field.tokens), 1)
        self.state = field.start(shape, self.random)

    def cosine(self) -> Array:
        """Current pair cosine of every sample [W, B]."""
        return self.field.cosine(self.state.mean_energy)

    def step(self, sub_layer: SubLayer) -> Step:
        """Move all walkers through one sub-layer."""
        before, branch = self.state, sub_layer(self.state)
        merged = self.field.merge(before, branch, self.random)
        self.state = merged.state
        return Step(before=before, branch=branch, merged=merged)

    def blocks(self, depth: int) -> Iterator[Array]:
        """Yield the cosines after blocks 0, 1, ..., depth, each [W, B]."""
        yield self.cosine()
        for _ in range(depth):
            self.step(self.field.attention)
            self.step(self.field.ffn)
            yield self.cosine()


def deterministic_fronts(settings: Sequence[Setting], horizon: int = HORIZON) -> list[float | None]:
    """Fronts of the mean recursions of many settings, followed together, in blocks.

    None if the cosine settles below the front or does not reach it within `horizon` blocks.
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
    """Front of the mean recursion of one setting, as in `deterministic_fronts`."""
    return deterministic_fronts([setting])[0]


def predict_front(
    setting: Setting, realisations: int | None = None, cosines: ArrayLike | None = None
) -> FrontPrediction:
    """Predict the collapse front at initialisation and its spread over seeds, without a fitted constant.

    Where tokens are not exchangeable (`follows_gram`), by the walk and the map of the Gram recursion, up to
    the setting's depth.

    Otherwise by the recursion of one cosine: if its mean has no front, the realisations are followed to the
    setting's depth, since fluctuations may carry some across. Heuristic: the walk keeps one cosine per sample
    and independent noise per sub-layer.

    Args:
        setting: the stack.
        realisations: seeds of the walk; None takes `REALISATIONS` of one cosine, or `forecast_realisations`.
        cosines: cosines of tokens of your own [T, T], in place of the setting's input.

    Raises:
        ValueError: no recursion covers the setting.
    """
    reason = why_not_covered(setting)
    if reason is not None:
        raise ValueError(reason)
    if cosines is not None or follows_gram(setting):
        chain = GramField(setting, cosines)
        walked = chain.walk(realisations or forecast_realisations(setting))
        return FrontPrediction(
            front=walked.front,
            front_std=walked.front_std,
            front_deterministic=chain.map().front,
            samples=walked.samples,
        )
    realisations = realisations or REALISATIONS
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
