"""Which form of the hazard? Candidates compared by their log score on runs that they were not fitted to."""

# R runs, F folds

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meanmode.theory.onset.hazard import DELAY, SPREAD, Hazard
from meanmode.theory.onset.hazard_likelihood import PARAMETERS, WaitingRuns

Array = NDArray[np.float64]

FOLDS = 5
"""Parts of the runs, each scored by fits to the others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A form of the hazard.

    Attributes:
        delay, spread: as those of the hazard.
        ageing: whether it has a power of the time (c).
        softening: whether b depends on the depth.
        youth: whether young runs are protected.
    """

    delay: float = DELAY
    spread: float = SPREAD
    ageing: bool = True
    softening: bool = True
    youth: bool = True

    @property
    def fixed(self) -> dict[str, float]:
        """The parameters that are not fitted."""
        return {name: 0.0 for name in ("ageing", "softening", "youth") if not getattr(self, name)}

    @property
    def parameters(self) -> int:
        """Number of fitted parameters."""
        return len(PARAMETERS) - len(self.fixed)


CANDIDATES = (
    *(Candidate(delay=delay) for delay in (0, 10, 20, 30)),
    *(Candidate(spread=spread) for spread in (0, 0.1, 0.4)),
    *(Candidate(**{name: False}) for name in ("ageing", "softening", "youth")),
    Candidate(delay=0, spread=0, softening=False, youth=False),
)
"""The forms that are compared; the last one is law O3 and nothing else."""


def random_folds(runs: Sequence[WaitingRuns]) -> list[NDArray[np.int64]]:
    """Fold of every run, at random: what is scored are other seeds at the same rates. One array per group."""
    counts = [len(group.times) for group in runs]
    drawn = np.random.default_rng([sum(counts), FOLDS]).permutation(sum(counts)) % FOLDS
    return np.split(drawn, np.cumsum(counts)[:-1])


def held_out(
    runs: Sequence[WaitingRuns],
    folds: Sequence[NDArray[np.int64]],
    candidate: Candidate,
    *,
    coherence: float,
) -> Array:
    """Log score of every run by the fit to the other folds [R]."""
    scores = [np.zeros(len(group.times)) for group in runs]
    for fold in np.unique(np.concatenate(folds)):
        kept = [_some(group, of != fold) for group, of in zip(runs, folds, strict=True)]
        fit = Hazard.fit(
            [group for group in kept if len(group.times)],
            coherence=coherence,
            delay=candidate.delay,
            spread=candidate.spread,
            fixed=candidate.fixed,
            samples=0,
        )
        for group, of, scored in zip(runs, folds, scores, strict=True):
            scored[of == fold] = fit.log_scores(_some(group, of == fold))
    return np.concatenate(scores)


def candidate_rows(
    runs: Sequence[WaitingRuns],
    folds: Sequence[NDArray[np.int64]],
    *,
    coherence: float,
    candidates: Sequence[Candidate] = CANDIDATES,
) -> list[dict[str, Any]]:
    """Held-out log score of every candidate, in nats over all runs, the best first. One row per candidate.

    `behind` is the difference from the best and `behind_error` its standard error over runs.
    """
    scores = {candidate: held_out(runs, folds, candidate, coherence=coherence) for candidate in candidates}
    order = sorted(candidates, key=lambda of: -scores[of].sum())
    rows = []
    for candidate in order:
        behind = scores[order[0]] - scores[candidate]
        rows.append(
            {
                **dataclasses.asdict(candidate),
                "parameters": candidate.parameters,
                "log_score": float(scores[candidate].sum()),
                "behind": float(behind.sum()),
                "behind_error": float(behind.std(ddof=1) * len(behind) ** 0.5),
            }
        )
    return rows


def _some(group: WaitingRuns, kept: NDArray[np.bool_]) -> WaitingRuns:
    return WaitingRuns(
        depth=group.depth, rates=group.rates, times=group.times[kept], collapsed=group.collapsed[kept]
    )
