"""Predicted and measured depth profiles: TCS, and amplification and mode ratio of both writers."""

import math

import numpy as np
import xarray as xr

from meanmode.sweeps.studies.rows import Row
from meanmode.theory.meanfield.front import FRONT_COSINE

WRITERS = ("attn", "ffn")


def seed_statistics(samples: xr.DataArray) -> xr.Dataset:
    """Over seeds: `mean`, `spread` (standard deviation) and `error` (standard error of the mean)."""
    count = samples.sizes["seed"]
    return xr.Dataset(
        {
            "mean": samples.mean("seed"),
            "spread": samples.std("seed"),
            "error": samples.std("seed", ddof=1) / math.sqrt(count),
        }
    )


def profile_rows(data: xr.Dataset, members: list[int], depth: int) -> list[Row]:
    """Rows of one setting, over its finished cells.

    `tcs_profile`: means over blocks; `rms_error` is the rms over blocks of seed mean minus prediction,
    `rms_seed_error` the rms over blocks and seeds. `amplification_*` and `mode_ratio_*` (a mean of the
    logarithm): at the block of the largest predicted A before the front; `worst_relative_error` and
    `median_log_error`, the median of |ln(predicted / measured)|, are over all blocks that see a seed-mean
    TCS below 0.9.

    Args:
        data: a sweep with a backward pass, opened along `cell`.
        members: indices of the finished cells of the setting.
        depth: blocks of the setting.
    """
    blocks = slice(0, depth + 1)
    cells = data.isel(cell=members, block=blocks)
    tcs, predicted = cells["tcs"].values.astype(float), cells["predicted_tcs"].values[0]
    mean = tcs.mean(0)
    rows = [
        {
            "quantity": "tcs_profile",
            **_sides(float(predicted.mean()), tcs.mean(1)),
            "rms_error": float(np.sqrt(np.mean((mean - predicted) ** 2))),
            "rms_seed_error": float(np.sqrt(np.mean((tcs - predicted) ** 2))),
        }
    ]
    before = np.flatnonzero(mean[:-1] < FRONT_COSINE) + 1  # block l + 1 sees the state after block l
    for writer, label in enumerate(WRITERS):
        amplification = cells["amplification"].values[:, :, writer].astype(float)
        expected = cells["predicted_amplification"].values[0, :, writer]
        ratio = cells["g_mean"].values[:, :, writer] / cells["g_ctr"].values[:, :, writer].astype(float)
        expected_ratio = cells["predicted_mode_ratio"].values[0, :, writer]
        if not len(before):
            continue
        peak = before[int(np.argmax(expected[before]))]
        rows.append(_at(f"amplification_{label}", expected, amplification, peak, before))
        with np.errstate(divide="ignore"):
            logs = _at(f"mode_ratio_{label}", np.log(expected_ratio), np.log(ratio), peak, before)
        del logs["worst_relative_error"], logs["median_log_error"]
        rows.append(
            logs | {"rms_log_error": _rms(np.log(ratio).mean(0)[before] - np.log(expected_ratio)[before])}
        )
    return rows


def _median_log(ratios: np.ndarray) -> float:
    """Median of |ln| of the positive ratios."""
    return float(np.median(np.abs(np.log(ratios[ratios > 0])))) if (ratios > 0).any() else math.nan


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def _at(quantity: str, expected: np.ndarray, samples: np.ndarray, peak: int, before: np.ndarray) -> Row:
    ratios = expected[before] / samples.mean(0)[before]
    worst = float((ratios - 1)[np.argmax(np.abs(ratios - 1))])
    sides = _sides(float(expected[peak]), samples[:, peak])
    return {
        "quantity": quantity,
        "at_block": int(peak),
        **sides,
        "worst_relative_error": worst,
        "median_log_error": _median_log(ratios),
    }


def _sides(predicted: float, samples: np.ndarray) -> Row:
    """Predicted value, and mean over seeds with its errors."""
    measured, count = float(samples.mean()), len(samples)
    deviation = float(samples.std(ddof=1)) if count > 1 else math.nan
    error = deviation / math.sqrt(count)
    return {
        "predicted": predicted,
        "predicted_std": math.nan,
        "measured": measured,
        "measured_std": deviation,
        "measured_sem": error,
        "n": count,
        "z": (measured - predicted) / error if error > 0 else math.nan,
        "relative_error": (predicted - measured) / measured if measured else math.nan,
    }
