"""The command line: its JSON keys, its one-line errors and its exit codes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from meanmode.theory.laws.all_laws import LAWS
from meanmode.theory.meanfield.predicted_front import predict_front
from meanmode.theory.proof.law import PREMISES, Law
from meanmode.theory.setting import Setting

ROOT = Path(__file__).parents[3]


def test_verify_proves_all_laws(mms) -> None:
    status, out, _ = mms("verify", "--json")
    document = json.loads(out)
    assert status == 0 and document["all_proved"]
    assert [law["tag"] for law in document["laws"]] == list(LAWS)
    assert all(law["proved"] and law["steps"] > 0 and law["seconds"] >= 0 for law in document["laws"])
    assert all(law["steps"] == law["proved_steps"] + len(law["cited"]) for law in document["laws"])
    assert {law["tag"] for law in document["laws"] if law["prose"]} == {"X1", "N8", "N10", "E4"}


def test_verify_fails_with_one_when_a_law_fails(mms, monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    broken = dataclasses.replace(LAWS["P1"], derive=lambda premises: [])
    monkeypatch.setitem(LAWS, "P1", broken)
    status, out, _ = mms("verify", "P1", "P2")
    assert status == 1 and "1 of 2 laws proved" in out


def test_verify_fails_with_one_when_the_second_checker_disagrees(
    mms, monkeypatch: pytest.MonkeyPatch
) -> None:
    from meanmode.theory.proof.second_check import Comparison

    def compare(law: Law) -> tuple[Comparison, ...]:
        return tuple(Comparison(agrees=False, instances=1) for _ in law.derive(PREMISES))

    monkeypatch.setattr(Law, "compare", compare)
    status, out, _ = mms("verify", "P1")
    assert status == 1 and "0 of 1 laws proved" in out and "FAILED at: J^2 = J" in out


def test_a_law_shows_which_steps_prove_its_claims(mms) -> None:
    _, out, _ = mms("law", "X1")
    assert "- A' = k A\n  by step 17\n" in out and "in words: induction over the layers" in out
    _, out, _ = mms("law", "P2")
    assert "by steps 4, 5; cited in 6" in out and "[cited]" in out and "its conditions: " in out


def test_verify_prints_statement_assumptions_and_verdict(mms) -> None:
    status, out, _ = mms("verify", "A3")
    assert status == 0 and "0 <= A <= T" in out and "assumes" in out and "proved in" in out


@pytest.mark.parametrize("tag", LAWS)
@pytest.mark.parametrize("flags", [(), ("--latex",)])
def test_law_shows_its_steps(mms, tag: str, flags: tuple[str, ...]) -> None:
    status, out, _ = mms("law", tag, *flags)
    assert status == 0 and LAWS[tag].statement in out and "[proved]" in out and "FAILED" not in out


def test_predict_front_has_the_fixed_keys(mms) -> None:
    status, out, err = mms("predict", "front", "--tokens", 16, "--weight-std", 0.0625, "--json")
    document = json.loads(out)
    assert status == 0 and err == ""
    assert set(document) == {"front", "front_std", "front_deterministic", "coverage", "inputs"}
    assert document["coverage"]["recursion"] == "one cosine" and not document["coverage"]["outside"]
    setting = Setting(tokens=16, weight_std=0.0625)
    assert document["front"] == predict_front(setting).front
    assert document["inputs"]["tokens"] == 16
    assert json.loads(mms("predict", "front", "--merge", "mv_split", "--json")[1])["front"] is None
    assert "no collapse front is predicted" in mms("predict", "front", "--merge", "mv_split")[1]
    assert "beyond the 8 blocks" in mms("predict", "front", "--tokens", 16, "--depth", 8)[1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--from", "run", "--depth", 3), "--from brings its own network: leave out --depth"),
        (("--step", 3), "--step is a state of a run: name the run with --from"),
        (("--from", "nowhere"), "nowhere does not exist"),
    ],
)
def test_predict_front_of_a_run_refuses_what_it_cannot_use(mms, options: tuple[Any, ...], said: str) -> None:
    status, _, err = mms("predict", "front", *options)
    assert status == 2 and err.strip().endswith(said) and err.count("mms:") == 1


def test_predict_front_of_an_input_follows_its_cosines(mms, tmp_path: Path) -> None:
    stack = ("--tokens", 9, "--width", 32, "--heads", 1, "--weight-std", 0.2, "--depth", 16)
    same, halves = tmp_path / "same.npy", tmp_path / "halves.npy"
    np.save(same, np.ones((9, 5)))
    np.save(halves, np.repeat(np.eye(2), (5, 4), axis=0))
    documents = [
        json.loads(mms("predict", "front", "--input", source, *stack, "--json")[1])
        for source in (same, halves, "photo", "clusters", "video", "gaussian")
    ]
    fronts = [document["front"] for document in documents]
    assert fronts[0] == 0 < fronts[1] < fronts[3] < fronts[5] and fronts[4] < fronts[2] < fronts[5]
    assert documents[2]["inputs"]["input"] == "photo"
    covered = [document["coverage"] for document in documents]
    assert [of["recursion"] for of in covered] == ["all pairs"] * 5 + ["one cosine"]
    assert "width 32 (measured: 64 to 256)" in covered[2]["outside"]
    assert "between seeds" in mms("predict", "front", "--input", same, *stack)[1]
    assert "within 1 blocks" in mms("predict", "front", "--input", "clusters", "--depth", 1)[1]


def test_tokens_of_any_size_are_taken_and_of_another_number_refused(mms, tmp_path: Path) -> None:
    stack = ("--tokens", 9, "--width", 32, "--heads", 1, "--weight-std", 0.2, "--depth", 16)
    tokens = np.abs(np.random.default_rng(0).standard_normal((9, 3)))
    found = []
    for name, values in (("plain", tokens), ("far", tokens * 1e200), ("single", tokens.astype("float32"))):
        np.save(tmp_path / f"{name}.npy", values)
        status, out, err = mms("predict", "front", "--input", tmp_path / f"{name}.npy", *stack, "--json")
        assert status == 0, err
        found.append(json.loads(out)["front_deterministic"])
    assert found[0] == pytest.approx(found[1]) and found[0] == pytest.approx(found[2], rel=1e-5)
    status, _, err = mms("predict", "front", "--input", tmp_path / "plain.npy", "--tokens", 16)
    assert status == 2 and "shape (9, 3)" in err and "16 rows" in err
    np.save(tmp_path / "many.npy", np.ones((1025, 1)))
    status, _, err = mms("predict", "front", "--input", tmp_path / "many.npy", "--tokens", 1025)
    assert status == 2 and "up to 1024 tokens, got 1025" in err


def test_predict_exponents_at_every_fixed_point(mms, tmp_path: Path) -> None:
    document = json.loads(mms("predict", "exponents", "--ffn-ratio", 8, "--weight-std", 0.0625, "--json")[1])
    low, middle, high = document["fixed_points"]
    assert (low["cosine"], high["cosine"]) == (0, 1) and document["inputs"]["ffn_ratio"] == 8
    assert low["forward"] < 0 < middle["forward"] and high["forward"] < 0 < high["backward_mean"]
    assert low["row_entropy"] < middle["row_entropy"] < high["row_entropy"] < 4.16
    (only,) = json.loads(mms("predict", "exponents", "--merge", "hard_centering", "--json")[1])[
        "fixed_points"
    ]
    assert only["cosine"] == 0 and only["forward"] is None
    out = tmp_path / "forecast.json"
    assert mms("predict", "exponents", "--sweep", "trainability", "--out", out)[0] == 0
    document = json.loads(out.read_text())
    assert {row["quantity"] for row in document["rows"]} == {"forward", "backward_mean", "backward_centered"}
    for arguments, said in (
        (("--sweep", "trainability"), "go together"),
        (("--sweep", "trainability", "--out", out), "never overwritten"),
        (("--sweep", "committor", "--out", tmp_path / "c.json"), "committor trains"),
    ):
        status, _, err = mms("predict", "exponents", *arguments)
        assert status == 2 and said in err


def test_a_list_of_truth_values_is_an_axis(mms, tmp_path: Path) -> None:
    stack = ("--input", "video", "--frames", 4, "--tokens", 16, "--merge", "mv_split", "--width", 16)
    sweep = (
        "sweep",
        "run",
        "-n",
        *stack,
        "--heads",
        2,
        "--depth",
        2,
        "--input-cosine",
        0,
        "--weight-std",
        0.1,
    )
    one, both = (
        json.loads(mms(*sweep, "--frame-means", given, "--out", tmp_path / "s")[1])
        for given in ("false", "false,true")
    )
    assert one["base"]["frame_means"] is False and both["axes"]["frame_means"] == [False, True]


def test_dry_run_prints_work_and_forecast_and_writes_nothing(mms, tmp_path: Path) -> None:
    status, out, _ = mms("sweep", "run", "-n", "--tokens", "4,9", "--seeds", 2, "--out", tmp_path / "s.zarr")
    plan = json.loads(out)
    assert status == 0 and plan["cells"] == 32 and plan["axes"]["tokens"] == [4, 9]
    assert len(plan["forecast"]) == 16 and "predicted_front" in plan["forecast"][0]
    assert not (tmp_path / "s.zarr").exists()


def test_sweep_onset_compare_status_compact_figures(mms, tmp_path: Path) -> None:
    store = tmp_path / "collapse_front.zarr"
    stack = ("--width", 32, "--heads", 2, "--tokens", "4,9", "--weight-std", 0.2, "--depth", 20, "--rope")
    options = (*stack, "--input-cosine", "0,0.3", "--seeds", 2)
    status, out, _ = mms("sweep", "run", "collapse_front", *options, "--out", store)
    assert status == 0 and out == ""
    document = json.loads(mms("sweep", "status", store, "--json")[1])
    counts = {name: document[name] for name in ("to_do", "done", "failed", "diverged")}
    assert counts == {"to_do": 0, "done": 16, "failed": 0, "diverged": 0}
    assert "done 16" in mms("sweep", "status", store)[1]
    cells = json.loads(mms("onset", store, "--json")[1])["cells"]
    assert len(cells) == 16 and cells[0]["rope"] is True
    document = json.loads(mms("compare", store, "--json")[1])
    keys = {"quantity", "predicted", "predicted_std", "measured", "measured_sem", "n", "z", "relative_error"}
    assert all(keys <= set(row) for row in document["rows"]) and "median_abs_relative_error" in document
    assert "relative error" in mms("compare", store)[1]
    assert mms("sweep", "compact", store)[0] == 0
    assert json.loads(mms("compare", store, "--json")[1]) == document
    status, out, _ = mms("figures", "collapse_front", "--data", tmp_path, "--out", tmp_path / "png")
    assert status == 0 and Path(out.strip()).stat().st_size > 10_000


def test_sweep_list_names_the_sweeps(mms) -> None:
    assert "collapse_front:" in mms("sweep", "list")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("predict", "front", "--merge", "sum"), "unknown merge 'sum': choose one of plain"),
        (("predict", "front", "--tokens", "1"), "tokens must be at least 2, got 1"),
        (("predict", "front", "--width", "10"), "heads must divide width"),
        (("predict", "front", "--input-cosine", "1.5"), "input_cosine must be in [0, 1), got 1.5"),
        (("predict", "front", "--tokens", "many"), "'many' is not a valid integer"),
        (("predict", "front", "--colour", "red"), "No such option"),
        (("predict", "front", "--merge", "pre_norm"), "no theory for the merge 'pre_norm'"),
        (("predict", "front", "--input", "photo", "--batch", "2"), "batch must be 1, got 2"),
        (("predict", "front", "--input", "video", "--frames", "3"), "the patches of an image form a square"),
        (("predict", "front", "--input", "absent.npy"), "or a .npy file of tokens, got 'absent.npy'"),
        (
            ("predict", "exponents", "--sweep", "trainability", "--out", "absent.json", "--width", "64"),
            "--sweep brings its own settings: leave out --width",
        ),
        (("sweep", "run", "nothing"), "unknown sweep 'nothing'"),
        (("sweep", "run", "--tokens", "4,x"), "'4,x' is not a comma-separated list of int values"),
        (("sweep", "run", "--tokens", "4,1"), "tokens must be at least 2, got 1"),
        (("sweep", "run", "--seeds", "0"), "0 is not in the range"),
        *(
            (
                ("sweep", "run", "--shard", shard),
                f"a shard is i/n with 1 <= i <= n, such as 1/4: got {shard!r}",
            )
            for shard in ("0/4", "5/4", "x", "1", "1/4/2", "1/x", "-1/4", "1.0/4", "0/0", "", "\u00b2/4")
        ),
        (("sweep", "run", "--workers", "0"), "0 is not in the range"),
        (("sweep", "run", "--scheduler", "a:1", "--workers", "2"), "give --scheduler or --workers"),
        (("sweep", "run", "--scheduler", "a:1", "--shard", "1/2"), "give --scheduler or --shard"),
        (("sweep", "run", "--scheduler", "a:1", "--shard", "1/2", "-n"), "give --scheduler or --shard"),
        (
            ("sweep", "run", "--scheduler", "localhost"),
            "no dask scheduler answers at 'localhost' (missing port",
        ),
        (("sweep", "run", "--scheduler", "http://a:1"), "no dask scheduler answers at 'http://a:1' (unknown"),
        (("sweep", "status", "absent.zarr"), "absent.zarr does not exist"),
        (("compare",), "Missing argument"),
        (("onset", "absent.zarr"), "absent.zarr does not exist"),
        (("figures", "nothing"), "unknown figure 'nothing'"),
        (("figures", "--data", "absent"), "does not exist"),
        (("verify", "Z9"), "unknown law 'Z9'"),
        (("law", "Z9"), "unknown law 'Z9'"),
    ],
)
def test_bad_input_is_one_line_and_exit_two(mms, arguments: tuple[str, ...], message: str) -> None:
    status, out, err = mms(*arguments)
    assert status == 2 and out == ""
    assert message in err and err.count("\n") == 1, err


def test_a_store_of_another_sweep_and_a_damaged_one_are_refused(
    mms, tiny_store: Path, tmp_path: Path
) -> None:
    status, _, err = mms("sweep", "run", "--resume", "--out", tiny_store)
    assert status == 2 and "holds another sweep" in err and err.count("\n") == 1
    status, _, err = mms("sweep", "run", "--out", tiny_store)
    assert status == 2 and "pass --resume" in err
    zarr.create_group(tmp_path / "foreign.zarr")
    status, _, err = mms("compare", tmp_path / "foreign.zarr")
    assert status == 2 and "not a 'mean-mode sweep' store" in err


def test_an_interrupt_says_how_to_go_on(mms, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*given: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("meanmode.sweeps.engine.execution.run_sweep", interrupted)
    status, _, err = mms("sweep", "run")
    assert status == 130 and "--resume" in err


def test_the_installed_command_starts(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("mms")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert "0.1.0" in done.stdout


def test_predict_profile_has_the_fixed_keys(mms) -> None:
    document = json.loads(mms("predict", "profile", "--tokens", 16, "--depth", 5, "--json")[1])
    assert set(document) == {*("tcs", "rho", "c_delta", "amplification_attn", "amplification_ffn", "inputs")}
    assert len(document["tcs"]) == 6 and len(document["amplification_ffn"]) == 5
    assert "amplification_attn" in mms("predict", "profile", "--tokens", 16, "--depth", 5)[1]


def test_a_backward_sweep_is_compared_profile_by_profile(mms, tmp_path: Path) -> None:
    store = tmp_path / "token_law.zarr"
    stack = ("--width", 32, "--heads", 2, "--weight-std", 0.15, "--depth", 26)
    assert mms("sweep", "run", "token_law", *stack, "--tokens", "4,9", "--seeds", 3, "--out", store)[0] == 0
    document = json.loads(mms("compare", store, "--json")[1])
    quantities = {row["quantity"] for row in document["rows"]}
    assert {"tcs_profile", "amplification_attn", "mode_ratio_ffn", "token_exponent_attn"} <= quantities
    profile = next(row for row in document["rows"] if row["quantity"] == "tcs_profile")
    assert 0 <= profile["rms_error"] <= profile["rms_seed_error"] < 1
    status, out, _ = mms("figures", "token_law", "--data", tmp_path, "--out", tmp_path / "png")
    assert status == 0 and Path(out.strip()).stat().st_size > 10_000


@pytest.mark.parametrize(
    "arguments",
    [
        ("predict", "front", "--weight-std", "1e200"),
        ("predict", "front", "--ffn-ratio", "1e308"),
        ("predict", "front", "--merge", "deepnorm", "--residual-gain", "1e200"),
        ("predict", "front", "--merge", "mv_split", "--alpha", "1e300"),
        ("predict", "front", "--tokens", "99999999999999999999999999"),
    ],
    ids=lambda arguments: arguments[-2],
)
def test_absurd_sizes_are_refused_in_one_line(mms, arguments: tuple[str, ...]) -> None:
    status, out, err = mms(*arguments)
    assert status == 2 and out == "" and err.count("\n") == 1, err


def test_figures_of_an_unfinished_sweep_are_refused(mms, tiny_store: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(tiny_store, tmp_path / "collapse_front.zarr"))
    zarr.open_group(store, mode="r+")["status"][2] = 0
    status, _, err = mms("figures", "collapse_front", "--data", tmp_path, "--out", tmp_path / "png")
    assert status == 2 and "1 cells to do, failed or diverged" in err
