"""The early warning on the committed studies: its fit, its scores, its groups, and the re-forecast."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import rankdata

from meanmode.sim.onset.early_warning import FEATURES, HORIZONS, RATE_CONSTANT, WARNING, EarlyWarning
from meanmode.sweeps.engine.store_kinds import OpenedStudy
from meanmode.sweeps.studies.hazards.reforecast import rate_constant, reforecast_rows, reforecast_summary
from meanmode.sweeps.studies.hazards.warning_rows import (
    BROKEN,
    FITTED,
    SAME,
    SCHEDULES,
    SETTINGS,
    grouped_rows,
    warning_rows,
)
from meanmode.sweeps.studies.hazards.warning_scores import (
    THIS,
    Judged,
    alarm_row,
    calibration_rows,
    case_rows,
    score_rows,
)

DATA = Path(__file__).parents[3] / "paper_figs" / "data"


def opened(name: str) -> OpenedStudy:
    return OpenedStudy.open(DATA / f"{name}.zarr")


@pytest.fixture(scope="module")
def fitted() -> list[OpenedStudy]:
    return [opened(name) for name in FITTED]


@pytest.fixture(scope="module")
def rows(fitted: list[OpenedStudy]) -> pd.DataFrame:
    return pd.concat([warning_rows(source) for source in fitted], ignore_index=True)


@pytest.fixture(scope="module")
def groups(fitted: list[OpenedStudy]) -> dict[str, pd.DataFrame]:
    names = ("critical_rate_settings", "interventions", "stabilisers")
    return grouped_rows([opened(name) for name in names], fitted)


def test_the_coefficients_are_those_of_the_committed_runs(rows: pd.DataFrame) -> None:
    left, known = rows["left"].to_numpy(), rows["known"].to_numpy()
    fit = EarlyWarning.fit(rows[list(FEATURES)].to_numpy(), left, known)
    assert rows["run"].nunique() == 907 and (rows["left"] > 0).all()
    for horizon in HORIZONS:
        assert fit.coefficients[horizon] == pytest.approx(WARNING.coefficients[horizon], abs=2e-3)


def test_runs_are_grouped_by_how_far_they_are_from_the_fitted_ones(
    groups: dict[str, pd.DataFrame], fitted: list[OpenedStudy]
) -> None:
    cases = {name: set(of["case"]) for name, of in groups.items()}
    no_mean = {"mean of branches deleted", "MV-Split, alpha frozen at 0", "MV-Split, alpha frozen"}
    assert cases[BROKEN] == {"batch 1", "beta1 0", "one batch for ever"} | no_mean
    assert cases[SCHEDULES] == {"24 blocks", "48 blocks", "200 blocks"} and cases[SAME] == {
        "nothing",
        "plain",
    }
    assert groups[SETTINGS]["run"].nunique() == 320 and set(cases) == {SAME, SETTINGS, SCHEDULES, BROKEN}
    entered = grouped_rows([opened("critical_rate_entry")], fitted)
    assert set(entered) == {SCHEDULES} and set(grouped_rows(fitted[2:], fitted)) == {SAME}


def test_it_is_sharp_and_calibrated_on_other_settings(
    groups: dict[str, pd.DataFrame], rows: pd.DataFrame
) -> None:
    """The targets: AUROC .95 and .93, skill .35, and .2 to .8 within .10 of what was observed."""
    found = {(row["horizon"], row["model"]): row for row in score_rows({SETTINGS: groups[SETTINGS]}, rows)}
    for horizon, least in ((25, 0.95), (50, 0.93)):
        own = found[horizon, THIS]
        assert own["auroc"]["value"] >= least and own["skill"]["value"] >= 0.35
        rivals = [row for (of, name), row in found.items() if of == horizon and name != THIS]
        assert len(rivals) == 4
        assert all(row["skill"]["value"] < own["skill"]["low"] for row in rivals)
        middle = [row for row in calibration_rows(groups[SETTINGS], horizon) if 0.2 <= row["from"] < 0.8]
        assert max(abs(row["predicted"] - row["value"]) for row in middle) <= 0.10
    broken = {row["case"]: row for row in case_rows(groups[BROKEN])}["one batch for ever"]
    assert broken["collapsed"] == 7 and broken["predicted"] < 0.1 * broken["observed"]


def test_scores_of_resampled_runs_are_those_of_their_rows() -> None:
    generator = np.random.default_rng(1)
    chances, outcomes = generator.random(400), generator.random(400) < 0.3
    run = np.repeat(np.arange(20), 20)
    counts = np.stack([np.ones(20), generator.integers(0, 3, 20)]).astype(float)
    judged = Judged(outcomes=outcomes, run=run, counts=counts)
    drawn = np.repeat(np.arange(400), counts[1][run].astype(int))
    for number, members in enumerate((np.arange(400), drawn)):
        hit, ranks = outcomes[members], rankdata(chances[members])
        pairs = hit.sum() * (~hit).sum()
        auroc = (ranks[hit].sum() - hit.sum() * (hit.sum() + 1) / 2) / pairs
        skill = 1 - np.mean((chances[members] - hit) ** 2) / hit.var()
        assert judged.auroc(chances)[number] == pytest.approx(auroc, abs=2e-3)
        assert judged.skill(chances)[number] == pytest.approx(skill)
        assert judged.share(chances > 0.5)[number] == pytest.approx(hit[chances[members] > 0.5].mean())


def test_an_alarm_is_right_if_the_collapse_follows_soon() -> None:
    table = pd.DataFrame(
        {
            "run": ["a", "a", "b", "b", "c", "d"],
            "step": [5, 10, 5, 10, 5, 5],
            "onset": [60.0, 60.0, 300.0, 300.0, np.inf, 40.0],
        }
    )
    table["left"] = table["onset"] - table["step"]
    found = alarm_row(table, np.array([0.1, 0.9, 0.9, 0.9, 0.9, 0.1]), 0.5)
    assert (found["alarms"], found["right"], found["collapsed"], found["lead"]) == (3, 1, 3, 50.0)
    assert (found["precision"], found["recall"]) == pytest.approx((1 / 3, 1 / 3))


def test_the_critical_rate_is_forecast_from_the_middle_of_a_run(fitted: list[OpenedStudy]) -> None:
    assert rate_constant(fitted[2]) == pytest.approx(RATE_CONSTANT, abs=1e-3)
    found = reforecast_rows(opened("critical_rate_settings"))
    summary = reforecast_summary([row for row in found if not row["broken"]])
    assert summary["error"]["median"] <= 0.15 < summary["error_power_law"]["median"]
    by_case = {row["case"]: row for row in found}
    assert by_case["width 64"]["reforecast"] is None  # all runs collapse before step 150
    assert by_case["one batch for ever"]["error"] > 1 and by_case["one batch for ever"]["broken"]
    assert by_case["batch 64"]["measured"] is None and "error" not in by_case["batch 64"]
