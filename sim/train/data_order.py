"""The order of training samples as a function of seed and step."""

import functools

import numpy as np
from numpy.typing import NDArray


def data_order(seed: int, step: int, size: int, batch: int) -> NDArray[np.int64]:
    """Which samples make the batch of a step: a function of seed and step alone, epoch by epoch.

    Every epoch is a fresh permutation; a batch that would cross its end takes the rest of it and the head of
    the next.

    Args:
        seed: of the run.
        step: from 1.
        size: samples of the data set.
        batch: samples of a step.

    Raises:
        ValueError: a batch larger than the data.
    """
    if batch > size:
        raise ValueError(f"a batch of {batch} is larger than the data, {size} samples")
    first = (step - 1) * batch
    epochs = range(first // size, (first + batch - 1) // size + 1)
    start = first - epochs[0] * size
    return np.concatenate([_epoch(seed, epoch, size) for epoch in epochs])[start : start + batch]


@functools.lru_cache(maxsize=4)
def _epoch(seed: int, epoch: int, size: int) -> NDArray[np.int64]:
    """The order of an epoch; kept, since that of a large data set takes longer than reading a batch."""
    return np.random.default_rng([seed, epoch]).permutation(size)
