"""Predicted against measured: the forecast a store was created with, beside the fronts its cells show."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from scipy.stats import binomtest

from meanmode.sim.store.sweep_store import DIVERGED, DONE, TODO, open_cells, open_sweep
from meanmode.sweeps.engine.stored import holds_committor, holds_study
from meanmode.sweeps.studies.committor import committor_rows
from meanmode.sweeps.studies.critical_rates import effects, study_onsets, study_rows
from meanmode.sweeps.studies.event_order import first_moves
from meanmode.sweeps.studies.profiles import profile_rows
from meanmode.sweeps.studies.rows import Row, finite
from meanmode.sweeps.studies.token_exponents import exponent_rows


def onset_cells(path: Path) -> list[Row]:
    """Every finished cell's coordinates and measured front, None where there is none within its depth.

    Those of a study of training runs are of `meanmode.sweeps.studies.critical_rates.study_onsets`.
    """
    data = open_cells(path)
    if holds_study(data.attrs):
        return study_onsets(path)
    done = np.flatnonzero(data["status"].values == DONE)
    fronts = data["front"].values.astype(float)
    return [
        {**_coordinates(data, index), "front": None if math.isnan(fronts[index]) else fronts[index]}
        for index in done
    ]


def _coordinates(data: xr.Dataset, index: int) -> Row:
    """The setting of a cell, fixed fields and axes, and its seed."""
    axes = {axis: data[axis][index].item() for axis in json.loads(data.attrs["axes"])}
    return {**json.loads(data.attrs["configuration"])["base"], **axes}


def compare_store(path: Path) -> list[Row]:
    """One row per setting: predicted and measured front, over the seeds that finished.

    The statistic is the mean over seeds. Where some seeds show no front within the depth, both sides are the
    restricted mean of min(front, depth), which censoring does not bias (`front_restricted`); where neither
    side has a front, `predicted` and `measured` are None (`no_front`). `predicted_fraction` is None where the
    theory is silent. `z` counts measured standard errors. Of a study of training runs: its cases, and what
    they do to a baseline where it has one (`meanmode.sweeps.studies.critical_rates`).

    Raises:
        StoreError: no readable sweep.
    """
    data = open_cells(path)
    if holds_study(data.attrs):
        return study_rows(path) + effects(path) + first_moves(path)
    if holds_committor(data.attrs):
        return committor_rows(path)
    fronts, status = data["front"].values.astype(float), data["status"].values
    settings: dict[tuple[Any, ...], list[int]] = {}
    for index in range(data.sizes["cell"]):
        coordinates = _coordinates(data, index)
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
    return rows


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


def _exponents(path: Path) -> list[Row]:
    """The token exponents of a finished grid over tokens and adjoint cosine, else nothing."""
    axes = json.loads(open_cells(path).attrs["axes"])
    if not {"tokens", "adjoint_cosine"} <= set(axes):
        return []
    data = open_sweep(path)
    if data.sizes["tokens"] < 2 or "amplification" not in data or not (data["status"] == DONE).all():
        return []
    base = {**json.loads(data.attrs["configuration"])["base"], "tokens": None}
    return [finite({**base, **row}) for row in exponent_rows(data)]


def compare(paths: list[Path]) -> dict[str, Any]:
    """Rows of all stores; median and mean |relative error| over those with numbers on both sides."""
    rows = [row for path in paths for row in compare_store(path) + _exponents(path)]
    errors = [abs(row["relative_error"]) for row in rows if row["relative_error"] is not None]
    return {
        "rows": rows,
        "median_abs_relative_error": float(np.median(errors)) if errors else None,
        "mean_abs_relative_error": float(np.mean(errors)) if errors else None,
    }
