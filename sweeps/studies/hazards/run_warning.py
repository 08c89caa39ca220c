"""The early warning of a single run: its probabilities over time, the critical rate, where it is silent."""

# N rows

import json
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from meanmode.dit.config.run_config import RunConfig
from meanmode.dit.config.warning_premises import broken_premises
from meanmode.sim.onset.early_warning import HORIZONS, WARNING, reforecast, silence, warning_features
from meanmode.sim.onset.training_onset import deep_medians, token_cosine
from meanmode.sim.store.run_reader import open_run
from meanmode.sweeps.studies.rows import Row, finite

FITTED_DEPTHS = (8, 32)
"""Smallest and largest depth of the runs that the early warning was fitted to."""

Array = NDArray[np.float64]


def forecast_document(path: Path) -> dict[str, Any]:
    """What the early warning says of a run.

    `step`: last step with a measured token cosine and functional step, None without one. `probability`:
    horizon -> P(collapse within that many steps) there, None where it is silent. `not_valid`: why there is no
    forecast, or why it does not hold. `rows`: probabilities of every measured step; empty where a premise is
    broken. `peak`: the row with the largest probability. `critical_rate`: forecast from the functional steps,
    None before step 150. `notes`: what limits the forecast.

    Raises:
        StoreError: no readable run.
    """
    return warning_of_run(open_run(path))


def warning_of_run(run: xr.Dataset) -> dict[str, Any]:
    """The document of `forecast_document`, of an opened run.

    Args:
        run: a run from `meanmode.sim.store.run_reader.open_run`.
    """
    steps = run["step"].values.astype(int)
    cosines, deltas = _cosines(run), _column(run, "functional_step")
    reasons, notes = _premises(run, int(steps[-1]) if len(steps) else 0)
    measured = np.flatnonzero(~np.isnan(cosines) & ~np.isnan(deltas))
    last = int(measured[-1]) if len(measured) else len(steps) - 1
    silent = silence(steps[: last + 1], cosines[: last + 1], deltas[: last + 1])
    rows = [] if reasons else _rows(steps, cosines, deltas, measured)
    rate = None if reasons else reforecast(steps, _column(run, "lr"), deltas)
    current = rows[-1] if rows and not silent and rows[-1]["step"] == steps[last] else None
    return {
        "step": int(steps[last]) if len(measured) else None,
        "probability": None if current is None else {str(of): current[str(of)] for of in HORIZONS},
        "not_valid": [*reasons, *([silent] if silent else [])],
        "peak": max(rows, key=lambda row: row[str(HORIZONS[-1])], default=None),
        **finite({"critical_rate": rate}),
        "notes": notes,
        "rows": rows,
    }


def _column(run: xr.Dataset, name: str) -> Array:
    """A scalar of every step [N]; NaN where it was not logged."""
    if name not in run or run[name].dims != ("step",):
        return np.full(run.sizes["step"], np.nan)
    return run[name].values.astype(float)


def _cosines(run: xr.Dataset) -> Array:
    """Median token cosine of the deeper half of the blocks at every step [N]; NaN where not measured."""
    found = np.full(run.sizes["step"], np.nan)
    if "tcs" in run or "tcs_image" in run:
        steps, values = deep_medians(run, token_cosine(run))
        found[np.searchsorted(run["step"].values, steps)] = values
    return found


def _rows(steps: NDArray[np.int64], cosines: Array, deltas: Array, measured: NDArray[np.int64]) -> list[Row]:
    """Step and probabilities of every measured step at which the forecast speaks."""
    features = warning_features(steps, cosines, deltas)[measured]
    chances = {horizon: WARNING.probability(features, horizon) for horizon in HORIZONS}
    spoken = np.flatnonzero(~np.isnan(chances[HORIZONS[0]]))
    return [
        {"step": int(steps[measured[at]]), **{str(of): float(chances[of][at]) for of in HORIZONS}}
        for at in spoken
    ]


def _premises(run: xr.Dataset, step: int) -> tuple[list[str], list[str]]:
    """Premises that the configuration breaks, and notes on what it leaves open."""
    try:
        config = RunConfig.of_document(json.loads(run.attrs.get("configuration", "")))
    except (ValueError, TypeError):
        return [], ["the configuration is not known: nothing was checked but the telemetry"]
    depth, (least, most) = config.model.depth, FITTED_DEPTHS
    notes = []
    if not least <= depth <= most:
        notes.append(
            f"{depth} blocks are outside of the {least} to {most} that were fitted: probabilities above 0.5 "
            "were too large in deeper networks"
        )
    return list(broken_premises(config, step)), notes


def forecast_lines(path: Path, document: dict[str, Any]) -> list[str]:
    """The forecast in words, one line per statement."""
    step, chances = document["step"], document["probability"]
    if chances is None:
        lines = []
    else:
        said = ", ".join(f"{chances[str(of)]:.2f} within {of} steps" for of in HORIZONS)
        lines = [f"{path}, step {step}: probability of a collapse {said}"]
    lines += [f"{path}: not valid here: {reason}" for reason in document["not_valid"]]
    peak = document["peak"]
    if peak is not None:
        most, within = peak[str(HORIZONS[-1])], HORIZONS[-1]
        lines.append(f"largest so far: {most:.2f} within {within} steps, at step {peak['step']}")
    if document["critical_rate"] is not None:
        lines.append(f"critical rate of a ramp, from the steps 100 to 149: {document['critical_rate']:.3g}")
    return lines + [f"note: {text}" for text in document["notes"]]


def shown_rows(document: dict[str, Any], most: int = 12) -> list[Row]:
    """Some rows of a forecast, evenly spaced up to and including the last."""
    rows = document["rows"]
    chosen = sorted({round(at) for at in np.linspace(0, len(rows) - 1, min(most, len(rows)))})
    return [
        {"step": rows[at]["step"], **{f"within {of}": round(rows[at][str(of)], 3) for of in HORIZONS}}
        for at in chosen
    ]
