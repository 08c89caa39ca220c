"""Hazards of studies: what is fitted to the committed stores, forecasts of cases, candidates, scores."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from meanmode.sweeps.cli.predict import predict
from meanmode.sweeps.cli.statements import open_stated
from meanmode.sweeps.engine.store_kinds import OpenedStudy
from meanmode.sweeps.named.critical_rate import CRITICAL_RATE_DEEP
from meanmode.sweeps.named.critical_rate_settings import CRITICAL_RATE_SETTINGS
from meanmode.sweeps.named.waiting_time import WAITING_TIME_400
from meanmode.sweeps.studies import half_rate_forecast
from meanmode.sweeps.studies.hazards.hazard_candidates import (
    Candidate,
    candidate_rows,
    random_folds,
)
from meanmode.sweeps.studies.hazards.hazard_forecast import case_row, half_rate
from meanmode.sweeps.studies.hazards.hazard_runs import constant_rate_runs, differences, schedule_rates
from meanmode.sweeps.studies.hazards.hazard_scores import log_score_rows, ramp_rows, ramp_summary
from meanmode.theory.onset.hazard import Hazard
from meanmode.theory.onset.hazard_likelihood import PARAMETERS, WaitingRuns

DATA = Path(__file__).parents[3] / "paper_figs" / "data"
COHERENCE = 0.006766
"""r of law O2, as fitted to the ramps of critical_rate_depth."""
FOUND = (-5.838, 6.084, -0.577, 0.1488, 0.1229)
"""The parameters of the hazard of the committed forecasts, in the order of `PARAMETERS`."""


@pytest.fixture(scope="module")
def waiting() -> list[OpenedStudy]:
    return [open_stated(DATA / f"{name}.zarr") for name in ("waiting_time", "waiting_time_low")]


@pytest.fixture(scope="module")
def runs(waiting: list[OpenedStudy]) -> list[WaitingRuns]:
    return constant_rate_runs(waiting)


@pytest.fixture(scope="module")
def hazard(runs: list[WaitingRuns]) -> Hazard:
    return Hazard.fit(runs, coherence=COHERENCE, samples=20)


def test_the_committed_runs_have_the_hazard_of_the_pages(runs: list[WaitingRuns], hazard: Hazard) -> None:
    assert (len(runs), sum(len(group.times) for group in runs)) == (30, 840)
    found = [getattr(hazard, name) for name in PARAMETERS]
    assert found == pytest.approx(FOUND, abs=5e-3)


def test_ramps_of_other_depths_and_slopes_are_forecast(waiting: list[OpenedStudy], hazard: Hazard) -> None:
    """Medians of ramps that were not fitted: within 20 % up to 400 blocks, 25 % at 1000; O2 is 55 % off."""
    source = open_stated(DATA / "critical_rate_deep.zarr")
    rows = ramp_rows(hazard, waiting[0].study.base, source)
    assert [row["depth"] for row in rows] == [64, 128, 400, 1000]
    errors = [row["error"] for row in rows]
    assert np.abs(errors[:2]).max() < 0.04 and errors[2:] == pytest.approx([-0.20, 0.24], abs=0.02)
    assert [row["error_functional_law"] for row in rows[2:]] == pytest.approx([-0.55, -0.52], abs=0.01)
    summary = ramp_summary(rows)
    assert summary["error"]["n"] == summary["cases"] == 4
    assert (summary["inside"], summary["runs"]) == (sum(row["inside"] for row in rows), 32)
    scores = log_score_rows(hazard, rows, [source])
    assert [row["rival"] for row in scores] == ["functional_law", "power_law"]
    assert all(row["low"] < row["value"] < row["high"] and row["runs"] == 32 for row in scores)


def test_settings_of_which_a_hazard_knows_nothing_are_left_out(
    waiting: list[OpenedStudy], hazard: Hazard
) -> None:
    base, study = waiting[0].study.base, CRITICAL_RATE_SETTINGS
    before = {
        "predicted": 0.01,
        "predicted_low": 0.009,
        "predicted_high": 0.011,
        "predicted_power_law": 0.012,
    }
    known, other = (
        case_row(hazard, base, study, study.runs[index], {"case": study.cases[index].label, **before})
        for index in (0, 3)
    )
    assert other["predicted"] is None and other["differs"] == ["heads", "text_width", "width"]
    assert known["predicted_low"] < known["predicted"] < known["predicted_high"]
    assert known["predicted_functional_law"] == 0.01 and known["predicted_power_law"] == 0.012
    assert known["predicted"] == pytest.approx(known["median_step"] * 5e-5 * (16 / 24) ** 0.5)
    assert known["run_low"] < known["median_step"] < known["run_high"] and 0.9 < known["chance"] <= 1
    assert [differences(base, run) for run in CRITICAL_RATE_DEEP.runs] == [[]] * 4
    computed = {"compile": True, "recompute": 1, "accumulation": 2}
    assert differences(base, base.with_fields(computed)) == []
    assert differences(base, base.with_fields({**computed, "merge": "rezero"})) == ["merge"]


def test_a_jump_is_forecast_in_steps(waiting: list[OpenedStudy], hazard: Hazard) -> None:
    run = CRITICAL_RATE_DEEP.runs[0].with_fields(
        {"schedule": "jump", "rate": 0.008, "first_rate": 0.001, "first_steps": 100, "steps": 400}
    )
    rates = schedule_rates(run, beyond=4)
    assert (len(rates), rates[99], rates[100]) == (400, 0.001, 0.008)
    study = dataclasses.replace(CRITICAL_RATE_DEEP, base=run, cases=CRITICAL_RATE_DEEP.cases[:1])
    row = case_row(hazard, waiting[0].study.base, study, run, {"case": "jump"})
    assert 100 < row["run_low"] < row["predicted"] == row["median_step"] < 400


def test_candidates_are_ranked_by_runs_that_they_were_not_fitted_to(runs: list[WaitingRuns]) -> None:
    """Law O3 alone costs log score."""
    candidates = (Candidate(), Candidate(delay=0, spread=0, softening=False, youth=False))
    assert [candidate.parameters for candidate in candidates] == [5, 3]
    rows = candidate_rows(runs, random_folds(runs), coherence=COHERENCE, candidates=candidates)
    assert [row["youth"] for row in rows] == [True, False]
    assert rows[1]["behind"] > 2 * rows[1]["behind_error"] > 0 == rows[0]["behind"]


def test_the_command_writes_a_forecast_by_a_hazard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(half_rate_forecast, "SAMPLES", 10)
    stores = ("waiting_time", "waiting_time_low", "critical_rate_depth")
    sources = [word for name in stores for word in ("--from", str(DATA / f"{name}.zarr"))]
    out = tmp_path / "forecast.json"
    words = ["onset", "waiting_time_400", "--law", "hazard", *sources, "--out", str(out), "--json"]
    done = CliRunner().invoke(predict, words, catch_exceptions=False)
    document = json.loads(done.stdout)
    assert document == json.loads(out.read_text()) and len(document["made_from"]) == 3
    hazard = Hazard.of_document(document["hazard"])
    assert hazard.coherence == pytest.approx(COHERENCE, abs=1e-5) and len(hazard.samples) > 100
    (half,) = document["half_rates"]
    assert half["predicted"] == pytest.approx(half_rate(hazard, WAITING_TIME_400.runs[0]))
    assert half["predicted_functional_law"] == pytest.approx(0.00098, rel=0.05)
    low, high = document["rows"]
    assert 0.5 < low["predicted"] == low["chance"] < high["predicted"]
    assert low["run_high"] is None and high["median_step"] < low["median_step"]
    assert math.isclose(low["predicted_functional_law"], 0.99, abs_tol=0.02)


def test_a_hazard_needs_ramps_and_waiting_times_and_no_pilots() -> None:
    one = ["--from", str(DATA / "critical_rate_depth.zarr")]
    done = CliRunner().invoke(predict, ["onset", "critical_rate_deep", "--law", "hazard", *one])
    assert "from ramps and from waiting times: give both" in str(done.exception)
    pilots = ["--pilots", str(DATA / "critical_rate_pilots.zarr")]
    done = CliRunner().invoke(predict, ["onset", "critical_rate_deep", "--law", "hazard", *one, *pilots])
    assert "a hazard takes no --pilots" in str(done.exception)
