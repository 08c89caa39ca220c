"""`mms import`: names, blocks and steps of a source in the store of a run, and its onset."""

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from meanmode.sim.store.compaction import compact
from meanmode.sim.store.run_reader import logged_mask, open_run

EXCERPT = Path(__file__).parents[4] / "shared" / "data" / "published_400l_excerpt.json"
NO_OUT = "say where to write the run with --out RUN, or pass --dry-run to see what it would hold"
DEPTH, LAYERS = 16, (0, 4, 8, 12)
FIRST, LAST, ONSET = 25010, 26010, 25610


def series(steps: Sequence[int], values: Any) -> dict[str, Any]:
    return {
        "s": [int(step) for step in steps],
        "v": [float(value) for value in np.broadcast_to(values, len(steps))],
    }


def viewer(layers: Sequence[int] = LAYERS) -> dict[str, Any]:
    """A run of 16 blocks logged every ten steps, whose deep half collapses; steps count as in the page."""
    steps = np.arange(FIRST, LAST + 1, 10)
    collapsed = steps >= ONSET
    similar = {
        str(layer): series(steps, np.where(collapsed & (layer >= 8), 0.99, layer / 100)) for layer in layers
    }
    return {
        "config": {"run_name": "a run", "N_LAYERS": DEPTH, "anchor_layers": list(layers)},
        "scalars": {
            "loss": series(steps, np.where(collapsed, 1.9, 0.8)),
            "grad_norm": series(steps, np.where(collapsed, 9.0, 0.1)),
            "writer_G_mean": series(steps[::2], 1.0),
            "writer_ratio": series(steps, math.pi),
        },
        "layerwise": {
            "token_sim": similar,
            "tr_ratio": {str(layer): series(steps, layer) for layer in layers},
            "mu_eff": {str(layer): series(steps[:2], 0.5) for layer in layers},
            "head_spread": {str(layers[-1]): series(steps, 0.25)},
        },
    }


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "viewer.html"
    path.write_text(f"<script>\nwindow.TRAINING_DATA = {json.dumps(viewer())};\n</script>")
    return path


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_store_of_a_viewer_file(mms, page: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "imported"
    status, shown, said = mms("import", page, "--out", out)
    assert (status, shown) == (0, f"{out / 'telemetry.zarr'}\n")
    assert said.startswith("mms: the first step is 25010") and said.count("\n") == 1
    run = open_run(out)
    assert run["step"].values.tolist() == list(range(FIRST, LAST + 1, 10))
    assert run["block"].values.tolist() == list(range(DEPTH + 1)) and "writer" not in run.dims
    assert {name: run[name].dims[1:] for name in run} == {
        **dict.fromkeys(("loss", "grad_norm", "writer_G_mean", "writer_ratio"), ()),
        **dict.fromkeys(("tcs", "r_tr", "mu_eff", "head_spread"), ("block",)),
    }
    assert run["loss"].notnull().all()
    assert float(run["loss"].sel(step=ONSET)) == 1.9 and float(run["loss"].sel(step=ONSET - 10)) == 0.8
    assert int(run["writer_G_mean"].notnull().sum()) == 51
    blocks = [layer + 1 for layer in LAYERS]
    at = run["r_tr"].sel(step=FIRST)
    assert np.flatnonzero(at.notnull()).tolist() == blocks and at.values[blocks].tolist() == list(LAYERS)
    assert run["mu_eff"].notnull().any("block").sum() == 2


def test_what_the_store_says_of_its_source(mms, page: Path, tmp_path: Path) -> None:
    mms("import", page, "--out", tmp_path / "run", "--initial-loss", 2)
    attributes = open_run(tmp_path / "run").attrs
    assert json.loads(attributes["source"]) == {"viewer.html": hashlib.sha256(page.read_bytes()).hexdigest()}
    assert json.loads(attributes["configuration"]) == {"depth": DEPTH, "source": viewer()["config"]}
    said = json.loads(attributes["import"])
    assert said["names"]["token_sim"] == {"name": "tcs", "dims": ["block"], "blocks": [1, 5, 9, 13]}
    assert said["names"]["writer_ratio"] == {"name": "writer_ratio", "dims": []}
    assert attributes["initial_loss"] == 2 and {"version", "commit"} <= attributes.keys()


@pytest.mark.parametrize("compacted", [False, True])
def test_its_onset(mms, page: Path, tmp_path: Path, compacted: bool) -> None:
    """Every ten steps, of four layers in sixteen, two of them behind half the depth."""
    out = tmp_path / "run"
    mms("import", page, "--out", out)
    if compacted:
        compact(out / "telemetry.zarr")
    status, shown, _ = mms("onset", out, "--json")
    document = json.loads(shown)
    assert status == 0
    assert (document["onset_step"], document["onset_kind"]) == (ONSET, "mean_mode")
    assert document["evidence"]["grad_norm"]["first_step"] == ONSET
    assert "steps 25010 to 26010, depth 16" in mms("onset", out)[1]


def test_layers_behind_half_the_depth_are_those_of_the_depth(mms, page: Path, tmp_path: Path) -> None:
    """Twice the blocks, and no layer that collapses is behind half of them."""
    mms("import", page, "--out", tmp_path / "run", "--depth", 2 * DEPTH)
    document = json.loads(mms("onset", tmp_path / "run", "--json")[1])
    assert document["onset_kind"] == "plain_divergence"


def test_a_dry_run_writes_nothing(mms, page: Path, tmp_path: Path) -> None:
    status, shown, _ = mms("import", page, "--out", tmp_path / "run", "-n")
    document = json.loads(shown)
    assert status == 0 and not (tmp_path / "run").exists()
    assert document["steps"] == {"first": FIRST, "last": LAST, "rows": 101}
    assert (document["form"], document["depth"], document["first_layer"]) == ("viewer", DEPTH, 0)
    assert document["names"]["tr_ratio"]["name"] == "r_tr"


@pytest.mark.parametrize(
    ("layers", "options", "blocks"),
    [
        ((0, 15), (), [1, 16]),
        ((1, 16), (), [1, 16]),
        ((4, 8), (), [5, 9]),
        ((4, 8), ("--first-layer", 1), [4, 8]),
    ],
)
def test_layers_count_from_what_they_show(mms, tmp_path: Path, layers, options, blocks) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(viewer(layers)))
    document = json.loads(mms("import", path, "-n", *options)[1])
    assert document["names"]["token_sim"]["blocks"] == blocks


