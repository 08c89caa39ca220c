"""Statistics of waiting times to a collapse: survival curves, cure models, and predictions of other seeds."""

# N runs, R resamples

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from scipy import stats

from meanmode.sim.store.files import StoreError
from meanmode.sim.store.provenance import provenance
from meanmode.sim.store.sweep_store import DONE, open_cells
from meanmode.sweeps.engine.study import stored_study
from meanmode.sweeps.engine.study_variables import KINDS
from meanmode.sweeps.named.waiting_time import PREDICTED, THRESHOLDS, share_of
from meanmode.sweeps.statistics.censoring import INTERVAL
from meanmode.sweeps.statistics.cure_model import CureModel
from meanmode.sweeps.statistics.scores import (
    auroc,
    brier,
    calibration,
    drawn_counts,
    survival_curve,
    with_interval,
)
from meanmode.sweeps.studies.forecast_files import store_hash
from meanmode.sweeps.studies.half_rates import half_rates
from meanmode.theory.onset.functional_law import FunctionalLaw

Array = NDArray[np.float64]


EARLY_STEPS = (20, 50)
"""First and last of the steps that predictors are read off; stated before the runs."""


BASELINES = ("rate", "rate sqrt(depth)")
"""Predictors that all others are compared with."""


BY_LAW = "rate over law O2's half rate"
"""By the law of the committed forecast `LAW`, fitted on ramps alone."""


LAW = "critical_rate_deep.forecast.json"


BY_LINE = "rate depth^0.62"
"""By the exponent of the half rates of 8, 16 and 32 blocks, measured on the first two studies."""


UNSTATED = (BY_LAW, BY_LINE, "unfiltered")
"""Parts of the names of predictors that were not stated before the runs; but `BY_LAW` before `PREDICTED`."""


SPECTRAL = {
    "RKSP, standard initialisation": "koopman_share_start",
    "RKSP, behind 50 steps": "koopman_share_trained",
    "RKSP unfiltered, standard initialisation": "koopman_share_start_unfiltered",
    "RKSP unfiltered, behind 50 steps": "koopman_share_trained_unfiltered",
}


def waiting_times(data: xr.Dataset) -> pd.DataFrame:
    """A row a run: study, depth, rate, its share of the threshold, seed, time, and what became of it.

    A run that did not collapse is censored at its last step; plain divergences count as that. The later
    half of the seeds of every case is held out, as stated before the runs.

    Raises:
        StoreError: no store of waiting times, or an unfinished one.
    """
    study = stored_study(data.attrs)
    if study.name not in THRESHOLDS:
        raise StoreError(f"{study.name} is no study of waiting times: give one of {', '.join(THRESHOLDS)}")
    unfinished = int((data["status"] != DONE).sum())
    if unfinished:
        raise StoreError(f"{study.name} has {unfinished} cells to do or failed: go on with it with --resume")
    depths = np.array([cell.run.model.depth for cell in study.cells])
    rates = np.array([cell.run.training.rate for cell in study.cells])
    seeds, kinds = data["run_seed"].values.astype(int), data["onset_kind"].values
    collapsed = kinds == KINDS.index("mean_mode")
    return pd.DataFrame(
        {
            "study": study.name,
            "depth": depths,
            "rate": rates,
            "share": [share_of(study.name, *run) for run in zip(rates, depths, strict=True)],
            "seed": seeds,
            "held_out": seeds >= study.first_seed + study.seeds // 2,
            "time": np.where(collapsed, data["onset_step"].values, data["last_step"].values).astype(float),
            "collapsed": collapsed,
            "diverged": kinds == KINDS.index("plain_divergence"),
        }
    )


