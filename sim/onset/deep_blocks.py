"""The deeper half of the blocks, over which a signal is summed up by its median; numpy only."""

# L blocks, N steps, K values of a step

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def is_deep(blocks: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Mask of the blocks in the deeper half, by their numbers [L + 1]."""
    return blocks > blocks.max() / 2


def medians(rows: Array) -> Array:
    """Median of each row [N, K] without its NaNs [N]; every row holds at least one number."""
    if not len(rows):
        return np.empty(0)
    # blocks that are never measured are NaN in every row, and without a NaN the median is far faster
    rows = rows[:, ~np.isnan(rows).all(0)]
    return np.nanmedian(rows, axis=1) if np.isnan(rows).any() else np.median(rows, axis=1)


def deep_median(values: ArrayLike) -> float:
    """Median of an observable [L + 1, ...] over the blocks of the deeper half; NaN if none was measured."""
    rows = np.asarray(values, dtype=np.float64)
    rows = rows[is_deep(np.arange(len(rows)))].reshape(1, -1)
    return float(medians(rows)[0]) if not np.isnan(rows).all() else float("nan")
