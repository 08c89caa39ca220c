"""The README says what the code gives: its tables are regenerated, its commands and its Python are run."""

import json
import re
import shlex
import sys
from pathlib import Path

import pandas as pd
import pytest

from meanmode.sim.onset.training_onset import training_onset
from meanmode.sim.store.run_reader import open_run
from meanmode.sim.store.sweep_store import open_cells
from meanmode.sweeps.cli import main as cli
from meanmode.sweeps.cli.waiting import interval_text
from meanmode.sweeps.studies.comparison import compare
from meanmode.sweeps.studies.detection import VIEWS, labelled_runs, score
from meanmode.sweeps.studies.forecast_files import store_hash
from meanmode.sweeps.studies.half_rates import half_rates
from meanmode.sweeps.studies.markdown import as_tables, exponent_text, front_table, profile_table
from meanmode.sweeps.studies.waiting_times import LAW, waiting_times
from meanmode.theory.laws.all_laws import LAWS
from meanmode.theory.onset.functional_law import FunctionalLaw

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DATA = ROOT / "paper_figs" / "data"
STORES = [DATA / f"{name}.zarr" for name in ("collapse_front", "collapse_front_alpha_one")]
SETTINGS = [DATA / f"{name}.zarr" for name in ("front_settings", "front_settings_large")]


def section(title: str) -> str:
    return README.split(f"## {title}\n")[1].split("\n## ")[0]


