"""Statistics of waiting times to a collapse: survival curves, cure models, and predictions of other seeds."""

# N runs, R resamples

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from meanmode.dit.config.run_config import RunConfig
from meanmode.sim.store.files import StoreError
from meanmode.sim.store.provenance import provenance
from meanmode.sim.store.sweep_store import DONE
from meanmode.sweeps.engine.store_kinds import OpenedStudy
from meanmode.sweeps.engine.study import stored_study
from meanmode.sweeps.engine.study_variables import KINDS
from meanmode.sweeps.statistics.censoring import INTERVAL
from meanmode.sweeps.statistics.cure_model import CureModel
from meanmode.sweeps.statistics.scores import (
    auroc,
    brier,
    calibration,
    drawn_counts,
    share_interval,
    survival_curve,
    with_interval,
)
from meanmode.sweeps.studies.forecast_files import read_forecast, store_hash
from meanmode.sweeps.studies.half_rates import half_rates
from meanmode.theory.onset.functional_law import FunctionalLaw

EARLY_STEPS = (20, 50)
"""First and last of the steps from which predictors are taken."""


BASELINES = ("rate", "rate sqrt(depth)")
"""Predictors with which all others are compared."""


BY_LAW = "rate over law O2's half rate"
"""A predictor that was stated before the runs of studies that are held out whole, and of no others."""


LINE, UNFILTERED = "rate depth^", "unfiltered"
"""Parts of the names of predictors that were not stated before the runs."""


SPECTRAL = {
    "RKSP, standard initialisation": "koopman_share_start",
    "RKSP, behind 50 steps": "koopman_share_trained",
    "RKSP unfiltered, standard initialisation": "koopman_share_start_unfiltered",
    "RKSP unfiltered, behind 50 steps": "koopman_share_trained_unfiltered",
}
"""Predictor -> variable of a spectral study."""


def waiting_times(data: xr.Dataset) -> pd.DataFrame:
    """Waiting times of a study, one row per run: study, depth, rate, seed, time, collapsed, diverged.

    A run that did not collapse is censored at its last step; a plain divergence counts as no collapse.

    Args:
        data: a study of labelled runs, opened.

    Raises:
        StoreError: runs that are not at a constant rate, or an unfinished study.
    """
    study = stored_study(data.attrs)
    if not study.constant_rate:
        raise StoreError(f"{study.name} is no study of waiting times: its runs are not at constant rates")
    unfinished = int((data["status"] != DONE).sum())
    if unfinished:
        raise StoreError(f"{study.name} has {unfinished} cells to do or failed: continue it with --resume")
    kinds = data["onset_kind"].values
    collapsed = kinds == KINDS.index("mean_mode")
    return pd.DataFrame(
        {
            "study": study.name,
            "depth": [cell.run.model.depth for cell in study.cells],
            "rate": [cell.run.training.rate for cell in study.cells],
            "seed": data["run_seed"].values.astype(int),
            "time": np.where(collapsed, data["onset_step"].values, data["last_step"].values).astype(float),
            "collapsed": collapsed,
            "diverged": kinds == KINDS.index("plain_divergence"),
        }
    )


def stated_runs(source: OpenedStudy) -> pd.DataFrame:
    """The `waiting_times` of a study with what it stated before its runs.

    Adds `share`, the rate as a share of the reference rate; `held_out`, the seeds on which no model is
    fitted; and `whole`, whether all seeds of the study are held out.

    Raises:
        StoreError: as `waiting_times`.
        ValueError: a study that states no reference rate.
    """
    study, runs = source.study, waiting_times(source.data)
    shares = [study.share_of(*run) for run in zip(runs["rate"], runs["depth"], strict=True)]
    fitted = study.seeds - study.held_out_seeds
    return runs.assign(share=shares, held_out=runs["seed"] >= study.first_seed + fitted, whole=not fitted)


def predictors(
    data: xr.Dataset, law: FunctionalLaw, exponent: float, spectrum: xr.Dataset | None = None
) -> pd.DataFrame:
    """Predictors of the waiting time: one column each, one row per run.

    Args:
        data: a study of waiting times, opened.
        law: law O2; the rate over its half rate is a predictor.
        exponent: exponent of the depth in the predictor rate * depth^exponent.
        spectrum: the spectral study of the same runs; without it there are no spectral predictors.

    Raises:
        StoreError: a spectral study of other runs, or an unfinished one.
    """
    cells = stored_study(data.attrs).cells
    rates = np.array([cell.run.training.rate for cell in cells])
    depths = np.array([cell.run.model.depth for cell in cells])
    early = data.sel(step=slice(*EARLY_STEPS))
    between = f"steps {EARLY_STEPS[0]} to {EARLY_STEPS[1]}"
    found = {
        "rate": rates,
        "rate sqrt(depth)": rates * np.sqrt(depths),
        f"{LINE}{exponent:g}": rates * depths**exponent,
        BY_LAW: rates / np.vectorize(law.constant_rate)(depths),
        f"ln functional step, {between}": np.log(early["functional_step"]).mean("step").values,
        f"ln gradient norm, {between}": np.log(early["grad_norm"]).mean("step").values,
    }
    if spectrum is not None:
        if (spectrum["status"] != DONE).any():
            raise StoreError("the spectral study is unfinished: continue it with --resume")
        first = spectrum.sizes["step"]
        if not np.array_equal(spectrum["loss"].values, data["loss"].values[:, :first]):
            raise StoreError(f"the spectral study is of other runs: the losses of {first} steps differ")
        found |= {name: spectrum[variable].values for name, variable in SPECTRAL.items()}
    return pd.DataFrame(found).astype(float)


