"""The risk of a schedule: what the hazard says of it, the peak at an accepted risk, and when it is silent."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from meanmode.dit.config.presets import PRESETS
from meanmode.dit.config.run_config import RunConfig
from meanmode.sweeps.cli import statements
from meanmode.sweeps.cli.predict import predict
from meanmode.sweeps.engine.store_kinds import OpenedStudy
from meanmode.sweeps.studies.hazards.hazard_runs import schedule_rates
from meanmode.sweeps.studies.hazards.schedule_risk import risk_curve, risk_document, risk_lines, risk_rows
from meanmode.theory.onset.hazard import Hazard

DATA = Path(__file__).parents[3] / "paper_figs" / "data"
FORECAST = DATA / "hazard_deep.forecast.json"
BASE = PRESETS["digits-16l"]
SCHEDULES: dict[str, dict[str, Any]] = {
    "constant": {"schedule": "warmup", "warmup": 20, "rate": 0.011, "steps": 400},
    "cosine": {"schedule": "cosine", "warmup": 20, "rate": 0.011, "steps": 400},
    "jump": {"schedule": "jump", "first_rate": 0.008, "first_steps": 50, "rate": 0.011, "steps": 400},
    "ramp": {"schedule": "ramp", "slope": 3e-5, "rate": None, "steps": 400},
    "limited ramp": {"schedule": "ramp", "slope": 1e-4, "rate": 0.011, "steps": 400},
}


@pytest.fixture(scope="module")
def hazard() -> Hazard:
    return statements.open_hazard([FORECAST])[0]


def run_of(label: str, **fields: Any) -> RunConfig:
    return BASE.with_fields({**SCHEDULES[label], **fields})


@pytest.mark.parametrize("label", SCHEDULES)
def test_the_peak_at_a_risk_has_that_risk(hazard: Hazard, label: str) -> None:
    """All rates of a schedule scale with its peak; the interval of the peak contains it."""
    run = run_of(label)
    document = risk_document(hazard, BASE, run, risk=0.2)
    quantity = document["quantity"]
    factor = document["largest"] / getattr(run.training, quantity)
    assert quantity == ("slope" if label == "ramp" else "rate")
    scaled = factor * schedule_rates(run)
    assert 1 - hazard.survival(scaled, run.model.depth)[-1] == pytest.approx(0.2, rel=1e-6)
    assert document["largest_low"] < document["largest"] < document["largest_high"]
    assert document["probability_low"] <= document["probability"] <= document["probability_high"]
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert len(risk_lines(document)) == 4 and f"largest {quantity}" in risk_lines(document)[-1]


@pytest.mark.parametrize("label", SCHEDULES)
def test_the_risk_grows_with_the_peak(hazard: Hazard, label: str) -> None:
    rows = risk_curve(hazard, run_of(label), 8)
    peaks, chances, lows, highs = np.array([list(row.values()) for row in rows]).T
    assert (np.diff(peaks) > 0).all() and (np.diff(chances) > 0).all()
    assert chances[[0, -1]] == pytest.approx([0.01, 0.99])
    assert ((lows <= chances) & (chances <= highs)).all()


def test_slow_warm_ups_are_safer_than_forecast_and_the_answer_says_so(hazard: Hazard) -> None:
    """Measured: of four warm-ups of 300 and 1000 steps each has fewer collapses than the hazard says."""
    source = OpenedStudy.open(DATA / "hazard_schedules.zarr")
    rows = {row["case"]: row for row in risk_rows(source)}
    slow = [run for run in source.study.runs if run.training.warmup > 100]
    cases = [case for case, run in zip(source.study.cases, source.study.runs, strict=True) if run in slow]
    documents = [risk_document(hazard, BASE, run, risk=0.05) for run in slow]
    assert all(
        rows[case.label]["high"] < of["probability"] for case, of in zip(cases, documents, strict=True)
    )
    assert sorted(rows[case.label]["share"] for case in cases)[:2] == [0, 0]
    assert all("a warm-up of more than 100 steps protects" in risk_lines(of)[-1] for of in documents)
    fast = risk_document(hazard, BASE, source.study.runs[0], risk=0.05)
    assert fast["caution"] is None


def test_the_peak_that_is_asked_about_does_not_change_the_answer(hazard: Hazard) -> None:
    low, high = (risk_document(hazard, BASE, run_of("cosine", rate=rate), risk=0.05) for rate in (1e-6, 10.0))
    assert low["largest"] == pytest.approx(high["largest"]) and low["largest_low"] > 0
    assert (low["probability"], low["median_step"], low["run_low"]) == (pytest.approx(0), None, None)
    assert high["probability"] == pytest.approx(1) and 20 <= high["median_step"] < 30
    assert "after the end" in risk_lines(low)[2]


def test_a_decay_is_safer_than_a_constant_rate_and_depth_is_riskier(hazard: Hazard) -> None:
    constant, cosine = (risk_document(hazard, BASE, run_of(of), risk=0.05) for of in ("constant", "cosine"))
    deep = risk_document(hazard, BASE, run_of("constant", depth=64), risk=0.05)
    assert cosine["probability"] < constant["probability"] < deep["probability"]
    assert cosine["largest"] > constant["largest"] > deep["largest"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"batch": 8, "merge": "mv_split"}, "silent on this run: .* with batch=4, merge=plain"),
        ({"steps": 20}, "no rate makes a run of 20 steps collapse"),
        ({"first_steps": 400}, "or at a rate of 0: set more steps"),
        ({"steps": 20_001}, "up to 20000 steps, got 20001"),
    ],
)
def test_runs_that_cannot_be_judged_are_refused(hazard: Hazard, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        risk_document(hazard, BASE, run_of("constant", **fields), risk=0.05)


def test_measured_shares_of_a_study() -> None:
    rows = risk_rows(OpenedStudy.open(DATA / "hazard_history.zarr"))
    cold = rows[0]
    assert (cold["case"], cold["depth"], cold["runs"], cold["steps"]) == ("16 blocks, cold", 16, 24, 620)
    assert [row["first_steps"] for row in rows] == [0, 100, 0, 100]
    assert all(0 <= row["low"] <= row["share"] <= row["high"] <= 1 for row in rows)


def test_small_probabilities_are_too_large(hazard: Hazard) -> None:
    """Also those of runs to which the hazard was fitted (the first study); the page of sweeps says so."""
    collapsed, runs, expected = 0, 0, 0.0
    for name in ("waiting_time_low", "waiting_time_between", "waiting_time_deep"):
        source = OpenedStudy.open(DATA / f"{name}.zarr")
        for row, run in zip(risk_rows(source), source.study.runs, strict=True):
            chance = 1 - hazard.survival(schedule_rates(run), run.model.depth)[-1]
            if chance < 0.4:
                collapsed += round(row["share"] * row["runs"])
                runs += row["runs"]
                expected += chance * row["runs"]
    assert (collapsed, runs, round(expected)) == (18, 220, 51)


def test_the_command_answers_for_a_preset(hazard: Hazard) -> None:
    sets = [f"{name}={value}" for name, value in SCHEDULES["cosine"].items()]
    words = ["schedule", "digits-64l", *(word for of in sets for word in ("--set", of)), "--from", FORECAST]
    done = CliRunner().invoke(predict, [*map(str, words), "--json"], catch_exceptions=False)
    document = json.loads(done.stdout)
    expected = risk_document(hazard, BASE, run_of("cosine", depth=64), risk=0.05)
    assert document == {**expected, "made_from": [str(FORECAST)]}
    assert document["inputs"] == {"depth": 64, "risk": 0.05, **SCHEDULES["cosine"]}
    told = CliRunner().invoke(predict, list(map(str, words)), catch_exceptions=False).stdout
    assert told.startswith("64 blocks, schedule cosine of 400 steps, rate 0.011, warmup 20\n")
    assert len(told.splitlines()) == 4 + 1 + 1 + len(document["curve"])


def test_a_hazard_is_fitted_to_stores(monkeypatch: pytest.MonkeyPatch, hazard: Hazard) -> None:
    given: list[list[str]] = []

    def fitted(*groups: list[OpenedStudy]) -> Hazard:
        given.extend([source.study.name for source in group] for group in groups)
        return hazard

    monkeypatch.setattr(statements, "fitted_hazard", fitted)
    paths = [DATA / f"{name}.zarr" for name in ("critical_rate_depth", "waiting_time", "waiting_time_low")]
    found, setting = statements.open_hazard(paths)
    assert found is hazard and setting.model == BASE.model
    assert given == [["waiting_time", "waiting_time_low"], ["critical_rate_depth"]]
    with pytest.raises(ValueError, match="give stores of both"):
        statements.open_hazard(paths[:1])
    with pytest.raises(ValueError, match="or one forecast alone"):
        statements.open_hazard([*paths, FORECAST])


def test_a_forecast_says_to_which_runs_its_hazard_was_fitted(hazard: Hazard, tmp_path: Path) -> None:
    """Older ones name only the stores, which are those of named studies."""
    path = tmp_path / "forecast.json"
    wide = BASE.with_fields({"width": 32, "heads": 2, "text_width": 32})
    stored = {"hazard": hazard.document(), "setting": wide.document(), "made_from": {"waiting_time.zarr": ""}}
    path.write_text(json.dumps(stored))
    assert statements.open_hazard([path])[1] == wide
    path.write_text(json.dumps({**stored, "made_from": {"mine.zarr": ""}, "setting": None}))
    with pytest.raises(ValueError, match="must be a JSON object"):
        statements.open_hazard([path])
    del stored["setting"]
    path.write_text(json.dumps(stored))
    assert statements.open_hazard([path])[1].model == BASE.model
    path.write_text(json.dumps({**stored, "made_from": {"mine.zarr": ""}}))
    with pytest.raises(ValueError, match="write the forecast again"):
        statements.open_hazard([path])
