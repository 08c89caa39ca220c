"""Dense tables over the pair cosine that the recursion looks up, for many settings at once."""

# N settings, G grid cosines, K columns; cosines are [W, B], with W = N for several settings

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.polynomial import Polynomial
from numpy.typing import NDArray

from meanmode.theory.meanfield.row_moments import attention_of, row_moments
from meanmode.theory.meanfield.swiglu_moments import (
    silu_kernel,
    slope_kernel,
    unit_fluctuations,
    unit_kurtosis,
)
from meanmode.theory.setting import Setting

Array = NDArray[np.float64]
GRID = 2049


COLUMNS = (
    *("concentration", "divergence", "square_response", "overlap_response"),
    *("kernel", "swiglu", "slope", "curvature", "gate_slope", "gate_slope_slope", "kurtosis"),
    *("mean", "mean_centered", "centered", "pair_token", "own", "crossed"),
)


COLUMN_INDEX = {name: index for index, name in enumerate(COLUMNS)}


@lru_cache(maxsize=512)
def _columns(attention: str, tokens: int, head_width: int, gate_std: float) -> Array:
    """All columns on the grid of cosines from -1 / (T - 1) to 1 [G, K].

    Row moments are stored as (S_d - 1/T) / (1 - c) and (S_d - S_o) / (1 - c)^2, which are finite at c = 1 and
    are extrapolated to it.
    """
    cosine = np.linspace(-1 / (tokens - 1), 1.0, GRID)
    rows = row_moments(attention, tokens, head_width)(cosine)
    open_cosine = np.append(1 - cosine[:-1], 1.0)  # 1 avoids 0/0; the last entry is extrapolated below
    concentration = (rows.square - 1 / tokens) / open_cosine
    divergence = (rows.square - rows.overlap) / open_cosine**2
    for column in (concentration, divergence):
        column[-1] = 2 * column[-2] - column[-3]
    kernel, slopes = silu_kernel(gate_std), slope_kernel(gate_std)
    swiglu = Polynomial([0.0, 1.0]) * kernel
    units = unit_fluctuations(gate_std, cosine)
    columns = {
        "concentration": concentration,
        "divergence": divergence,
        "square_response": rows.square_response,
        "overlap_response": rows.overlap_response,
        "kernel": kernel(cosine),
        "swiglu": swiglu(cosine),
        "slope": swiglu.deriv(1)(cosine),
        "curvature": swiglu.deriv(2)(cosine),
        "gate_slope": slopes(cosine),
        "gate_slope_slope": slopes.deriv(1)(cosine),
        "kurtosis": unit_kurtosis(gate_std, cosine),
        "mean": units.mean,
        "mean_centered": units.mean_centered,
        "centered": units.centered,
        "pair_token": units.pair_token,
        "own": units.token,
        "crossed": units.token_token,
    }
    return np.stack([columns[name] for name in COLUMNS], axis=-1)


class Tables:
    """Tables of one or several settings, read by linear interpolation (relative error below 1e-6).

    Args:
        settings: one setting, whose table serves every cosine, or one setting per row of the cosines.
    """

    def __init__(self, settings: Sequence[Setting]) -> None:
        tokens = np.array([setting.tokens + setting.text_tokens for setting in settings])
        tables = [
            _columns(
                attention_of(setting.mixer),
                int(count),
                setting.head_width,
                setting.weight_std * setting.width**0.5,
            )
            for setting, count in zip(settings, tokens, strict=True)
        ]
        self.table = np.concatenate(tables)
        self.least = (-1 / (tokens - 1))[:, None]
        self.offset = (GRID * np.arange(len(settings)))[:, None]

    def __call__(self, cosine: Array, *names: str) -> list[Array]:
        """Look up the named columns at each cosine; cosines outside the grid are clipped to its ends."""
        position = np.clip((cosine - self.least) * ((GRID - 1) / (1 - self.least)), 0, GRID - 1.000001)
        left = position.astype(np.intp)
        part = position - left
        left = left + self.offset
        found = []
        for name in names:
            column = self.table[:, COLUMN_INDEX[name]]
            below = column[left]
            found.append(below + part * (column[left + 1] - below))
        return found
