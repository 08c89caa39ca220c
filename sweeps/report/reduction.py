"""Fewer points and pixels than were measured, without losing an event: extremes are kept at their steps."""

# N points, M measured rows, K measured columns, R rows of pixels, C columns of pixels

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from meanmode.sweeps.report.contents import Array, HeatMap

SAMPLE = 200_000
"""Values of a map from which its median is taken."""

LOG_FROM = 100.0
"""A map without negative values whose largest value is this many times its smallest positive one is
logarithmic."""

LEVELS = 254
"""Steps of colour between the smallest and the largest value."""

SAID = (
    "Every pixel shows, of all values it covers, the one furthest from the median of the map; between "
    "measurements the last one is held, and between measured blocks the nearest one is shown."
)
"""How maps are reduced, for the page."""

SAID_OF_LINES = (
    "A timeline with more points than can be seen keeps the first, lowest, highest and last of each group."
)
"""How timelines are reduced, for the page."""


def reduced_line(x: Array, y: Array, groups: int) -> tuple[Array, Array]:
    """The finite points of a curve [N], or of each group of neighbours the first, lowest, highest and last.

    Args:
        x: steps, ascending.
        y: values.
        groups: number of groups; up to four times as many points are kept.
    """
    finite = np.isfinite(y)
    x, y = x[finite], y[finite]
    if len(x) <= 4 * groups:
        return x, y
    edges = np.linspace(0, len(x), groups + 1).astype(int)
    kept = set()
    for first, stop in pairwise(edges):
        part = y[first:stop]
        kept |= {first, stop - 1, first + int(part.argmin()), first + int(part.argmax())}
    at = np.array(sorted(kept))
    return x[at], y[at]


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """Pixels over two axes of whole numbers, such as steps and blocks.

    Attributes:
        first_x, last_x: range of the horizontal axis.
        first_y, last_y: range of the vertical axis.
        columns, rows: number of pixels.
    """

    first_x: int
    last_x: int
    first_y: int
    last_y: int
    columns: int
    rows: int

    @classmethod
    def over(cls, x: tuple[int, int], y: tuple[int, int], pixels: int, most: tuple[int, int]) -> "Grid":
        """The finest grid within a number of pixels.

        Args:
            x: first and last number along the horizontal axis.
            y: first and last number along the vertical axis.
            pixels: number of pixels at most.
            most: most columns and rows.
        """
        rows = min(y[1] - y[0] + 1, most[1], max(int((pixels / 2.5) ** 0.5), 8))
        columns = max(min(x[1] - x[0] + 1, most[0], pixels // rows), 1)
        return cls(first_x=x[0], last_x=x[1], first_y=y[0], last_y=y[1], columns=columns, rows=rows)

    def column(self, x: NDArray[np.int64]) -> NDArray[np.int64]:
        """Column of pixels of each number."""
        return (x - self.first_x) * self.columns // (self.last_x - self.first_x + 1)

    def row(self, y: NDArray[np.int64]) -> NDArray[np.int64]:
        """Row of pixels of each number."""
        return (y - self.first_y) * self.rows // (self.last_y - self.first_y + 1)


def reduced_map(
    name: str,
    definition: str,
    values: NDArray[np.floating],
    x: NDArray[np.int64],
    y: NDArray[np.int64],
    grid: Grid,
    *,
    hold: bool,
    bounds: tuple[float, float] | None = None,
) -> HeatMap | None:
    """An observable as pixels; None if no value is finite. Values that are not finite count as not measured.

    Args:
        name: name of the observable.
        definition: what it is.
        values: its values [M, K], NaN where not measured.
        x: number along the horizontal axis of every row, ascending [M].
        y: number along the vertical axis of every column, ascending [K].
        grid: the pixels.
        hold: whether a pixel without a value shows the last value before it along the horizontal axis, and
            the nearest one along the vertical axis, instead of nothing.
        bounds: values of the lowest and the highest level; by default those of the map.
    """
    values = np.where(np.isfinite(values), values, np.nan)
    used_x, used_y = ~np.isnan(values).all(1), ~np.isnan(values).all(0)
    if not used_x.any():
        return None
    values, x, y = values[used_x][:, used_y], x[used_x], y[used_y]
    sample = values.ravel()[:: max(values.size // SAMPLE, 1)]
    sample = sample[~np.isnan(sample)]
    centre = float(np.median(sample)) if len(sample) else float(np.nanmedian(values))
    columns, begin_x = np.unique(grid.column(x), return_index=True)
    rows, begin_y = np.unique(grid.row(y), return_index=True)
    low = np.fmin.reduceat(np.fmin.reduceat(values, begin_x, axis=0), begin_y, axis=1)
    high = np.fmax.reduceat(np.fmax.reduceat(values, begin_x, axis=0), begin_y, axis=1)
    positive = high[high > 0]
    smallest = min(low[low > 0].min(initial=np.inf), positive.min(initial=np.inf))
    largest = float(np.nanmax(high))
    log = bounds is None and bool(np.nanmin(low) >= 0 and largest > LOG_FROM * smallest)
    if log:
        low, high = (np.log(np.maximum(of, smallest)) for of in (low, high))
        centre = float(np.log(max(centre, smallest)))
    extreme = np.where(high - centre >= centre - low, high, low)
    pixels = _spread(extreme, columns, rows, grid, hold)
    if bounds is None:
        bounds = (float(np.nanmin(extreme)), float(np.nanmax(extreme)))
    least, most = bounds
    scaled = np.clip((pixels - least) / ((most - least) or 1.0), 0, 1)
    levels = np.where(np.isnan(pixels), 0, 1 + np.round(LEVELS * np.nan_to_num(scaled))).astype(np.uint8)
    if log:
        least, most = float(np.exp(least)), float(np.exp(most))
    return HeatMap(name=name, definition=definition, levels=levels.T.copy(), low=least, high=most, log=log)


def cosine_bounds(values: NDArray[np.floating]) -> tuple[float, float]:
    """Bounds of a map of token cosines: 0 to 1, or from the smallest finite value if that is negative."""
    return min(0.0, float(values[np.isfinite(values)].min(initial=0.0))), 1.0


def _spread(
    values: Array, columns: NDArray[np.int64], rows: NDArray[np.int64], grid: Grid, hold: bool
) -> Array:
    """Values at their pixels [C, R]; if asked, those of others fill the gaps between the measured ones."""
    pixels = np.full((grid.columns, grid.rows), np.nan)
    pixels[np.ix_(columns, rows)] = values
    if not hold:
        return pixels
    every = np.arange(rows[0], rows[-1] + 1)
    nearest = rows[np.abs(every[:, None] - rows[None, :]).argmin(1)]
    pixels[:, every] = pixels[:, nearest]
    # a column that nothing was measured in shows the last one before it
    last = np.searchsorted(columns, np.arange(grid.columns), side="right") - 1
    filled = pixels[columns[np.maximum(last, 0)]]
    filled[last < 0] = np.nan
    return filled
