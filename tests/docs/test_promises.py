"""The committed stores meet what the theory promises, and forecasts are older than what they speak of."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from meanmode.sim.onset.training_onset import training_onset
from meanmode.sim.store.run_reader import open_run
from meanmode.sim.store.sweep_store import open_cells
from meanmode.sweeps.named.waiting_time import LAW
from meanmode.sweeps.studies.comparison import compare
from meanmode.sweeps.studies.forecast_files import store_hash
from meanmode.sweeps.studies.half_rates import half_rates
from meanmode.sweeps.studies.waiting_times import waiting_times
from meanmode.theory.meanfield.coverage import ALL_PAIRS, MEASURED, follows_gram
from meanmode.theory.onset.functional_law import FunctionalLaw
from meanmode.theory.setting import Setting

ROOT = Path(__file__).parents[2]
DATA = ROOT / "paper_figs" / "data"
STORES = [DATA / f"{name}.zarr" for name in ("collapse_front", "collapse_front_alpha_one")]
SETTINGS = [DATA / f"{name}.zarr" for name in ("front_settings", "front_settings_large")]
HALF_RATES = ("waiting_time", "waiting_time_low", "waiting_time_between", "waiting_time_deep")
HALF_RATES += ("waiting_time_400", "waiting_time_400_low", "waiting_time_1000")


def test_the_settings_meet_what_the_theory_promises() -> None:
    """28 fronts: mean |error| at most 4 %, worst 10 %, spread within [2/3, 3/2]; the rest by side."""
    rows = compare(SETTINGS)["rows"]
    fronts = [row for row in rows if row["predicted"] is not None and row["input_cosine"] != 0.65]
    errors = [abs(row["relative_error"]) for row in fronts]
    assert len(fronts) == 28 and sum(errors) / 28 <= 0.04 and max(errors) <= 0.10
    assert sum(2 / 3 <= row["spread_ratio"] <= 3 / 2 for row in fronts) >= 26
    for row in rows:
        if row not in fronts:
            assert (row["n_collapsed"] > row["n"] / 2) == (row["predicted_fraction"] > 0.5)
            assert row["fraction_p"] > 0.01


def test_coverage_says_what_the_stores_show() -> None:
    """Scores of both recursions, front and amplification, computed from the stores that they name."""
    names = {entry.name for entry in dataclasses.fields(Setting)}
    for recursion, measured in MEASURED.items():
        for score in measured.scores:
            key = "spread_ratio" if score.quantity == "front" else "median_log_error"
            rows = [
                row
                for row in compare([DATA / f"{name}.zarr" for name in score.stores])["rows"]
                if row.get(key) is not None and row["relative_error"] is not None
                if follows_gram(Setting(**{name: row[name] for name in names & set(row)}))
                == (recursion == ALL_PAIRS)
            ]
            if score.quantity == "front":
                errors = np.abs([row["relative_error"] for row in rows])
                found = (len(rows), errors.mean(), errors.max())
            else:
                errors = np.array([row["median_log_error"] for row in rows])
                found = (len(rows) // 2, np.median(errors), errors.max())
            assert found[0] == score.cases
            assert found[1:] == pytest.approx((score.typical, score.largest), abs=5.1e-4)


def test_fronts_of_structured_inputs_meet_what_was_expected_of_them() -> None:
    """Error at most 5 % and |z| at most 3 but in one cell each; of the chain itself |z| at most 3 in all."""
    rows = compare([DATA / "structured_fronts.zarr"])["rows"]
    fronts = [row for row in rows if "spread_ratio" in row]
    assert len(fronts) == 52 and all(row["n"] == 128 for row in fronts)
    assert sum(abs(row["relative_error"]) > 0.0505 for row in fronts) == 1
    assert sum(abs(row["z"]) > 3 for row in fronts) == 1
    chain = json.loads((DATA / "gram_chain.json").read_text())
    for row, exact in zip(fronts, chain["exact"], strict=True):
        error = np.hypot(row["measured_sem"], exact["front_std"] / exact["n"] ** 0.5)
        assert abs(exact["front"] - row["measured"]) < 3 * error
        assert 0.8 <= exact["front_std"] / row["measured_std"] <= 1.25
    for case in chain["cases"].values():
        theory, network = (np.array(case[side]["tcs"]) for side in ("predicted", "measured"))
        assert np.sqrt(np.mean((theory - network) ** 2)) <= 0.03


def test_profiles_and_amplification_meet_what_the_theory_promises() -> None:
    """rms of TCS at most 0.03 at width 512; A within 15 % before the front from width 256 on."""
    rows = compare([DATA / "depth_profiles.zarr", DATA / "token_law.zarr"])["rows"]
    wide = [row for row in rows if row["width"] == 512 and row["quantity"] == "tcs_profile"]
    assert len(wide) == 1 and wide[0]["rms_error"] <= 0.03
    amplified = [row for row in rows if row["quantity"].startswith("amplification") and row["width"] >= 256]
    assert len(amplified) == 22 and all(abs(row["worst_relative_error"]) <= 0.15 for row in amplified)


def test_the_committed_sweep_meets_what_the_theory_promises() -> None:
    """Mean |error| at most 4 %, each within 3 standard errors + 3 %, spread within [2/3, 3/2] in 10 of 12."""
    rows = [row for row in compare(STORES[:1])["rows"] if row["merge"] == "plain"]
    assert len(rows) == 12 and all(row["n"] == 32 for row in rows)
    assert sum(abs(row["relative_error"]) for row in rows) / 12 <= 0.04
    for row in rows:
        assert abs(row["predicted"] - row["measured"]) <= 3 * row["measured_sem"] + 0.03 * row["measured"]
    assert sum(2 / 3 <= row["spread_ratio"] <= 3 / 2 for row in rows) >= 10
    split = [row for row in compare(STORES[:1])["rows"] if row["merge"] == "mv_split"]
    assert len(split) == 12 and all(row["quantity"] == "no_front" for row in split)
    (full,) = compare(STORES[1:])["rows"]
    assert full["predicted"] is not None and full["n_collapsed"] == 32


def test_the_half_rates_are_those_of_law_o2() -> None:
    """Within 6 % up to 128 blocks, and every forecast with an interval covered."""
    forecasts = {name: json.loads((DATA / f"{name}.forecast.json").read_text()) for name in HALF_RATES}
    runs = pd.concat([waiting_times(open_cells(DATA / f"{name}.zarr")) for name in HALF_RATES])
    law = FunctionalLaw.of_document(json.loads((DATA / LAW).read_text())["law"])
    rows = half_rates(runs, forecasts)
    for row in rows:
        if row["depth"] <= 128:
            assert abs(law.constant_rate(row["depth"]) / row["value"] - 1) < 0.06
    assert [row["covered"] for row in rows] == [None, True, None, True, None, True, True, True, None, None]


@pytest.mark.parametrize("study", HALF_RATES)
def test_half_rates_were_forecast_from_the_committed_stores(study: str) -> None:
    document = json.loads((DATA / f"{study}.forecast.json").read_text())
    for path, made_from in document["made_from"].items() if "half_rates" in document else ():
        assert store_hash(open_cells(ROOT / path)) == made_from


@pytest.mark.parametrize("study", ["critical_rate_deep", "critical_rate_slopes", "critical_rate_settings"])
def test_forecasts_are_older_than_what_they_speak_of(study: str) -> None:
    """The forecast in the store is the committed one, and was made from the committed measurements."""
    document = json.loads((DATA / f"{study}.forecast.json").read_text())
    data = open_cells(DATA / f"{study}.zarr")
    for row in document["rows"]:
        held = data["predicted"].values[data["case"].values == row["case"]]
        assert held == pytest.approx(row["predicted"])
    for path, made_from in document["made_from"].items():
        assert store_hash(open_cells(ROOT / path)) == made_from


@pytest.mark.parametrize("store", ["digits_16l", "digits_400l", "digits_1000l"])
def test_the_plain_runs_collapse(store: str) -> None:
    assert training_onset(open_run(DATA / f"{store}.zarr")).kind == "mean_mode"


@pytest.mark.parametrize(
    "store",
    [
        *("digits_16l_mvsplit", "digits_400l_mvsplit", "digits_1000l_mvsplit", "digits_400l_mvsplit_beta1"),
        *("digits_400l_mvsplit_long", "digits_1000l_mvsplit_long"),
    ],
)
def test_the_runs_with_mv_split_have_none(store: str) -> None:
    assert training_onset(open_run(DATA / f"{store}.zarr")).kind == "none"


def test_trained_samples_lie_between_real_and_untrained_ones() -> None:
    document = json.loads((DATA / "fashion_evaluation.json").read_text())
    value = {
        row["name"].partition("(")[0] + row["name"].partition("500, ")[2][:4]: row["value"]
        for row in document["rows"]
    }
    for metric in ("FID", "KID"):
        of = [value[f"{metric}-EffNetLite0{which}"] for which in ("real", "nfe=", "untr")]
        assert of == sorted(of) and of[1] < of[2] / 2


def test_the_time_is_in_the_mean_of_the_image_tokens() -> None:
    """R^2 above 0.98 after every block, and the controls where they should be."""
    rows = json.loads((DATA / "timestep_probe.json").read_text())["rows"]
    r2 = {(row["network"], row["feature"], row["block"]): row["r2"] for row in rows}
    assert all(r2["trained", "image_mean", block] > 0.98 for block in range(1, 7))
    assert all(r2["untrained", "image_mean", block] < 0.15 for block in range(7))
    assert r2["trained", "input_statistics", 0] < 0.15 and abs(r2["trained", "text_mean", 0]) < 0.01
    assert all(abs(row["shuffled_r2"]) < 0.01 for row in rows)
