"""Exponents of untrained stacks: those of the theory, and the slopes that a sweep shows."""

# S seeds, L blocks

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from meanmode.sweeps.engine.sweep import Sweep, stored_stacks
from meanmode.sweeps.studies.rows import Row
from meanmode.theory.meanfield.exponents import Energies, exponents, predict_energies
from meanmode.theory.meanfield.phase_diagram import BlockMap
from meanmode.theory.setting import Setting

Array = NDArray[np.float64]

FIRST = 2
"""Block from which slopes are taken."""


def windows(setting: Setting) -> dict[str, tuple[int, int]]:
    """Quantity -> blocks between which its slope is taken.

    The centered adjoint shows an exponent of its own only in the upper half, before the mean feeds it. In
    a stack that begins at c = 0, finite numbers of tokens and features decide what is left of the mean.
    """
    whole, upper = (FIRST, setting.depth), (setting.depth // 2, setting.depth)
    if setting.input_cosine == 0:
        return {"backward_centered": upper}
    return {"forward": whole, "backward_mean": whole, "backward_centered": upper}


def forecast(sweep: Sweep) -> dict[str, Any]:
    """Slopes of every setting, in natural logarithms per block, with the formula for infinite size."""
    rows = []
    for setting in sweep.settings:
        energies, limit = predict_energies(setting), exponents(BlockMap(setting), float(_nearest(setting)))
        for quantity, blocks in windows(setting).items():
            rows.append(
                {
                    **{name: getattr(setting, name) for name in sweep.varied},
                    "quantity": quantity,
                    "from_block": blocks[0],
                    "to_block": blocks[1],
                    "formula": getattr(limit, quantity),
                    "predicted": float(_slope(_predicted(energies, quantity), blocks, quantity)),
                }
            )
    return {"study": sweep.name, "seeds": sweep.seeds, "base": dataclasses.asdict(sweep.base), "rows": rows}


def _nearest(setting: Setting) -> int:
    """The fixed point beside which a stack begins: 0, or 1 for the collapsed state."""
    return round(setting.input_cosine)


def _predicted(energies: Energies, quantity: str) -> Array:
    return {
        "forward": energies.distance,
        "backward_mean": energies.mean,
        "backward_centered": energies.centered,
    }[quantity]


def _slope(logarithms: Array, blocks: tuple[int, int], quantity: str) -> Array:
    """Growth per block of logarithms [..., L + 1], upwards, or downwards for an adjoint."""
    first, last = blocks
    grown = (logarithms[..., last] - logarithms[..., first]) / (last - first)
    return grown if quantity == "forward" else -grown


def exponent_rows(data: xr.Dataset, document: Mapping[str, Any]) -> list[Row]:
    """Measured slopes beside the forecast: one row per setting and quantity.

    `measured` is the mean over seeds of the slope of each, `sem` its standard error; `z` counts standard
    errors.

    Args:
        data: finished sweep with a backward pass, opened along `cell`.
        document: its forecast, as of `forecast`.

    Raises:
        ValueError: a forecast of another sweep.
    """
    sweep = stored_stacks(data.attrs)
    if document.get("study") != sweep.name:
        raise ValueError(f"a forecast of {document.get('study')!r} says nothing about {sweep.name}")
    forecasts, rows = iter(document["rows"]), []
    for position, setting in enumerate(sweep.settings):
        cells = data.isel(cell=slice(position * sweep.seeds, (position + 1) * sweep.seeds))
        energies = measured_energies(cells, setting)
        for quantity, blocks in windows(setting).items():
            row = next(forecasts)
            slopes = _slope(energies[quantity], blocks, quantity)
            error = float(slopes.std(ddof=1)) / math.sqrt(len(slopes))
            mean = float(slopes.mean())
            about = {"scale": setting.weight_std * setting.width**0.5, "n": len(slopes)}
            found = {"measured": mean, "sem": error, "z": (row["predicted"] - mean) / error}
            rows.append({**dataclasses.asdict(setting), **row, **about, **found})
    return rows


def measured_energies(cells: xr.Dataset, setting: Setting) -> dict[str, Array]:
    """Logarithms of the energies that the exponents speak of, after every block [S, L + 1]; NaN at the input.

    1 - c follows from rho (law E1). The squared gradient of the FFN writer over its amplification is
    sum_t |y_t|^2 |delta_t|^2 (laws A2, A4), and |y_t| has the same size in every block. So beside a fixed
    point, where the norms divide by the same, it is the adjoint's energy up to a constant; its pair cosine
    divides it into mean and centered part.
    """
    blocks = slice(0, setting.depth + 1)
    values = {
        name: cells[name].values[:, blocks].astype(float)
        for name in ("rho", "g_mean", "g_ctr", "g_inner", "amplification", "adjoint_tcs")
    }
    tokens, gains = setting.tokens + setting.text_tokens, setting.writer_gains[1]
    ffn = {name: values[name][..., 1] for name in ("g_mean", "g_ctr", "g_inner", "amplification")}
    written = (ffn["g_mean"] ** 2 + ffn["g_ctr"] ** 2 + 2 * ffn["g_inner"]) / ffn["amplification"]
    share = (1 + (tokens - 1) * values["adjoint_tcs"]) / tokens
    adjoint = written / (gains.mean_write**2 * share + gains.centered_write**2 * (1 - share))
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "forward": -np.log((tokens - 1) / tokens * (values["rho"] ** 2 + 1)),
            "backward_mean": np.log(adjoint * share),
            "backward_centered": np.log(adjoint * (1 - share)),
        }


def forecast_in(data: xr.Dataset) -> dict[str, Any]:
    """The forecast that a figure's registry attaches to a store.

    Raises:
        ValueError: there is none.
    """
    if "forecast" not in data.attrs:
        raise ValueError("these exponents are drawn beside their forecast: put it beside the store")
    return dict(json.loads(data.attrs["forecast"]))
