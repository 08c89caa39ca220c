"""Half rates of failure and of mean-mode collapse of watched models, and the kinds of their failures."""

# R runs

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import xarray as xr

from meanmode.sim.onset.training_onset import LEARNED, SMOOTHED_STEPS, training_onset
from meanmode.sim.store.sweep_store import DONE
from meanmode.sweeps.engine.stock.stock_study import stored_stock
from meanmode.sweeps.statistics.half_rate import HalfRate
from meanmode.sweeps.studies.rows import Row

KINDS = ("learned", "mean mode", "plain divergence", "never learned")
"""What becomes of a run, the first that holds of: the deep TCS is above 0.9 to the end with the loss back
(`collapse_step`), mean mode; the final loss is below `LEARNED` of the initial one, learned; the label of our
own runs is a plain divergence; none of these, never learned."""


def kind_of(cell: xr.Dataset) -> str:
    """One of `KINDS` for a finished run of a study of watched models."""
    if np.isfinite(float(cell["collapse_step"])):
        return "mean mode"
    if float(cell["final_loss"]) < LEARNED * float(cell["initial_loss"]):
        return "learned"
    tcs = np.full(cell.sizes["step"], np.nan)
    tcs[cell["measurement"].values.astype(int) - 1] = cell["tcs"].values
    series = {"loss": ("step", cell["loss"].values.astype(float)), "tcs": ("step", tcs)}
    run = xr.Dataset(series, {"step": cell["step"].values.astype(int)})
    run.attrs["initial_loss"] = float(cell["initial_loss"])
    return "plain divergence" if training_onset(run).kind == "plain_divergence" else "never learned"


def had_learned(cell: xr.Dataset) -> bool:
    """Whether the running median of the loss was below `LEARNED` of its initial level at some step."""
    loss = pd.Series(cell["loss"].values.astype(float))
    smoothed = loss.rolling(SMOOTHED_STEPS, center=True, min_periods=1).median()
    return bool((smoothed < LEARNED * float(cell["initial_loss"])).any())


def backbone_runs(data: xr.Dataset) -> pd.DataFrame:
    """One row per finished run: case without its rate, rate, kind, failed, had learned, final loss.

    Args:
        data: a study of watched models whose labels end with `, rate R`.
    """
    study = stored_stock(data.attrs)
    labels = [case.label for case in study.cases for _ in range(study.seeds)]
    rows = []
    for index, (label, of) in enumerate(zip(labels, study.cells, strict=True)):
        if int(data["status"].values[index]) != DONE:
            continue
        cell = data.isel(cell=index)
        kind = kind_of(cell)
        rows.append(
            {
                "case": label.rpartition(", rate ")[0] or label,
                "rate": of.run.rate,
                "kind": kind,
                "failed": kind != "learned",
                "mean_mode": kind == "mean mode",
                "had_learned": had_learned(cell),
                "final_loss": float(cell["final_loss"]),
                "collapse_rate": _rate_at(of.run.rate_at, float(cell["collapse_step"])),
            }
        )
    return pd.DataFrame(rows)


def _rate_at(rate_at: Callable[[int], float], step: float) -> float:
    return rate_at(int(step)) if np.isfinite(step) else np.nan


def half_rate_row(rates: Sequence[float], failed: Sequence[bool]) -> Row:
    """Half rate with its interval, or `at_least` or `at_most` where it is outside of the rates tried.

    An end of the interval outside of them is None.
    """
    found = HalfRate.fit(rates, failed)
    frame = pd.DataFrame({"rate": rates, "failed": failed})
    lowest, highest = float(frame["rate"].min()), float(frame["rate"].max())
    known = bool(np.isfinite(found.half.value))
    above = not known and frame[frame["rate"] == highest]["failed"].mean() < 0.5
    below = not known and not above and frame[frame["rate"] == lowest]["failed"].mean() > 0.5
    low, high = found.half.low, found.half.high
    return {
        "value": found.half.value if known else None,
        "low": low if 0 < low < np.inf else None,
        "high": high if 0 < high < np.inf else None,
        "at_least": highest if above else None,
        "at_most": lowest if below else None,
    }


def backbone_rows(data: xr.Dataset) -> list[Row]:
    """One row per case with finished runs at two rates or more.

    `counts`: for each rate, runs, those that failed, those in the mean mode and the median final loss.
    `kinds`: number of runs of each of `KINDS`. `after_learning`: of those in the mean mode, how many had
    learned before. `failure` and `mean_mode`: as `half_rate_row`.
    """
    runs = backbone_runs(data)
    rows: list[Row] = []
    for case, of in runs.groupby("case", sort=False):
        if of["rate"].nunique() < 2:
            continue
        counts = [
            {
                "rate": float(rate),
                "runs": len(at),
                "failed": int(at["failed"].sum()),
                "mean_mode": int(at["mean_mode"].sum()),
                "final_loss": float(at["final_loss"].median()),
            }
            for rate, at in of.groupby("rate")
        ]
        rows.append(
            {
                "case": case,
                "counts": counts,
                "kinds": {kind: int((of["kind"] == kind).sum()) for kind in KINDS},
                "after_learning": int((of["mean_mode"] & of["had_learned"]).sum()),
                "failure": half_rate_row(of["rate"].tolist(), of["failed"].tolist()),
                "mean_mode": half_rate_row(of["rate"].tolist(), of["mean_mode"].tolist()),
            }
        )
    return rows