def test_tables_by_block_and_writer(mms, tmp_path: Path) -> None:
    """The loss has another name, the depth is the last block, and the steps count from 0."""
    rows = [
        {"step": step, "train/loss": 1.0 + step, "tcs/0": 0.1, "tcs/3": 0.5, "g_mean/2/ffn": 7, "act/1": 5}
        for step in (0, 4)
    ]
    source = lines(tmp_path / "log.jsonl", *rows)
    options = ("--name", "train/loss=loss", "--step-offset", 1)
    status, _, said = mms("import", source, "--out", tmp_path / "run", *options)
    run = open_run(tmp_path / "run")
    assert status == 0 and "does not say its depth, taken as 3 blocks" in said
    assert run["step"].values.tolist() == [1, 5]
    assert run["loss"].values.tolist() == [1.0, 5.0] and run["act_1"].values[1] == 5
    np.testing.assert_array_equal(run["tcs"].values[0], np.array([0.1, math.nan, math.nan, 0.5], np.float32))
    assert float(run["g_mean"].sel(step=5, block=2).values[1]) == 7
    assert int(run["g_mean"].notnull().sum()) == 2


def test_values_that_are_not_finite_are_kept(mms, tmp_path: Path) -> None:
    source = tmp_path / "log.csv"
    source.write_text("step,name,value\n1,loss,nan\n2,loss,-inf\n3,loss,inf\n2,loss,5\n")
    status, _, said = mms("import", source, "--out", tmp_path / "run")
    run = open_run(tmp_path / "run")
    np.testing.assert_array_equal(run["loss"].values, [math.nan, 5])
    assert logged_mask(run, "loss").all()
    assert status == 0 and "mms: steps go back once, first to 2, as after a resume" in said