def predictors(data: xr.Dataset, law: FunctionalLaw, spectrum: xr.Dataset | None = None) -> pd.DataFrame:
    """A column a predictor, a row a run; the spectral ones only where their study is given.

    Args:
        data: of `open_cells`.
        law: O2, whose half rate is one of them.
        spectrum: the spectral study of the same runs.

    Raises:
        StoreError: a spectral study of other runs.
    """
    cells = stored_study(data.attrs).cells
    rates = np.array([cell.run.training.rate for cell in cells])
    depths = np.array([cell.run.model.depth for cell in cells])
    early = data.sel(step=slice(*EARLY_STEPS))
    between = f"steps {EARLY_STEPS[0]} to {EARLY_STEPS[1]}"
    found = {
        "rate": rates,
        "rate sqrt(depth)": rates * np.sqrt(depths),
        BY_LINE: rates * depths**0.62,
        BY_LAW: rates / np.vectorize(law.constant_rate)(depths),
        f"ln functional step, {between}": np.log(early["functional_step"]).mean("step").values,
        f"ln gradient norm, {between}": np.log(early["grad_norm"]).mean("step").values,
    }
    if spectrum is not None:
        if (spectrum["status"] != DONE).any():
            raise StoreError("the spectral study is unfinished: go on with it with --resume")
        first = spectrum.sizes["step"]
        if not np.array_equal(spectrum["loss"].values, data["loss"].values[:, :first]):
            raise StoreError(f"the spectral study is of other runs: the losses of {first} steps differ")
        found |= {name: spectrum[variable].values for name, variable in SPECTRAL.items()}
    return pd.DataFrame(found).astype(float)


def scores(
    runs: pd.DataFrame, columns: pd.DataFrame, *, horizon: int, landmark: int = 0
) -> list[dict[str, Any]]:
    """Every predictor: its cure model on the runs that are not held out, and how it did on the others.

    Brier score and AUROC of P(collapse before the horizon), and the log-likelihood of a held-out run (which
    was not stated before the runs), each with a bootstrap interval over held-out runs with the fit as it
    is, and its difference from each of `BASELINES` on the same resamples; and the calibration.

    Args:
        runs: as `waiting_times`.
        columns: as `predictors`.
        horizon: steps of a run.
        landmark: only runs that had not collapsed by this step, their times from it on; what is read off
            the steps before it then cannot have seen the collapse.

    Raises:
        ValueError: too few collapses for a fit, or no held-out run.
    """
    going = (runs["time"] > landmark).to_numpy()
    runs, columns = runs[going], columns[going]
    held_out = runs["held_out"].to_numpy()
    if not held_out.any():
        raise ValueError(f"no held-out run goes on behind step {landmark}: there is nothing to predict")
    times, collapsed = runs["time"].to_numpy() - landmark, runs["collapsed"].to_numpy()
    foretold = bool(runs["study"][held_out].isin(PREDICTED).all())
    counts, outcomes = drawn_counts(int(held_out.sum())), collapsed[held_out]
    found, rows = {}, []
    for name in columns:
        values = columns[name].to_numpy()
        model = CureModel.fit(values[~held_out], times[~held_out], collapsed[~held_out])
        predicted = 1 - model.survival(values[held_out], horizon - landmark)
        likelihoods = model.log_likelihoods(values[held_out], times[held_out], outcomes)
        found[name] = {
            "brier": brier(predicted, outcomes, counts),
            "auroc": auroc(predicted, outcomes, counts),
            "log_likelihood": counts @ likelihoods / counts.sum(-1),
        }
        rows.append(
            {
                "predictor": name,
                "stated": (foretold and name == BY_LAW) or not any(part in name for part in UNSTATED),
                "model": vars(model),
                **{score: with_interval(drawn) for score, drawn in found[name].items()},
                "calibration": calibration(predicted, outcomes, counts),
            }
        )
    for row in rows:
        row["against"] = {
            base: {
                score: with_interval(drawn - found[base][score])
                for score, drawn in found[row["predictor"]].items()
            }
            for base in BASELINES
            if base != row["predictor"]
        }
    return rows


