"""Exponent of the amplification in the number of tokens, predicted and measured."""

import math
from collections.abc import Sequence
from itertools import pairwise

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
            if distance >= grid.sizes["block"]:
                continue  # a stack without such a block
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


def local_exponents(sweeps: Sequence[xr.Dataset], distance: int, writer: str = "attn") -> list[Row]:
    """Slope of ln(A - 1) in ln T between neighbouring token counts, by adjoint cosine.

    `measured_sem` is to first order in the relative standard errors of both ends; a count with one seed takes
    the relative spread of the count before. NaN where a mean is not positive.

    Args:
        sweeps: finished sweeps of one stack over tokens and adjoint cosine, opened along `cell`.
        distance: blocks from the last block, which is 1.
        writer: label of the writer.
    """
    rows = []
    for cosine, counts in sorted(_samples(sweeps, distance, writer).items()):
        spreads: list[float] = []
        for samples, _ in counts.values():
            one = len(samples) < 2
            spreads.append(spreads[-1] if one else float(samples.std(ddof=1) / samples.mean()))
        ends = list(zip(counts.items(), spreads, strict=True))
        for ((fewer, (first, expected)), before), ((more, (last, wanted)), after) in pairwise(ends):
            step = math.log(more / fewer)
            logs = [_log(value) for value in (first.mean(), last.mean(), expected, wanted)]
            error = math.hypot(before / len(first) ** 0.5, after / len(last) ** 0.5) / step
            measured, predicted = (logs[1] - logs[0]) / step, (logs[3] - logs[2]) / step
            rows.append(
                {
                    "adjoint_cosine": cosine,
                    "blocks_from_loss": distance,
                    "fewer": fewer,
                    "more": more,
                    "predicted": predicted,
                    "measured": measured,
                    "measured_sem": error,
                    "n": len(last),
                    "z": (measured - predicted) / error if error > 0 else math.nan,
                }
            )
    return rows


def _samples(
    sweeps: Sequence[xr.Dataset], distance: int, writer: str
) -> dict[float, dict[int, tuple[np.ndarray, float]]]:
    """Adjoint cosine -> tokens, in order -> A - 1 of every seed, and its forecast."""
    found: dict[float, dict[int, tuple[np.ndarray, float]]] = {}
    for data in sweeps:
        of = data.sel(writer=writer).isel(block=data.sizes["block"] - distance)
        keys = list(zip(of["adjoint_cosine"].values, of["tokens"].values, strict=True))
        for cosine, tokens in dict.fromkeys(keys):
            cells = [index for index, key in enumerate(keys) if key == (cosine, tokens)]
            samples = of["amplification"].values[cells].astype(float) - 1
            expected = float(of["predicted_amplification"].values[cells[0]]) - 1
            found.setdefault(float(cosine), {})[int(tokens)] = samples, expected
    return {cosine: dict(sorted(counts.items())) for cosine, counts in found.items()}


def _log(value: float) -> float:
    return math.log(value) if value > 0 else math.nan


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
