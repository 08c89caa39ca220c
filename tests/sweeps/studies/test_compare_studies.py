"""Comparison of studies: medians of critical rates, forecasts, and effects on a baseline."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meanmode.sim.store.sweep_store import open_cells, open_progress
from meanmode.sweeps.engine.store_kinds import stored_plan
from meanmode.sweeps.engine.study import Case, Study
from meanmode.sweeps.named.critical_rate import BASE, CRITICAL_RATE_DEPTH
from meanmode.sweeps.named.waiting_time import WAITING_TIME
from meanmode.sweeps.studies.comparison import compare
from meanmode.sweeps.studies.critical_rates import effects, study_onsets, study_rows

DATA = Path(__file__).parents[3] / "paper_figs" / "data"
STEPS = 60
KEYS = {"case", "clip", "quantity", "predicted", "predicted_std", "measured", "measured_at_least"}
KEYS |= {"measured_sem", "n", "z", "relative_error", "covered", "n_collapsed", "n_diverged", "n_to_do"}
KEYS |= {f"{side}_{end}" for side in ("predicted", "measured") for end in ("low", "high")}

Craft = Callable[..., Path]


def study(*labels: str, seeds: int = 3, **changes: Any) -> Study:
    """Cases of 60 steps under a ramp of 5e-5 per step; they differ in the clip."""
    cases = tuple(Case(label=label, options={"clip": 1.0 + number}) for number, label in enumerate(labels))
    base = BASE.with_fields({"steps": STEPS})
    return Study(name="tiny", claim="tiny", base=base, cases=cases, seeds=seeds, **changes)


def rate(step: float) -> float:
    """Rate of the ramp at a step, to the precision of a store."""
    return pytest.approx(5e-5 * step, rel=1e-6)


@pytest.mark.parametrize(
    ("onsets", "measured", "at_least", "counts"),
    [
        ((30, 20, 24), 24, None, (3, 0)),
        ((20, None, 24), 24, None, (2, 0)),
        ((20, None, None), None, 60, (1, 0)),
        ((None, None, None), None, 60, (0, 0)),
        ((20, 24, -10), None, 20, (2, 1)),
        ((-40, 22, 24), 24, None, (2, 1)),
    ],
    ids=["all", "one never", "most never", "none", "an early divergence", "a late divergence"],
)
def test_a_run_that_does_not_collapse_is_above_its_last_rate(
    crafted_study: Craft,
    tmp_path: Path,
    onsets: tuple[int | None, ...],
    measured: int | None,
    at_least: int | None,
    counts: tuple[int, int],
) -> None:
    (row,) = study_rows(open_cells(crafted_study(study("a"), tmp_path / "s.zarr", {"a": onsets})))
    assert set(row) == KEYS and row["case"] == "a" and row["clip"] == 1.0
    assert row["quantity"] == "critical_rate" and row["n"] == 3 and row["n_to_do"] == 0
    assert row["measured"] == (None if measured is None else rate(measured))
    assert row["measured_at_least"] == (None if at_least is None else rate(at_least))
    assert (row["n_collapsed"], row["n_diverged"]) == counts
    assert row["predicted"] is None and row["covered"] is None and row["relative_error"] is None


@pytest.mark.parametrize(
    ("onset", "covered", "error"), [(30, True, 1 / 30), (20, False, 11 / 20), (None, False, None)]
)
def test_forecasts_stand_beside_what_was_measured(
    crafted_study: Craft, tmp_path: Path, onset: int | None, covered: bool, error: float | None
) -> None:
    """The forecast is step 31, with interval 29 to 33; one rival says step 40, another says nothing."""
    forecast = {"predicted": 31 * 5e-5, "predicted_low": 29 * 5e-5, "predicted_high": 33 * 5e-5}
    forecast |= {"predicted_edge": 40 * 5e-5, "predicted_edge_low": 1.0, "predicted_silent": None}
    asked = study("a", forecast=({"case": "a", **forecast},))
    (row,) = study_rows(open_cells(crafted_study(asked, tmp_path / "s.zarr", {"a": (onset,) * 3})))
    assert row["predicted"] == 31 * 5e-5 and row["predicted_std"] == pytest.approx(2 * 5e-5 / 1.6448536)
    assert row["covered"] is covered
    assert set(row) - KEYS == {"predicted_edge", "error_edge", "predicted_silent", "error_silent"}
    assert row["predicted_silent"] is None and row["error_silent"] is None
    if error is not None:
        assert row["relative_error"] == pytest.approx(error, rel=1e-5)
        assert row["error_edge"] == pytest.approx(40 / (onset or 0) - 1, rel=1e-5)


def test_a_forecast_that_a_censored_median_may_have_is_undecided(
    crafted_study: Craft, tmp_path: Path
) -> None:
    forecast = {"case": "a", "predicted": 0.004, "predicted_low": 0.002, "predicted_high": 0.005}
    store = crafted_study(study("a", forecast=(forecast,)), tmp_path / "s.zarr", {"a": (None,) * 3})
    (row,) = study_rows(open_cells(store))
    assert row["covered"] is None and row["measured_at_least"] == rate(60)


def test_z_counts_measured_standard_errors(crafted_study: Craft, tmp_path: Path) -> None:
    forecast = {"case": "a", "predicted": 0.002, "predicted_low": 0.001, "predicted_high": 0.003}
    asked = study("a", seeds=8, forecast=(forecast,))
    (row,) = study_rows(open_cells(crafted_study(asked, tmp_path / "s.zarr", {"a": range(20, 36, 2)})))
    assert row["measured"] == rate(27) and row["measured_low"] < row["measured"] < row["measured_high"]
    assert 5e-5 < row["measured_sem"] < 5e-5 * 4
    assert row["z"] == pytest.approx((row["measured"] - 0.002) / row["measured_sem"])


def test_runs_at_a_constant_rate_have_an_onset_step(crafted_study: Craft, tmp_path: Path) -> None:
    base = WAITING_TIME.base.with_fields({"steps": STEPS})
    asked = dataclasses.replace(study("a"), base=base)
    (row,) = study_rows(open_cells(crafted_study(asked, tmp_path / "s.zarr", {"a": (30, 20, None)})))
    assert row["quantity"] == "onset_step" and row["measured"] == 30


def test_an_unfinished_study_is_compared_by_what_there_is(
    mms: Callable[..., tuple[int, str, str]], crafted_study: Craft, tmp_path: Path
) -> None:
    store = crafted_study(study("plain", "b", "c"), tmp_path / "s.zarr", {"plain": (20, 22, None)})
    data = open_cells(store)
    first, *others = study_rows(data)
    assert first["measured"] == rate(22) and [row["n_to_do"] for row in others] == [3, 3]
    assert all(row["measured"] is None and row["n"] == 0 for row in (*others, *effects(data)))
    document = json.loads(mms("compare", store, "--json")[1])
    assert document["rows"] == [*study_rows(data), *effects(data)]
    cells = json.loads(mms("onset", store, "--json")[1])["cells"]
    assert cells == study_onsets(data) and [cell["onset_step"] for cell in cells] == [20, 22, None]
    assert cells[2]["onset_kind"] == "none" and cells[2]["critical_rate"] is None
    assert json.loads(mms("sweep", "status", store, "--json")[1])["to_do"] == 6
    assert "plain" in mms("compare", store)[1] and "mean_mode" in mms("onset", store)[1]


def test_the_store_of_a_study_tells_the_study(crafted_study: Craft, tmp_path: Path) -> None:
    asked = study("a", "b")
    assert stored_plan(open_progress(crafted_study(asked, tmp_path / "s.zarr", {})).attrs) == asked


@pytest.fixture(scope="module")
def compared(crafted_study: Craft, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Effects relative to a baseline with onsets 50, 40, 30: halved, never, or before the loss is taken."""
    onsets = {"nothing": (50, 40, 30), "half": (25, 20, 15), "never": (None,) * 3, "soon": (5, 5, -5)}
    store = crafted_study(study(*onsets), tmp_path_factory.mktemp("effects") / "s.zarr", onsets)
    return effects(open_cells(store))


