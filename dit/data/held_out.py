"""The part of a source that is held out of training."""

import numpy as np
from numpy.typing import NDArray

HELD_OUT_EVERY = 10
"""In sources without their own test set, every tenth image is held out of training."""


def part_of(size: int, held_out: bool) -> NDArray[np.int64]:
    """Indices of the training images or of the held-out ones."""
    indices = np.arange(size)
    return indices[(indices % HELD_OUT_EVERY == HELD_OUT_EVERY - 1) == held_out]
