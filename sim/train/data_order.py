"""The order of the training samples, as a function of seed and step."""

import functools

import numpy as np
from numpy.typing import NDArray


def data_order(seed: int, step: int, size: int, batch: int) -> NDArray[np.int64]:
    """Return the indices of the samples in the batch of a step; they depend on the arguments alone.

    Every epoch is a fresh permutation of the data; a batch that crosses the end of an epoch is filled from
    the next one.

    Args:
        seed: seed of the order.
        step: training step, counted from 1.
        size: samples in the data set.
        batch: samples per step.

    Raises:
        ValueError: the batch is larger than the data.
    """
    if batch > size:
        raise ValueError(f"a batch of {batch} is larger than the data, {size} samples")
    first = (step - 1) * batch
    epochs = range(first // size, (first + batch - 1) // size + 1)
    start = first - epochs[0] * size
    return np.concatenate([_epoch(seed, epoch, size) for epoch in epochs])[start : start + batch]


def _epoch(seed: int, epoch: int, size: int) -> NDArray[np.int64]:
    """Permutation of an epoch; the latest of every run is kept, since it takes longer than a batch."""
    latest = _latest(seed, size)
    found = latest.get(epoch)
    if found is None:
        found = np.random.default_rng([seed, epoch]).permutation(size)
        latest.clear()
        latest[epoch] = found
    return found


@functools.lru_cache(maxsize=128)
def _latest(seed: int, size: int) -> dict[int, NDArray[np.int64]]:
    """Epoch -> its permutation, of one epoch at most; for more runs than an ensemble has."""
    return {}