def test_ratios_to_the_baseline_are_of_pairs(compared: list[dict[str, Any]]) -> None:
    rows = {row["case"]: row for row in compared if row["quantity"] == "critical_rate_ratio"}
    assert list(rows) == ["half", "never", "soon"]
    half, never = rows["half"], rows["never"]
    assert half["measured"] == half["measured_low"] == half["measured_high"] == pytest.approx(0.5)
    assert half["baseline"] == "nothing" and half["n"] == 3 and half["relative_error"] is None
    assert never["measured"] is None and never["measured_at_least"] == pytest.approx(60 / 40)
    assert never["measured_low"] == pytest.approx(60 / 50) and never["measured_high"] is None


def test_losses_are_compared_at_one_step(compared: list[dict[str, Any]]) -> None:
    """At step 20 (0.6 of 40, rounded to 10); a run that ended earlier counts as worse than any other."""
    rows = {row["case"]: row for row in compared if row["quantity"] == "loss"}
    assert {row["at_step"] for row in compared if row["quantity"] == "loss"} == {20}
    half, soon = rows["half"], rows["soon"]
    assert half["measured"] == pytest.approx(0.99) and half["baseline_loss"] == pytest.approx(-0.01)
    found = [half[name] for name in ("difference", "difference_low", "difference_high")]
    assert found == pytest.approx([1.0, 1.0, 1.0])
    assert rows["never"]["difference"] == pytest.approx(2.0)
    assert soon["measured"] is None and soon["difference"] is None


def test_every_rung_has_its_own_baseline(crafted_study: Craft, tmp_path: Path) -> None:
    onsets = {"small: nothing": (20,) * 3, "small: x": (30,) * 3, "large: nothing": (40,) * 3}
    onsets["large: x"] = (20,) * 3
    rows = effects(open_cells(crafted_study(study(*onsets), tmp_path / "s.zarr", onsets)))
    found = {row["case"]: row for row in rows if row["quantity"] == "critical_rate_ratio"}
    assert found["small: x"]["measured"] == pytest.approx(1.5)
    assert found["large: x"]["measured"] == pytest.approx(0.5)
    assert found["large: x"]["baseline"] == "large: nothing"
    assert [row["at_step"] for row in rows if row["quantity"] == "loss"] == [10, 20]


def test_a_study_without_a_baseline_has_no_effects(crafted_study: Craft, tmp_path: Path) -> None:
    onsets = {"8 blocks": (20,) * 3, "16 blocks": (30,) * 3}
    assert effects(open_cells(crafted_study(study(*onsets), tmp_path / "s.zarr", onsets))) == []


def test_the_committed_study_of_depths() -> None:
    """Medians of 24 runs, compared with the stored numbers."""
    path = DATA / "critical_rate_depth.zarr"
    document = compare([path])
    data = open_cells(path)
    expected = data["critical_rate"].groupby("depth").median().values
    assert [row["measured"] for row in document["rows"]] == pytest.approx(expected.tolist())
    assert [row["depth"] for row in document["rows"]] == [
        case.options["depth"] for case in CRITICAL_RATE_DEPTH.cases
    ]
    assert document["median_abs_relative_error"] is None
    json.dumps(document, allow_nan=False)