def blocks(title: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", section(title), re.DOTALL)


COMMANDS = [line.split("#")[0].strip() for line in blocks("The command line", "sh")[0].splitlines()]
TRAINING = re.sub(r"#.*", "", blocks("Training", "sh")[0]).replace("\\\n", " ").splitlines()


def test_the_table_of_laws_is_the_registry() -> None:
    lines = ["| tag | law | statement | source |", "| --- | --- | --- | --- |"]
    for law in LAWS.values():
        statement = law.statement.replace("|", "\\|")
        lines.append(f"| {law.tag} | {law.title} | `{statement}` | {law.source} |")
    assert "\n".join(lines) in section("The laws")


def test_the_tables_are_made_from_the_committed_stores() -> None:
    text = section("Predicted against measured")
    assert front_table(compare(STORES)) in text
    assert front_table(compare(SETTINGS)) in text
    assert front_table(compare([DATA / "mixers.zarr"])) in text
    assert profile_table(compare([DATA / "depth_profiles.zarr"])) in text
    assert exponent_text(compare([DATA / "token_law.zarr"]), 1) in " ".join(text.split())


@pytest.mark.parametrize(
    "study",
    [
        *("critical_rate_deep", "critical_rate_slopes", "critical_rate_settings"),
        *("interventions", "ladder", "stabilisers", "stabilisers_deep"),
    ],
)
def test_the_tables_of_studies_are_made_from_the_committed_stores(study: str) -> None:
    text = section("When a run collapses")
    tables = as_tables(compare([DATA / f"{study}.zarr"])).split("\n\n")
    assert [table for table in tables if table not in text] == []


DETECTED = ("ladder", "stabilisers_deep", "waiting_time_low")
"""Studies that the rules of the detector were not set on."""


@pytest.mark.parametrize(
    "view",
    [
        *("all signals, every 10 steps", "loss and gradient norm, every 10 steps"),
        pytest.param("all signals, every step", marks=pytest.mark.slow),
        pytest.param("unknown names", marks=pytest.mark.slow),
        pytest.param("loss and gradient norm", marks=pytest.mark.slow),
    ],
)
def test_the_detector_does_what_the_table_says(view: str) -> None:
    runs = labelled_runs([DATA / f"{study}.zarr" for study in DETECTED])
    row = score(runs, VIEWS[view]).row(view)
    found = "{:.1f} % ({:.1f} to {:.1f})".format(
        *(100 * row[name] for name in ("found", "found_low", "found_high"))
    )
    line = f"| {view} | {found} | {row['median_lead']:.0f} | {row['false_per_10000']:.1f}"
    assert line in section("When a run collapses")


HALF_RATES = ("waiting_time", "waiting_time_low", "waiting_time_between", "waiting_time_deep")
HALF_RATES += ("waiting_time_400", "waiting_time_400_low", "waiting_time_1000")


def test_the_half_rates_are_those_of_the_committed_stores() -> None:
    """And the law within 6 % up to 128 blocks, every forecast with an interval covered."""
    forecasts = {name: json.loads((DATA / f"{name}.forecast.json").read_text()) for name in HALF_RATES}
    runs = pd.concat([waiting_times(open_cells(DATA / f"{name}.zarr")) for name in HALF_RATES])
    law = FunctionalLaw.of_document(json.loads((DATA / LAW).read_text())["law"])
    text = section("When a run collapses")
    rows = half_rates(runs, forecasts)
    for row in rows:
        value, *ends = (
            "..." if row[name] is None else f"{row[name]:.3g}" for name in ("value", "low", "high")
        )
        foretold = f"{law.constant_rate(row['depth']):.3g}"
        if row["predicted_high"]:
            foretold += f" ({row['predicted_low']:.3g} to {row['predicted_high']:.3g})"
        line = f"{row['predicted_power_law']:.3g}" if row["predicted_power_law"] else "-"
        measured = f"{value} ({ends[0]} to {ends[1]})"
        assert (
            f"| {row['depth']} | {foretold} | {line} | {measured} | {row['collapsed']} of {row['runs']} |"
            in text
        )
        if row["depth"] <= 128:
            assert abs(law.constant_rate(row["depth"]) / row["value"] - 1) < 0.06
    assert [row["covered"] for row in rows] == [None, True, None, True, None, True, True, True, None, None]
    for name, document in forecasts.items():
        for path, made_from in document["made_from"].items() if "half_rates" in document else ():
            assert store_hash(ROOT / path) == made_from, name


@pytest.mark.parametrize("document", ["waiting_time", "waiting_time_between"])
def test_the_predictors_are_those_of_the_committed_scores(document: str) -> None:
    rows = json.loads((DATA / f"{document}.scores.json").read_text())["scores"]
    text = section("When a run collapses").replace("+", "")
    for row in rows:
        scores = " | ".join(interval_text(row[name]) for name in ("brier", "auroc"))
        differences = row["against"].get("rate sqrt(depth)")
        less = differences and " | ".join(interval_text(differences[name]) for name in ("brier", "auroc"))
        assert not row["stated"] or f"| {row['predictor']} | {scores} | {less or '- | -'} |" in text


def test_forecasts_are_older_than_what_they_speak_of() -> None:
    """The forecast in the store is the committed one, and was made from the committed measurements."""
    for study in ("critical_rate_deep", "critical_rate_slopes", "critical_rate_settings"):
        document = json.loads((DATA / f"{study}.forecast.json").read_text())
        data = open_cells(DATA / f"{study}.zarr")
        for row in document["rows"]:
            held = data["predicted"].values[data["case"].values == row["case"]]
            assert held == pytest.approx(row["predicted"])
        for path, made_from in document["made_from"].items():
            assert store_hash(ROOT / path) == made_from


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


@pytest.mark.parametrize(
    ("store", "row"),
    [("digits_16l", "16 blocks"), ("digits_400l", "400 blocks"), ("digits_1000l", "1000 blocks")],
)
def test_the_onsets_are_those_of_the_committed_runs(store: str, row: str) -> None:
    run = open_run(DATA / f"{store}.zarr")
    found = training_onset(run)
    assert found.kind == "mean_mode"
    rate = float(run["lr"].sel(step=found.step))
    assert f"| {row}, plain | {run.sizes['step']} | {found.step} | {rate:#.3g} |" in section("Training")


@pytest.mark.parametrize(
    "store",
    [
        *("digits_16l_mvsplit", "digits_400l_mvsplit", "digits_1000l_mvsplit", "digits_400l_mvsplit_beta1"),
        *("digits_400l_mvsplit_long", "digits_1000l_mvsplit_long"),
    ],
)
def test_the_runs_with_mv_split_have_none(store: str) -> None:
    assert training_onset(open_run(DATA / f"{store}.zarr")).kind == "none"


def test_the_judgement_of_samples_is_the_committed_one() -> None:
    document, text = json.loads((DATA / "fashion_evaluation.json").read_text()), section("Real data")
    for row in document["rows"]:
        error = "-" if row["standard_error"] is None else f"{row['standard_error']:.2g}"
        assert f"| {row['name']} | {row['value']:.4g} | {error} |" in text
    value = {
        row["name"].partition("(")[0] + row["name"].partition("500, ")[2][:4]: row["value"]
        for row in document["rows"]
    }
    for metric in ("FID", "KID"):
        of = [value[f"{metric}-EffNetLite0{which}"] for which in ("real", "nfe=", "untr")]
        assert of == sorted(of) and of[1] < of[2] / 2


def test_the_time_is_in_the_mean_of_the_image_tokens() -> None:
    """R^2 above 0.9 behind every block, and the controls where they should be."""
    rows = json.loads((DATA / "timestep_probe.json").read_text())["rows"]
    r2 = {(row["network"], row["feature"], row["block"]): row["r2"] for row in rows}
    assert all(r2["trained", "image_mean", block] > 0.98 for block in range(1, 7))
    assert all(r2["untrained", "image_mean", block] < 0.15 for block in range(7))
    assert r2["trained", "input_statistics", 0] < 0.15 and abs(r2["trained", "text_mean", 0]) < 0.01
    assert all(abs(row["shuffled_r2"]) < 0.01 for row in rows)


def test_the_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "paper_figs").symlink_to(ROOT / "paper_figs")
    monkeypatch.chdir(tmp_path)
    assert len(COMMANDS) == 16
    for command in COMMANDS:
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert not stopped.value.code, command
    assert (tmp_path / "small.zarr").exists() and (tmp_path / "figures" / "token_law.png").exists()


@pytest.mark.parametrize("line", [line for line in TRAINING if "train" in line])
def test_the_examples_of_training_are_what_can_be_trained(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(line)
    monkeypatch.setattr(sys, "argv", ["mms", *words[words.index("train") :], "--dry-run"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code and json.loads(capsys.readouterr().out)["memory_bytes"]["total"] > 0


@pytest.mark.parametrize(
    ("title", "printed"), [("Reading a store", "('cell', 'block')"), ("A network of your own", "tensor(")]
)
def test_the_python_runs(
    title: str, printed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    (code,) = blocks(title, "python")
    exec(compile(code, "README.md", "exec"), {})
    assert printed in capsys.readouterr().out


def test_every_picture_is_there_and_nothing_is_left_to_fill_in() -> None:
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", README)
    assert len(pictures) > 10 and [name for name in pictures if not (ROOT / name).is_file()] == []
    assert (
        re.findall(r"\b[A-Z]{3,}_[A-Z]{3,}\b", re.sub(r"```.*?```|`[^`]*`", "", README, flags=re.DOTALL))
        == []
    )
