"""Sums over the passes of one step, and the means, maxima and sizes they become."""

# L blocks, W writers

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from meanmode.sim.observe.step_record import WriterSum

Place = tuple[int, ...]


class StepSums:
    """Values of one step, kept on the device until `arrays` reads all of them at once.

    Args:
        shapes: dimension -> its size (`block`: L + 1, `writer`: W).
    """

    def __init__(self, shapes: dict[str, int]) -> None:
        self._shapes = shapes
        self._means: dict[tuple[str, Place], list[Tensor]] = {}
        self._largest: dict[tuple[str, Place], Tensor] = {}
        self._sizes: dict[tuple[str, Place], Tensor] = {}
        self.writers: dict[Place, WriterSum] = {}

    def mean(self, name: str, place: Place, values: Tensor, counted: Tensor | None = None) -> None:
        """Add the values of samples, of which only those `counted` have one."""
        if counted is not None:
            values, number = torch.where(counted, values, 0.0), counted.sum(dtype=torch.float64)
        else:
            number = torch.full((), values.numel(), dtype=torch.float64, device=values.device)
        new = torch.stack([values.sum(dtype=torch.float64), number])
        self._means.setdefault((name, place), []).append(new)

    def largest(self, name: str, place: Place, value: Tensor) -> None:
        """Keep the largest value of the step."""
        known = self._largest.get((name, place))
        self._largest[name, place] = value if known is None else torch.maximum(known, value)

    def size(self, name: str, place: Place, value: Tensor) -> None:
        """Set a value, which replaces that of an earlier pass."""
        self._sizes[name, place] = value

    def arrays(self, dims: dict[str, tuple[str, ...]]) -> dict[str, NDArray[np.float64]]:
        """Name -> values [L + 1] or [L + 1, W], NaN where not measured.

        Args:
            dims: name -> its dimensions.
        """
        found = {name: np.full([self._shapes[dim] for dim in of], np.nan) for name, of in dims.items()}
        summed = {key: torch.stack(values).sum(0) for key, values in self._means.items()}
        keys = [*summed, *self._largest, *self._sizes]
        values = [
            *(total / torch.where(number > 0, number, math.nan) for total, number in summed.values()),
            *self._largest.values(),
            *self._sizes.values(),
        ]
        if not values:
            return found
        device = values[0].device
        flat = torch.stack([value.detach().to(device, torch.float64) for value in values]).cpu().tolist()
        for (name, place), value in zip(keys, flat, strict=True):
            if name in found:
                found[name][place] = value
        return found