def cases(
    runs: pd.DataFrame, forecasts: Mapping[str, Mapping[str, Any]], model: CureModel, horizon: int
) -> list[dict[str, Any]]:
    """Every case: forecast and measured share that collapsed, and its survival curves; of all seeds.

    Args:
        runs: as `waiting_times`.
        forecasts: by study; a row of one holds for every depth where it names none.
        model: of `rate sqrt(depth)`, whose curve is put beside the Kaplan-Meier estimate.
        horizon: steps of a run.

    Raises:
        ValueError: a case that its forecast does not speak of.
    """
    grid = np.linspace(0, horizon, 61)
    rows = []
    for (study, depth, share), of in runs.groupby(["study", "depth", "share"]):
        predicted = [
            row["predicted"]
            for row in forecasts[study]["rows"]
            if row["share"] == share and row.get("depth", depth) == depth
        ]
        if len(predicted) != 1:
            raise ValueError(
                f"the forecast of {study} has {len(predicted)} rows of {share:g} at {depth} blocks"
            )
        count, rate = int(of["collapsed"].sum()), float(of["rate"].iloc[0])
        low, high = stats.binomtest(count, len(of)).proportion_ci(INTERVAL, "wilson")
        steps, survival = survival_curve(of["time"].to_numpy(), of["collapsed"].to_numpy())
        reached = steps[survival <= 0.5]
        rows.append(
            {
                "study": study,
                "depth": int(depth),
                "share": float(share),
                "rate": rate,
                "runs": len(of),
                "collapsed": count,
                "diverged": int(of["diverged"].sum()),
                "predicted": predicted[0],
                "measured": count / len(of),
                "low": float(low),
                "high": float(high),
                "median_time": float(reached[0]) if len(reached) else None,
                "curve": {"steps": steps.tolist(), "survival": survival.tolist()},
                "fitted": {
                    "steps": grid.tolist(),
                    "survival": model.survival(rate * depth**0.5, grid).tolist(),
                },
            }
        )
    return rows


def waiting_document(stores: Sequence[Path], forecasts: Path, spectra: Sequence[Path] = ()) -> dict[str, Any]:
    """All of the above as a JSON document. With one of `PREDICTED`, its runs alone are held out.

    Args:
        stores: of studies of waiting times, whose runs are taken together.
        forecasts: folder of what was predicted of each, `<study>.forecast.json`, and of `LAW`.
        spectra: stores of the spectral studies of the same runs, one a study, in the same order; or none.

    Raises:
        StoreError, ValueError: stores that do not go together, hold too few runs, or have no forecast.
    """
    if spectra and len(spectra) != len(stores):
        raise ValueError(f"{len(stores)} studies need as many spectral studies, or none, got {len(spectra)}")
    measured = [open_cells(path) for path in stores]
    base = stored_study(measured[0].attrs).base
    runs = pd.concat([waiting_times(data) for data in measured], ignore_index=True)
    beside = [open_cells(path) for path in spectra] or [None] * len(measured)
    law = FunctionalLaw.of_document(_forecast(forecasts / LAW).get("law"))
    columns = pd.concat(
        [predictors(data, law, spectrum) for data, spectrum in zip(measured, beside, strict=True)],
        ignore_index=True,
    )
    whole = runs["study"].isin(PREDICTED)
    if whole.all():
        raise ValueError(f"{PREDICTED[0]} is predicted from other runs: give waiting_time and the like too")
    if whole.any():
        runs["held_out"] = whole
    horizon, landmark = base.training.steps, EARLY_STEPS[1]
    stated = scores(runs, columns, horizon=horizon)
    fitted = next(row["model"] for row in stated if row["predictor"] == "rate sqrt(depth)")
    predicted = {study: _forecast(forecasts / f"{study}.forecast.json") for study in runs["study"].unique()}
    return {
        "made_from": {path.name: store_hash(path) for path in stores},
        "sizes": {
            "width": base.model.width,
            "image_tokens": base.model.image_tokens,
            "text_tokens": base.model.text_tokens,
            "batch": base.training.batch,
            "steps": horizon,
            "runs": len(runs),
            "held_out": int(runs["held_out"].sum()),
            "collapsed": int(runs["collapsed"].sum()),
            "collapsed_early": int((runs["collapsed"] & (runs["time"] <= landmark)).sum()),
            "diverged": int(runs["diverged"].sum()),
        },
        "thresholds": {study: THRESHOLDS[study] for study in predicted},
        "interval": INTERVAL,
        "landmark": landmark,
        "half_rates": half_rates(runs, predicted),
        "cases": cases(runs, predicted, CureModel(**fitted), horizon),
        "scores": stated,
        "scores_behind_landmark": scores(runs, columns, horizon=horizon, landmark=landmark),
        **provenance(),
    }


def _forecast(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (FileNotFoundError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no forecast ({error}): name its folder by --forecasts") from error
