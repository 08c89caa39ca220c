"""Measured onset in depth: the collapse front."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from meanmode.theory.meanfield.front import crossing


def collapse_front(tcs: ArrayLike | Sequence[float]) -> float | None:
    """First block at which the batch-mean TCS reaches 0.9, linearly interpolated; None if it never does.

    Args:
        tcs: TCS after blocks 0, 1, ..., L; NaN (beyond a shorter stack) counts as not reached.

    Raises:
        ValueError: `tcs` is empty or not one-dimensional.
    """
    profile = np.asarray(tcs, dtype=np.float64)
    if profile.ndim != 1 or not profile.size:
        raise ValueError(f"tcs must be one profile over blocks, got shape {profile.shape}")
    front = float(crossing(profile))
    return front if math.isfinite(front) else None
