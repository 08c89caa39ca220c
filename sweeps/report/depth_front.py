"""Where in depth: the front at every measured step, and the step from which each block was alike."""

# M measured steps, K measured blocks

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from meanmode.sim.onset.training_onset import SUSTAINED_ROWS, stretches, token_cosine
from meanmode.sweeps.report.contents import Array
from meanmode.theory.meanfield.front import FRONT_COSINE, crossing

PARTS = 4
"""Parts of the depth whose order is told."""


class DepthFront:
    """The token cosine of a run by block.

    Args:
        run: a run from `meanmode.sim.store.run_reader.open_run`.

    Attributes:
        steps: steps at which it was measured [M]; empty if it was not measured by block.
        blocks: measured blocks [K].
        depth: number of the last block.
        fronts: first block at which it reaches 0.9, interpolated; NaN where it does not [M].
    """

    def __init__(self, run: xr.Dataset) -> None:
        self.steps, self.blocks = np.empty(0, np.int64), np.empty(0, np.int64)
        self._cosines: Array = np.empty((0, 0))
        self.fronts: Array = np.empty(0)
        self.depth = 0
        if "tcs" not in run and "tcs_image" not in run:
            return
        cosine = run[token_cosine(run)]
        if cosine.dims != ("step", "block"):
            return
        values = cosine.values.astype(np.float64)
        measured, named = ~np.isnan(values).all(1), ~np.isnan(values).all(0)
        self.steps, self.blocks = run["step"].values[measured], run["block"].values[named]
        self.depth = int(run["block"].values[-1])
        self._cosines = values[measured][:, named]
        if not len(self.blocks):
            return
        found = crossing(self._cosines.T)
        places = np.interp(found, np.arange(len(self.blocks)), self.blocks)
        self.fronts = np.where(np.isfinite(found), places, np.nan)

    def at(self, step: int) -> float | None:
        """The front at the last measured step up to a step; None if there was none."""
        row = int(np.searchsorted(self.steps, step, side="right")) - 1
        if row < 0 or np.isnan(self.fronts[row]):
            return None
        return float(self.fronts[row])

    def alike_from(self, onset: int) -> list[int | None]:
        """Step from which each measured block has a cosine of 0.9 or more for good, at or after an onset.

        A stretch of `SUSTAINED_ROWS` measurements counts, or one that reaches the last; None without one [K].
        """
        row, last = int(np.searchsorted(self.steps, onset)), len(self.steps) - 1
        found: list[int | None] = []
        for column in self._cosines.T:
            lasting = [
                begin
                for begin, end in stretches(column >= FRONT_COSINE)
                if end >= row and (end - begin + 1 >= SUSTAINED_ROWS or end == last)
            ]
            found.append(int(self.steps[lasting[0]]) if lasting else None)
        return found


def parts(blocks: NDArray[np.int64], depth: int) -> list[tuple[int, int, Sequence[int]]]:
    """First and last block of each part of the depth, and the positions of the measured blocks in it."""
    edges = np.linspace(0, depth, min(PARTS, depth) + 1).round().astype(int)
    found = []
    for first, last in pairwise(edges):
        inside = np.flatnonzero((blocks > first) & (blocks <= last)).tolist()
        found.append((int(first) + 1, int(last), inside))
    return found
