"""The collapse front of a profile of pair cosines, and the prediction of one."""

# W realisations, L blocks

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
FRONT_COSINE = 0.9


def crossing(cosines: Array) -> Array:
    """First depth at which each profile reaches `FRONT_COSINE`, interpolated linearly; inf if it never does.

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


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontPrediction:
    """Distribution of the collapse front over seeds, in blocks.

    Attributes:
        front: mean over realisations; None if fewer than half of them reach the front.
        front_std: standard deviation over realisations (one seed of `batch` samples each); None with `front`.
        front_deterministic: front of the mean recursion; None if it has none within `HORIZON` blocks.
        samples: front of every realisation; inf if it was not reached within the blocks that were followed.
    """

    front: float | None
    front_std: float | None
    front_deterministic: float | None
    samples: Array = field(repr=False)

    def within(self, depth: int) -> tuple[float, float, float]:
        """Fraction of seeds that collapse within `depth` blocks, and mean and std of min(front, depth)."""
        seen = np.minimum(self.samples, depth)
        return float(np.mean(self.samples <= depth)), float(seen.mean()), float(seen.std())