def scores(
    runs: pd.DataFrame, columns: pd.DataFrame, *, horizon: int, landmark: int = 0
) -> list[dict[str, Any]]:
    """Fit a cure model per predictor on the runs that are not held out, and score it on the held-out runs.

    Brier score and AUROC of P(collapse before the horizon), and the mean log-likelihood of a held-out run
    (which was not stated before the runs), each with a bootstrap interval over held-out runs with the fit
    kept, and its difference from each of `BASELINES` on the same resamples; and the calibration.

    Args:
        runs: as `stated_runs`.
        columns: as `predictors`.
        horizon: steps of a run.
        landmark: use only runs that had not collapsed by this step, with times counted from it; what is read
            from earlier steps then cannot have seen the collapse.

    Raises:
        ValueError: too few collapses for a fit, or no held-out run.
    """
    going = (runs["time"] > landmark).to_numpy()
    runs, columns = runs[going], columns[going]
    held_out = runs["held_out"].to_numpy()
    if not held_out.any():
        raise ValueError(f"no held-out run continues after step {landmark}: there is nothing to predict")
    times, collapsed = runs["time"].to_numpy() - landmark, runs["collapsed"].to_numpy()
    whole = bool(runs["whole"][held_out].all())
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
                "stated": whole if name == BY_LAW else LINE not in name and UNFILTERED not in name,
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
    """Forecast and measured share of runs that collapsed, and survival curves. One row per case, all seeds.

    Args:
        runs: as `stated_runs`.
        forecasts: by study; a row that names no depth holds for every depth.
        model: cure model of `rate sqrt(depth)`; its curve is given beside the Kaplan-Meier estimate.
        horizon: steps of a run.

    Raises:
        ValueError: a case that its forecast does not mention.
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
        low, high = share_interval(count, len(of))
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


def waiting_document(
    sources: Sequence[OpenedStudy],
    *,
    forecasts: Path,
    law: Path,
    exponent: float,
    spectra: Sequence[xr.Dataset] = (),
) -> dict[str, Any]:
    """Cases, half rates and scores of predictors of studies of waiting times, taken together.

    If a study holds out all of its seeds, its runs alone are held out.

    Args:
        sources: studies of waiting times.
        forecasts: folder of the forecasts of these studies, `<study>.forecast.json`.
        law: forecast file whose law O2 is a predictor.
        exponent: exponent of the depth in a predictor, as for `predictors`.
        spectra: spectral studies of the same runs in the same order, or none.

    Raises:
        StoreError, ValueError: stores that do not belong together, hold too few runs, or have no forecast.
    """
    if spectra and len(spectra) != len(sources):
        raise ValueError(f"{len(sources)} studies need as many spectral studies, or none, got {len(spectra)}")
    base = sources[0].study.base
    runs = pd.concat([stated_runs(source) for source in sources], ignore_index=True)
    fitted = FunctionalLaw.of_document(read_forecast(law).get("law"))
    columns = pd.concat(
        [
            predictors(source.data, fitted, exponent, spectrum)
            for source, spectrum in zip(sources, spectra or [None] * len(sources), strict=True)
        ],
        ignore_index=True,
    )
    if runs["whole"].all():
        names = ", ".join(runs["study"].unique())
        raise ValueError(f"all seeds of {names} are held out: give studies to fit on, too")
    if runs["whole"].any():
        runs["held_out"] = runs["whole"]
    horizon, landmark = base.training.steps, EARLY_STEPS[1]
    scored = scores(runs, columns, horizon=horizon)
    model = next(row["model"] for row in scored if row["predictor"] == "rate sqrt(depth)")
    predicted = {name: read_forecast(forecasts / f"{name}.forecast.json") for name in runs["study"].unique()}
    return {
        "made_from": {source.path.name: store_hash(source.data) for source in sources},
        "sizes": _sizes(base, runs, landmark),
        "thresholds": {source.study.name: source.study.reference_rate for source in sources},
        "interval": INTERVAL,
        "landmark": landmark,
        "half_rates": half_rates(runs, predicted),
        "cases": cases(runs, predicted, CureModel(**model), horizon),
        "scores": scored,
        "scores_behind_landmark": scores(runs, columns, horizon=horizon, landmark=landmark),
        **provenance(),
    }


def _sizes(base: RunConfig, runs: pd.DataFrame, landmark: int) -> dict[str, int]:
    """Sizes of the network and the training, and numbers of runs by outcome."""
    return {
        "width": base.model.width,
        "image_tokens": base.model.image_tokens,
        "text_tokens": base.model.text_tokens,
        "batch": base.training.batch,
        "steps": base.training.steps,
        "runs": len(runs),
        "held_out": int(runs["held_out"].sum()),
        "collapsed": int(runs["collapsed"].sum()),
        "collapsed_early": int((runs["collapsed"] & (runs["time"] <= landmark)).sum()),
        "diverged": int(runs["diverged"].sum()),
    }
