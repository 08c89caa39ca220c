"""Rows of sweeps over synthetic stacks: the forecast stored with a sweep, and the fronts its cells show."""

import json
import math
from typing import Any

import numpy as np
import xarray as xr
from scipy.stats import binomtest

from meanmode.sim.store.sweep_store import DIVERGED, DONE, TODO, unstacked
from meanmode.sweeps.studies.profiles import profile_rows
from meanmode.sweeps.studies.rows import Row, finite
from meanmode.sweeps.studies.token_exponents import exponent_rows


def front_cells(data: xr.Dataset) -> list[Row]:
    """Coordinates and measured front of every finished cell; None where there is no front in its depth."""
    done = np.flatnonzero(data["status"].values == DONE)
    fronts, coordinates = data["front"].values.astype(float), _coordinates(data)
    return [
        {**coordinates[index], "front": None if math.isnan(fronts[index]) else fronts[index]}
        for index in done
    ]


def _coordinates(data: xr.Dataset) -> list[Row]:
    """The setting of every cell, fixed fields and axes, and its seed."""
    base, axes = json.loads(data.attrs["configuration"])["base"], json.loads(data.attrs["axes"])
    columns = [data[axis].values.tolist() for axis in axes]
    return [{**base, **dict(zip(axes, values, strict=True))} for values in zip(*columns, strict=True)]


def sweep_rows(data: xr.Dataset) -> list[Row]:
    """One row per setting and quantity: predicted and measured front, profiles, and token exponents.

    The statistic of a front is the mean over the seeds that finished. Where some seeds show no front within
    the depth, both sides are the restricted mean of min(front, depth), which censoring does not bias
    (`front_restricted`); where neither side has a front, `predicted` and `measured` are None (`no_front`).
    `predicted_fraction` is None where the theory says nothing. `z` is in units of `measured_sem`.

    Args:
        data: a sweep, opened along `cell`.
    """
    fronts, status = data["front"].values.astype(float), data["status"].values
    settings: dict[tuple[Any, ...], list[int]] = {}
    for index, coordinates in enumerate(_coordinates(data)):
        del coordinates["seed"]
        settings.setdefault(tuple(coordinates.items()), []).append(index)
    rows = []
    for coordinates, members in settings.items():
        done = [index for index in members if status[index] == DONE]
        forecast = {
            name: float(data[name].values[members[0]])
            for name in data.data_vars
            if name.startswith("predicted") and data[name].dims == ("cell",)
        }
        row = {**dict(coordinates), **_compared(forecast, fronts[done], dict(coordinates)["depth"])}
        row["n_to_do"] = sum(status[index] == TODO for index in members).item()
        row["n_diverged"] = sum(status[index] == DIVERGED for index in members).item()
        rows.append(row)
        if done and "amplification" in data:
            profiles = profile_rows(data, done, dict(coordinates)["depth"])
            rows += [finite({**dict(coordinates), **profile}) for profile in profiles]
    return rows + _exponents(data)


def _compared(forecast: dict[str, float], fronts: np.ndarray, depth: int) -> Row:
    count, collapsed = len(fronts), int(np.isfinite(fronts).sum())
    fraction = forecast["predicted_fraction"]
    quantity, predicted, spread = "front", forecast["predicted_front"], forecast["predicted_front_std"]
    # how surprising the number of collapsed seeds is under the forecast (two-sided binomial)
    surprise = math.nan
    if count and not math.isnan(fraction):
        surprise = float(binomtest(collapsed, count, min(max(fraction, 0.0), 1.0)).pvalue)
    if math.isnan(fraction):
        predicted, spread = math.nan, math.nan
        if collapsed < count:
            quantity = "front_restricted" if collapsed else "no_front"
    elif count and collapsed == 0 and (1 - fraction) ** count > 0.01:
        quantity, predicted, spread = "no_front", math.nan, math.nan
    elif count and (collapsed < count or fraction < 0.99):
        quantity = "front_restricted"
        predicted, spread = forecast["predicted_restricted"], forecast["predicted_restricted_std"]
    measured, deviation = math.nan, math.nan
    if count and quantity != "no_front":
        seen = np.where(np.isnan(fronts), depth, fronts)
        measured, deviation = float(seen.mean()), float(seen.std(ddof=1)) if count > 1 else math.nan
    error = deviation / math.sqrt(count) if count else math.nan
    row = {
        "quantity": quantity,
        "predicted": predicted,
        "predicted_std": spread,
        "measured": measured,
        "measured_std": deviation,
        "measured_sem": error,
        "n": count,
        "n_collapsed": collapsed,
        "predicted_fraction": fraction,
        "fraction_p": surprise,
        "z": (measured - predicted) / error if error > 0 else math.nan,
        "relative_error": (predicted - measured) / measured if measured else math.nan,
        "spread_ratio": spread / deviation if deviation > 0 else math.nan,
    }
    return finite(row)


def _exponents(data: xr.Dataset) -> list[Row]:
    """The token exponents of a finished grid over tokens and adjoint cosine; nothing for other sweeps."""
    if not {"tokens", "adjoint_cosine"} <= set(json.loads(data.attrs["axes"])):
        return []
    grid = unstacked(data)
    if grid.sizes["tokens"] < 2 or "amplification" not in grid or not (grid["status"] == DONE).all():
        return []
    base = {**json.loads(data.attrs["configuration"])["base"], "tokens": None}
    return [finite({**base, **row}) for row in exponent_rows(grid)]
