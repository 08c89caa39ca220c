"""Exponent of the amplification in the number of tokens, predicted and measured."""

import math

import numpy as np
import xarray as xr

from meanmode.sweeps.studies.rows import Row

BLOCKS_FROM_LOSS = (2, 24)
"""Where the exponent is taken: counted from the end, the last block is 1."""


RESAMPLES = 1000
"""Bootstrap resamples of the seeds."""


def exponent_rows(data: xr.Dataset) -> list[Row]:
    """Slope of ln(A - 1) in ln T for the attention writer, by adjoint cosine and distance from the loss.

    Regimes: without a common part of the adjoints about 0 near the loss (the amplification does not depend on
    T) and about 1 far from it; with a common part 1 everywhere. The slope is a least-squares fit to the seed
    means over all token counts; its standard error is from a bootstrap over seeds.

    Args:
        data: a finished grid over tokens, adjoint cosine and seeds, unstacked over its axes.
    """
    random = np.random.default_rng(0)
    fixed = {
        name: 0 for name in data.dims if name not in ("tokens", "adjoint_cosine", "seed", "block", "writer")
    }
    grid = data.isel(fixed).sel(writer="attn")
    logs = np.log(grid["tokens"].values)
    rows = []
    for cosine in grid["adjoint_cosine"].values:
        for distance in BLOCKS_FROM_LOSS:
            here = grid.sel(adjoint_cosine=cosine).isel(block=grid.sizes["block"] - distance)
            samples = here["amplification"].transpose("seed", "tokens").values.astype(float) - 1
            draws = random.integers(len(samples), size=(RESAMPLES, len(samples)))
            slopes = [_slope(logs, samples[draw].mean(0)) for draw in draws]
            measured, predicted = _slope(logs, samples.mean(0)), _slope(logs, _expected(here))
            error = float(np.nanstd(slopes)) if not np.isnan(slopes).all() else math.nan
            rows.append(
                {
                    "adjoint_cosine": float(cosine),
                    "blocks_from_loss": distance - 1,
                    "quantity": "token_exponent_attn",
                    "predicted": predicted,
                    "predicted_std": None,
                    "measured": measured,
                    "measured_sem": error,
                    "n": len(samples),
                    "z": (measured - predicted) / error if error else math.nan,
                    "relative_error": None,
                }
            )
    return rows


def exponent_profile(data: xr.Dataset) -> xr.Dataset:
    """The same slope at every block: `predicted`, `measured` and its `error`, by adjoint cosine and block.

    NaN where A - 1 is not positive at all token counts.

    Args:
        data: as for `exponent_rows`.
    """
    random = np.random.default_rng(0)
    grid = data.sel(writer="attn").transpose("adjoint_cosine", "block", "seed", "tokens", ...)
    logs = np.log(grid["tokens"].values)
    measured = grid["amplification"].values.astype(float) - 1
    draws = random.integers(measured.shape[2], size=(RESAMPLES // 10, measured.shape[2]))
    resampled = np.stack([_slopes(logs, measured[:, :, draw].mean(2)) for draw in draws])
    found = {
        "predicted": _slopes(logs, grid["predicted_amplification"].values[:, :, 0] - 1),
        "measured": _slopes(logs, measured.mean(2)),
        "error": resampled.std(0),
    }
    dims = ("adjoint_cosine", "block")
    coords = {name: grid[name].values for name in dims}
    return xr.Dataset({name: (dims, values) for name, values in found.items()}, coords)


def _slopes(logs: np.ndarray, excess: np.ndarray) -> np.ndarray:
    """Least-squares slopes of ln(excess) [..., T] in ln T; NaN where an excess is not positive."""
    with np.errstate(invalid="ignore", divide="ignore"):
        values = np.where((excess > 0).all(-1, keepdims=True), np.log(excess), np.nan)
    centered = logs - logs.mean()
    return values @ centered / (centered @ centered)


def _expected(here: xr.Dataset) -> np.ndarray:
    return here["predicted_amplification"].isel(seed=0).values - 1


def _slope(logs: np.ndarray, excess: np.ndarray) -> float:
    """Slope of ln(excess) in ln T; NaN where an excess is not positive."""
    if not (excess > 0).all():
        return math.nan
    return float(np.polyfit(logs, np.log(excess), 1)[0])
