"""Experiments on the hazard: observed over expected collapses, in windows and by case."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from meanmode.sweeps.engine.store_kinds import OpenedStudy
from meanmode.sweeps.studies.forecast_files import read_forecast
from meanmode.sweeps.studies.hazards.hazard_experiments import (
    expected_collapses,
    gain_rows,
    history_rows,
    observed_row,
)
from meanmode.sweeps.studies.hazards.hazard_scores import ramp_rows, schedule_rows, slope_rows
from meanmode.theory.onset.hazard import Hazard
from meanmode.theory.onset.hazard_likelihood import WaitingRuns

DATA = Path(__file__).parents[3] / "paper_figs" / "data"
HAZARD = Hazard(level=-6.0, steepness=6.0, ageing=-0.2, softening=0.2, youth=0.1, coherence=0.0068)
RATES = 0.0125 * np.minimum(1.0, np.arange(1, 601) / 20)


def simulated(hazard: Hazard, runs: int) -> WaitingRuns:
    cumulated = -np.log(hazard.survival(RATES, 16))
    times = 1 + np.searchsorted(cumulated, np.random.default_rng(5).exponential(size=runs))
    ended = np.minimum(times, 600).astype(float)
    return WaitingRuns(depth=16, rates=RATES, times=ended, collapsed=times <= 600)


@pytest.mark.parametrize("window", [(0, 600), (50, 100), (100, 400)])
def test_the_true_hazard_expects_what_is_observed(window: tuple[int, int]) -> None:
    row = observed_row(HAZARD, simulated(HAZARD, 3000), *window)
    assert row["low"] < 1 < row["high"] and row["high"] / row["low"] < 1.25


def test_a_factor_of_the_hazard_is_found() -> None:
    weaker = dataclasses.replace(HAZARD, level=HAZARD.level + np.log(0.3), spread=0)
    row = observed_row(dataclasses.replace(HAZARD, spread=0), simulated(weaker, 3000), 0, 600)
    assert row["low"] < 0.3 < row["high"] < 0.35


def test_no_collapse_leaves_a_factor_of_zero_with_an_upper_end() -> None:
    runs = WaitingRuns(depth=16, rates=RATES, times=np.full(8, 600.0), collapsed=np.zeros(8, bool))
    row = observed_row(HAZARD, runs, 0, 600)
    assert (row["observed"], row["ratio"], row["low"]) == (0, 0, 0)
    assert row["high"] == pytest.approx(3.0 / expected_collapses(HAZARD, runs, 0, 600).sum(), rel=0.01)


@pytest.fixture(scope="module")
def committed() -> Hazard:
    return Hazard.of_document(read_forecast(DATA / "hazard_slopes.forecast.json")["hazard"])


def test_prepared_runs_collapse_less_than_cold_ones(committed: Hazard) -> None:
    """Of the same seeds at the same rate, after 100 steps at 0.7 of it: the hazard has no memory."""
    source = OpenedStudy.open(DATA / "hazard_history.zarr")
    rows = {row["case"]: row for row in history_rows(committed, source, [(0, 600)])}
    cold, prepared = (rows[f"16 blocks, {which}"] for which in ("cold", "prepared"))
    assert (cold["observed"], prepared["observed"]) == (24, 15)
    assert prepared["high"] < cold["low"] and prepared["high"] < 1
    shares = schedule_rows(committed, source.study.base, source)
    assert [row["covered"] for row in shares] == [True, False, False, False]


def test_exponents_of_the_slope(committed: Hazard) -> None:
    source = OpenedStudy.open(DATA / "hazard_slopes.zarr")
    rows = ramp_rows(committed, source.study.base, source)
    shallow, deep = slope_rows(committed, rows, source)
    assert abs(shallow["hazard"] - shallow["measured"]) < 0.02 < abs(deep["hazard"] - deep["measured"])
    assert (shallow["runs"], deep["runs"]) == (48, 45) and shallow["law"] < shallow["hazard"]


def test_gains_are_of_runs_clear_of_their_collapse() -> None:
    source = OpenedStudy.open(DATA / "waiting_time_400.zarr")
    first, last = gain_rows(source, [(30, 60), (150, 200)])[:2]
    assert (first["runs"], last["runs"]) == (8, 6) and last["mean"] < first["mean"] - 1