@pytest.mark.parametrize(
    ("row", "options", "said"),
    [
        ({"step": 0, "loss": 1}, ("--step-offset", 0), "steps must start at 1 or later, got step 0: pass"),
        ({"step": 1e9, "loss": 1}, (), "the last step is 1000000000"),
        ({"step": 1, "loss": 1}, ("--depth", 10**12), "is not in the range"),
        ({"step": 1, "loss": 1}, ("--step-offset", 99999999999999999999), "is not in the range"),
        ({"step": 1, "loss": 1}, ("--initial-loss", "nan"), "must be a positive number, got nan"),
        ({"step": 1, "loss": 1}, ("--initial-loss", "inf"), "must be a positive number, got inf"),
        ({"step": 1, "loss": 1}, ("--only", "rank"), "takes COLUMN=VALUE"),
        ({"step": 1, "loss": 1}, ("--only", "rank=3"), "contains no values with rank 3"),
        ({"step": 1, "loss": 1}, ("--name", "los=step"), "has no 'los' that counts steps: it has step, loss"),
        ({"step": 1, "tcs/999999999": 1}, (), "the number of blocks must be at most 10000"),
        ({"step": 1, "loss": 1}, ("--name", "los=tcs"), "the source has no 'los': its names are loss"),
        ({"step": 1, "loss": 1}, ("--name", "loss"), "--name takes THEIRS=OURS"),
        ({"step": 1, "loss": 1}, ("--name", "loss=a loss"), "'a loss' is not a valid variable name"),
        (
            {"step": 1, "a": 1, "b": 2},
            ("--name", "a=c", "--name", "b=c"),
            "'a' and 'b' would both be called c: pass --name b=OTHER",
        ),
        ({"step": 1, "mu_eff/0": 1}, (), "'mu_eff/0' would belong to the input, which has no mu_eff"),
        ({"step": 1, "tcs/9": 1}, ("--depth", 8), "'tcs/9' belongs to block 9, but the depth is 8"),
    ],
)
def test_what_cannot_be_imported_is_one_sentence(mms, tmp_path: Path, row, options, said: str) -> None:
    source = lines(tmp_path / "log.jsonl", row)
    status, shown, error = mms("import", source, "--out", tmp_path / "run", *options)
    assert (status, shown) == (2, "") and said in error and error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ({"a/b": 1, "a.b": 2}, {"a_b", "a_b_2"}),
        ({"grad/norm": 1}, {"grad_norm"}),
        ({"g-mean": 1}, {"logged_g_mean"}),
        ({"block": 1}, {"logged_block"}),
        ({"2": 1}, {"logged_2"}),
        ({"tcs": 1, "tcs/1": 1}, {"tcs", "tcs_1_2"}),
        ({"tcs/1/attn": 1}, {"tcs_1_attn"}),
        ({"train/loss": 1, "train_loss": 2}, {"train_loss", "train_loss_2"}),
        ({"train/loss": 1, "val/loss": 2, "lm loss scale": 3}, {"loss", "val_loss", "lm_loss_scale"}),
        ({"eval_loss": 1}, {"eval_loss"}),
        ({"loss": 1, "train_loss": 2}, {"loss", "train_loss"}),
        ({"Train Loss": 1, "learning rate": 2, "Grad Norm": 3}, {"loss", "lr", "grad_norm"}),
        ({"nll_loss": 1}, {"loss"}),
        ({300 * "a": 1, 301 * "a": 2}, {120 * "a", f"{120 * 'a'}_2"}),
    ],
)
def test_names_are_never_refused_and_only_mapped_where_unambiguous(mms, tmp_path: Path, row, names) -> None:
    source = lines(tmp_path / "log.jsonl", {"step": 1, **row})
    assert mms("import", source, "--out", tmp_path / "run")[0] == 0
    assert set(map(str, open_run(tmp_path / "run"))) == names


def test_two_hundred_rows_over_two_million_steps_make_a_small_store(mms, tmp_path: Path) -> None:
    source = lines(
        tmp_path / "log.jsonl", *({"step": 10_000 * row, "loss": 1 / row} for row in range(1, 201))
    )
    assert mms("import", source, "--out", tmp_path / "run")[0] == 0
    files = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert len(files) <= 10 and sum(file.stat().st_size for file in files) < 20_000
    run = open_run(tmp_path / "run")
    assert run.sizes["step"] == 200 and int(run["step"][-1]) == 2_000_000


