"""The forecast that a sweep over stacks stores before its first cell, and the layout of its store."""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from tqdm import tqdm

from meanmode.sim.observe.observable_names import WRITERS, observable_dims
from meanmode.sim.store.files import Variable
from meanmode.sim.store.observable_variables import observable_variables
from meanmode.sweeps.engine.plan import Layout
from meanmode.sweeps.engine.sweep import Sweep
from meanmode.theory.meanfield.coverage import follows_gram, has_theory
from meanmode.theory.meanfield.front import FrontPrediction
from meanmode.theory.meanfield.gram import forecast_realisations
from meanmode.theory.meanfield.predicted_front import predict_front
from meanmode.theory.meanfield.profile import predict_profile
from meanmode.theory.setting import Setting

FORECASTS = {
    "predicted_front": Variable(
        definition="mean front over seeds, NaN where none is predicted", units="block"
    ),
    "predicted_front_std": Variable(definition="standard deviation of the predicted front", units="block"),
    "predicted_front_deterministic": Variable(
        definition="front of the mean recursion, NaN where it has none", units="block"
    ),
    "predicted_fraction": Variable(
        definition="fraction of seeds that collapse within the depth, NaN: no theory"
    ),
    "predicted_restricted": Variable(definition="mean over seeds of min(front, depth)", units="block"),
    "predicted_restricted_std": Variable(
        definition="standard deviation between seeds of min(front, depth)", units="block"
    ),
}


PROFILE_FORECASTS = {
    "predicted_tcs": ("tcs", Variable(dims=("block",), definition="predicted TCS, mean over seeds")),
    "predicted_adjoint_tcs": (
        "adjoint_tcs",
        Variable(dims=("block",), definition="predicted pair cosine of dL/dX, mean over seeds"),
    ),
    "predicted_amplification": (
        "amplification",
        Variable(dims=("block", "writer"), definition="predicted A, mean over seeds"),
    ),
    "predicted_mode_ratio": (
        "mode_ratio",
        Variable(dims=("block", "writer"), definition="predicted g_mean / g_ctr, mean of the logarithm"),
    ),
}


FRONT = Variable(
    definition="front: where the batch-mean TCS of the image tokens reaches 0.9, interpolated; NaN: nowhere",
    units="block",
)


def progress(units: Iterator[Any], total: int, label: str) -> Iterator[Any]:
    """The units, with a progress bar on stderr."""
    return iter(tqdm(units, total=total, desc=label, file=sys.stderr, dynamic_ncols=True, leave=False))


def _forecast(prediction: FrontPrediction | None, depth: int) -> list[float]:
    if prediction is None:
        return [np.nan] * len(FORECASTS)
    known = (prediction.front, prediction.front_std, prediction.front_deterministic)
    return [np.nan if value is None else value for value in known] + list(prediction.within(depth))


def forecast(sweep: Sweep) -> list[list[float]]:
    """The predicted front of every setting, one row of `FORECASTS` each; NaN where the theory gives none."""
    settings = progress(iter(sweep.settings), len(sweep.settings), "forecast")
    return [_forecast(_prediction(setting), setting.depth) for setting in settings]


def forecast_rows(sweep: Sweep) -> list[dict[str, Any]]:
    """The forecast of every setting with the values of its axes; None for NaN."""
    rows = []
    for setting, row in zip(sweep.settings, forecast(sweep), strict=True):
        values = {
            name: None if np.isnan(value) else value for name, value in zip(FORECASTS, row, strict=True)
        }
        rows.append({**{name: getattr(setting, name) for name in sweep.varied}, **values})
    return rows


def _prediction(setting: Setting) -> FrontPrediction | None:
    """The predicted front; None where the theory says nothing."""
    if not has_theory(setting):
        return None
    return predict_front(setting, 4 * forecast_realisations(setting) if follows_gram(setting) else None)


def _variables(sweep: Sweep) -> dict[str, Variable]:
    dims: dict[str, tuple[str, ...]] = {}
    for setting in sweep.settings:
        dims |= observable_dims(setting, backward=sweep.backward)
    return {"front": FRONT, **observable_variables(dims)}


def _forecasts(sweep: Sweep, deepest: int) -> dict[str, tuple[Any, Variable]]:
    """Predictions for every cell: the front, and profiles where a backward pass is measured."""
    columns = zip(*forecast(sweep), strict=True)
    rows: dict[str, tuple[Any, Variable]] = {
        name: (np.repeat(column, sweep.seeds), given)
        for (name, given), column in zip(FORECASTS.items(), columns, strict=True)
    }
    if not sweep.backward:
        return rows
    profiles = [
        predict_profile(setting) if has_theory(setting) else {}
        for setting in progress(iter(sweep.settings), len(sweep.settings), "profiles")
    ]
    for name, (source, given) in PROFILE_FORECASTS.items():
        values = np.full((len(sweep.cells), *(deepest + 1, 2)[: len(given.dims)]), np.nan)
        for position, (setting, profile) in enumerate(zip(sweep.settings, profiles, strict=True)):
            if not profile:
                continue
            first = setting.depth + 1 - len(profile[source])
            cells = slice(position * sweep.seeds, (position + 1) * sweep.seeds)
            values[cells, first : setting.depth + 1] = profile[source]
        rows[name] = (values, given)
    return rows


def sweep_layout(sweep: Sweep) -> Layout:
    """What the store of a sweep over synthetic stacks holds."""
    deepest = max(setting.depth for setting in sweep.settings)
    return Layout(
        sizes={"block": range(deepest + 1), "writer": WRITERS},
        variables=_variables(sweep),
        forecasts=_forecasts(sweep, deepest),
        witness="tcs",
    )
