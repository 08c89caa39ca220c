"""The record of a pass: every observable at every block and writer, stored as it is measured."""

# R runs of an ensemble, B batch, L blocks, W writers

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from meanmode.sim.observe.observable_names import WRITERS, without_suffix

Array = NDArray[np.float32]


class Record:
    """Values of observables at blocks and writers.

    GPU values stay on the device until `values` is called, so that recording never synchronises. CPU values
    are copied at once, since keeping thousands of small tensors would fragment memory.

    Args:
        dims: observable -> dimensions, from `observable_dims`; other observables are ignored.
        depth: number of blocks.
        runs: members of an ensemble, the first axis of every value; None for a single run.
    """

    def __init__(self, dims: Mapping[str, tuple[str, ...]], depth: int, *, runs: int | None = None) -> None:
        self.dims = dict(dims)
        self._without_suffixes = set(map(without_suffix, dims))
        self.lead = () if runs is None else (runs,)
        sizes = {"block": depth + 1, "writer": len(WRITERS)}
        self._taken = {
            name: np.full([*self.lead, *(sizes[dim] for dim in of)], np.nan, np.float32)
            for name, of in dims.items()
        }
        self._waiting: dict[str, list[tuple[tuple[int, ...], Tensor]]] = {name: [] for name in dims}

    def wants(self, *names: str) -> bool:
        """Whether any of these observables is recorded."""
        return any(name in self.dims for name in names)

    def wants_segments(self, *names: str) -> bool:
        """Whether any of these observables is recorded, for all tokens or for a segment."""
        return not self._without_suffixes.isdisjoint(names)

    def put(self, name: str, place: tuple[int, ...], values: Tensor, counted: Tensor | None = None) -> None:
        """Record values per sample, or one for the whole batch, replacing earlier ones.

        Args:
            name: observable; ignored if it is not recorded.
            place: index of the values, (block,) or (block, writer).
            values: [*R, B] or [*R].
            counted: boolean mask of the samples that enter the mean; None for all.

        Raises:
            ValueError: the number of runs differs from the record's.
        """
        if name not in self.dims:
            return
        values = values.detach()
        if values.shape[: len(self.lead)] != self.lead:
            raise ValueError(f"{name} of {tuple(values.shape[:1])} runs does not fit a record of {self.lead}")
        self._put(name, place, values, counted)

    def _put(self, name: str, place: tuple[int, ...], values: Tensor, counted: Tensor | None) -> None:
        if values.ndim > len(self.lead):
            if counted is None:
                values = values.mean(-1)
            else:
                values = torch.where(counted, values, 0.0).sum(-1) / counted.sum(-1)
        if values.device.type == "cpu":
            self._take(name, place, values.numpy())
        else:
            self._waiting[name].append((place, values))

    def _take(self, name: str, place: tuple[int, ...], value: NDArray[Any]) -> None:
        self._taken[name][(slice(None),) * len(self.lead) + place] = value

    def values(self) -> dict[str, Array]:
        """Batch means, [L + 1] or [L + 1, W] after an axis of runs in an ensemble; NaN where not measured."""
        for name, entries in self._waiting.items():
            if entries:
                measured = torch.stack([value for _, value in entries]).cpu().numpy()
                for (place, _), value in zip(entries, measured, strict=True):
                    self._take(name, place, value)
                entries.clear()
        return {name: taken.copy() for name, taken in self._taken.items()}