def test_a_logged_nan_is_not_a_missing_value(mms, tmp_path: Path) -> None:
    rows = [
        {"step": 1, "loss": 1, "x": 2},
        {"step": 2, "loss": None},
        {"step": 3, "x": 1},
        {"step": 4, "loss": 2},
    ]
    mms("import", lines(tmp_path / "log.jsonl", *rows), "--out", tmp_path / "run")
    run = open_run(tmp_path / "run")
    assert run["loss"].isnull().values.tolist() == [False, True, True, False]
    assert logged_mask(run, "loss").tolist() == [True, True, False, True]
    assert logged_mask(run, "x").tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    ("rows", "options", "steps", "said"),
    [
        ([{"loss": 1}, {"loss": 2}], ("--steps-per-row", 50), [50, 100], ""),
        (
            [{"tokens": 64, "loss": 1}, {"tokens": 128, "loss": 2}],
            ("--samples-per-step", 32),
            [2, 4],
            "divided",
        ),
        ([{"n": 3, "loss": 1}, {"n": 4, "loss": 2}], ("--name", "n=step"), [3, 4], ""),
        (
            [{"step": 1, "rank": r, "loss": r} for r in (0, 1)],
            ("--only", "rank=1"),
            [1],
            "is not 1 were left",
        ),
        ([{"step": 0, "loss": 1}, {"step": 5, "loss": 1}], (), [1, 6], "steps count from 0"),
        ([{"step": 0, "loss": 1}, {"step": 5, "loss": 1}], ("--step-offset", 3), [3, 8], ""),
    ],
)
def test_how_steps_are_counted(mms, tmp_path: Path, rows, options, steps, said: str) -> None:
    source = lines(tmp_path / "log.jsonl", *rows)
    status, _, error = mms("import", source, "--out", tmp_path / "run", *options)
    assert status == 0 and said in error
    assert open_run(tmp_path / "run")["step"].values.tolist() == steps


@pytest.mark.parametrize("depth", [0, "many", True, 2.5])
def test_a_viewer_that_misstates_its_depth(mms, tmp_path: Path, depth: Any) -> None:
    document = viewer()
    document["config"]["N_LAYERS"] = depth
    (tmp_path / "a.json").write_text(json.dumps(document))
    status, _, error = mms("import", tmp_path / "a.json", "-n")
    assert status == 2 and "the number of blocks must be a whole number of at least 1" in error


def test_it_needs_a_source_and_a_free_place(mms, page: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    status, _, error = mms("import", page, "--out", tmp_path / "run")
    assert status == 2 and error.endswith("already exists: pass another --out\n")
    assert not list((tmp_path / "run").iterdir())
    assert mms("import", page)[::2] == (2, f"mms: {NO_OUT}\n")
    status, _, error = mms("import", tmp_path / "missing.json", "-n")
    assert status == 2 and "missing.json" in error


def test_a_failed_write_leaves_nothing(mms, page: Path, tmp_path: Path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("meanmode.sim.store.sparse_run.write_chunk", full)
    status, _, error = mms("import", page, "--out", tmp_path / "run")
    assert status == 2 and "No space left on device" in error
    assert sorted(tmp_path.iterdir()) == [page]


@pytest.mark.skipif(not EXCERPT.exists(), reason="the published excerpt is not here")
def test_the_published_excerpt(mms, tmp_path: Path) -> None:
    status, _, _ = mms("import", EXCERPT, "--out", tmp_path / "run")
    run = open_run(tmp_path / "run")
    assert status == 0 and run.sizes["block"] == 401 and run.sizes["step"] == 31
    assert float(run["tcs"].sel(step=25010, block=385)) == np.float32(0.602347)
    assert np.flatnonzero(run["tcs"].notnull().any("step")).tolist() == [
        layer + 1 for layer in json.loads(EXCERPT.read_text())["config"]["anchor_layers"] if layer >= 112
    ]
    assert json.loads(mms("onset", tmp_path / "run", "--json")[1])["onset_kind"] == "none"
