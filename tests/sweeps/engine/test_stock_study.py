"""Studies of watched models of other libraries: runs, stores, and the scores of their alarms."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

pytest.importorskip("transformers")
pytest.importorskip("diffusers")
pytest.importorskip("sklearn")

from meanmode.sim.onset.detector import COLLAPSE, DIVERGENCE, KINDS_OF_ALARMS, NOT_A_NUMBER, Alarm
from meanmode.sim.store.files import StoreError
from meanmode.sim.store.sweep_store import open_cells
from meanmode.sweeps.engine.execution import run_sweep
from meanmode.sweeps.engine.stock.backbone_models import text
from meanmode.sweeps.engine.stock.stock_models import stock_model
from meanmode.sweeps.engine.stock.stock_run import FAMILIES, MERGES, StockRun
from meanmode.sweeps.engine.stock.stock_study import StockStudy, stored_stock
from meanmode.sweeps.engine.stock.stock_training import MEASURED, stock_trained
from meanmode.sweeps.engine.study import Case
from meanmode.sweeps.studies.comparison import compare
from meanmode.sweeps.studies.results.stock_tables import backbone_ramps, backbones
from meanmode.sweeps.studies.stock.alarm_scores import StockScore, replayed
from meanmode.sweeps.studies.stock.backbone_rows import backbone_rows, had_learned, half_rate_row, kind_of

TINY = {"depth": 2, "width": 16, "steps": 12, "batch": 2, "every": 4, "warmup": 4}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_and_is_measured(family: str) -> None:
    """Three blocks: in the last one of a ViT, the adjoint of the class token alone is not zero."""
    values = stock_trained(StockRun(**{**TINY, "depth": 3}, family=family), seed=3)
    assert np.isfinite(values["loss"]).all() and values["tcs"].shape == (4,)
    for name in MEASURED:
        assert np.isfinite(values[name]).all(), name


@pytest.mark.parametrize("merge", MERGES)
def test_every_merge_trains(merge: str) -> None:
    assert np.isfinite(stock_trained(StockRun(**TINY, merge=merge), seed=1)["loss"]).all()


def test_deepnorm_starts_from_its_own_weights() -> None:
    sizes = {}
    for merge in ("as built", "deepnorm"):
        model = stock_model(StockRun(**TINY, merge=merge)).model
        sizes[merge] = float(model.bert.encoder.layer[1].output.dense.weight.detach().std())
    assert sizes["deepnorm"] * 16**0.25 == pytest.approx(sizes["as built"], rel=0.2)


def test_deepnorm_scales_values_but_not_queries_of_an_encoder() -> None:
    sizes = {}
    for merge in ("as built", "deepnorm"):
        torch.manual_seed(0)
        layer = stock_model(StockRun(**TINY, family="vit_encoder", merge=merge)).model.encoder.layers[1]
        weights = (*layer.self_attn.in_proj_weight.chunk(3), layer.self_attn.out_proj.weight)
        sizes[merge] = torch.stack([of.detach().std() for of in (*weights, layer.linear1.weight)])
    ratio = sizes["as built"] / sizes["deepnorm"]
    assert ratio.tolist() == pytest.approx([1, 1, 2, 2, 2], rel=1e-4)  # (8 L)^(1/4) of L = 2


@pytest.mark.parametrize("family", ["bert_text", "vit_encoder"])
def test_a_highway_keeps_the_trunk_and_normalises_the_branch(family: str) -> None:
    """Each merge adds a branch of unit rms to sqrt(2 L) times the trunk, however large the branch was."""
    model = stock_model(StockRun(**TINY, family=family, merge="highway")).model
    layers = model.encoder.layers if family == "vit_encoder" else model.bert.encoder.layer
    norms = [of for of in layers.modules() if isinstance(of, torch.nn.RMSNorm)]
    merges = [of for name, of in layers.named_modules() if name.split(".")[-1].startswith("merge_")]
    assert len(norms) == len(merges) == 4
    trunk, branch = torch.randn(2, 5, 16), torch.randn(2, 5, 16)
    for norm, merge in zip(norms, merges, strict=True):
        joined = merge(trunk, norm(100 * branch))
        assert torch.allclose(joined - 2 * trunk, norm(branch), atol=1e-3)
    with pytest.raises(ValueError, match="needs a norm after every addition"):
        stock_model(StockRun(**TINY, family=f"{family}_pre_norm", merge="highway"))


def test_blocks_of_an_encoder_differ_and_letters_start_at_their_frequencies() -> None:
    layers = stock_model(StockRun(**TINY, family="vit_encoder")).model.encoder.layers
    assert not torch.equal(layers[0].linear1.weight, layers[1].linear1.weight)
    trained = stock_model(StockRun(**{**TINY, "batch": 64}, family="bert_text"))
    shares = torch.bincount(text()) / len(text())
    entropy = float(-(shares * shares.log()).sum())
    loss = float(trained.loss(torch.Generator().manual_seed(0), False).detach())
    assert loss == pytest.approx(entropy, rel=0.05)


def test_a_run_is_its_seed_and_disturbances_act_from_their_step_on() -> None:
    run = StockRun(**TINY, disturbed_step=7)
    plain = stock_trained(run, seed=5)
    assert plain["loss"].tolist() == stock_trained(run, seed=5)["loss"].tolist()
    assert plain["loss"].tolist() != stock_trained(run, seed=6)["loss"].tolist()
    other = stock_trained(replace(run, disturbance="data"), seed=5)
    assert (plain["loss"][:6] == other["loss"][:6]).all() and plain["loss"][6] != other["loss"][6]
    broken = stock_trained(replace(run, disturbance="nan"), seed=5)
    assert np.isfinite(broken["loss"][:6]).all() and np.isnan(broken["loss"][6:]).all()


def test_a_restart_decays_and_starts_anew() -> None:
    run = StockRun(disturbance="restart", steps=400, disturbed_step=250)
    assert run.rate_at(249) < 0.01 * run.rate_at(250) and run.rate_at(250) == run.rate
    assert StockRun().rate_at(50) == 0.5 * StockRun().rate


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"family": "rnn"}, "unknown family 'rnn'"),
        ({"merge": "sum"}, "unknown merge"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"rate": float("nan")}, "rate must be positive"),
    ],
)
def test_a_run_out_of_range_is_refused(options, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        StockRun(**options)


def test_a_study_is_stored_read_and_compared(tmp_path: Path) -> None:
    study = StockStudy(
        name="tiny",
        claim="a test",
        cases=(
            Case(label="BERT", options=TINY),
            Case(label="NaN", options={**TINY, "disturbance": "nan", "disturbed_step": 5}),
        ),
        seeds=1,
        expectation="none",
    )
    run_sweep(study, tmp_path / "tiny.zarr")
    data = open_cells(tmp_path / "tiny.zarr")
    assert stored_stock(data.attrs) == study
    assert data["measurement"].values.tolist() == [1, 4, 8, 12]
    rows = {row["quantity"]: row for row in compare([tmp_path / "tiny.zarr"])["rows"]}
    assert rows["NaN"]["failed"] == rows["NaN"]["found"] == 1 and rows["BERT"]["failed"] == 0
    assert rows["all cases"]["runs"] == 2
    for index in range(2):  # replayed from the store as raised live
        raised = [(alarm.step, KINDS_OF_ALARMS.index(alarm.kind)) for alarm in replayed(data, index)]
        live = zip(data["alarm_step"].values[index], data["alarm_kind"].values[index], strict=True)
        assert raised == [(step, kind) for step, kind in live if np.isfinite(step)]
    broken = {**data.attrs, "configuration": json.dumps({"name": "tiny"})}
    with pytest.raises(StoreError, match="no study of stock models"):
        stored_stock(broken)


@pytest.mark.parametrize(
    ("collapse", "alarms", "disturbance", "expected"),
    [
        (np.nan, [], "none", (0, 0, 0, 400)),
        (np.nan, [(90, COLLAPSE)], "none", (0, 0, 1, 400)),
        (60, [(80, COLLAPSE)], "none", (1, 1, 0, 0)),
        (60, [(81, COLLAPSE)], "none", (1, 0, 0, 0)),
        (60, [(70, DIVERGENCE)], "none", (1, 0, 0, 0)),
        (260, [(100, COLLAPSE), (270, COLLAPSE)], "none", (1, 1, 1, 160)),
        (np.nan, [(252, NOT_A_NUMBER)], "nan", (1, 1, 0, 250)),
        (np.nan, [(40, COLLAPSE), (280, NOT_A_NUMBER)], "nan", (1, 0, 1, 250)),
    ],
)
def test_alarms_are_scored(collapse: float, alarms, disturbance: str, expected) -> None:
    score = StockScore()
    cell = xr.Dataset({"final_loss": 2.7, "initial_loss": 2.8, "collapse_step": collapse})
    moved = [Alarm(step=step, moved=(), kind=kind) for step, kind in alarms]
    score.add(StockRun(disturbance=disturbance), cell, moved)
    assert (score.failed, score.found, score.false, score.steps) == expected


@pytest.mark.parametrize(
    ("collapse", "levels", "expected", "learned"),
    [
        (np.nan, (1.0, 0.5), "learned", True),
        (200, (0.5, 1.0), "mean mode", True),
        (20, (1.0, 1.0), "mean mode", False),
        (np.nan, (1.0, 1.0), "never learned", False),
        (np.nan, (0.5, 1.0), "plain divergence", True),
        (np.nan, (1.0, 3.0), "plain divergence", False),
    ],
)
def test_kinds_of_failure(collapse: float, levels, expected: str, learned: bool) -> None:
    loss = 2.0 * np.concatenate([np.ones(10), np.repeat(levels, 145)])
    cell = xr.Dataset(
        {
            "loss": ("step", loss),
            "tcs": ("measurement", np.full(15, 0.3)),
            "collapse_step": collapse,
            "final_loss": loss[-1],
            "initial_loss": 2.0,
        },
        {"step": np.arange(1, 301), "measurement": np.arange(20, 301, 20)},
    )
    assert (kind_of(cell), had_learned(cell)) == (expected, learned)


@pytest.mark.parametrize(
    ("failed", "value", "at_least", "at_most"),
    [
        ([0, 0, 0, 1, 1, 1], True, None, None),
        ([0, 0, 0, 0, 0, 0], False, 4.0, None),
        ([1, 1, 1, 1, 1, 1], False, None, 1.0),
    ],
)
def test_a_half_rate_or_its_bound(failed, value: bool, at_least, at_most) -> None:
    row = half_rate_row([1, 1, 2, 2, 4, 4], failed)
    assert (row["at_least"], row["at_most"]) == (at_least, at_most)
    assert (1 < row["value"] <= 4) if value else row["value"] is None


def test_a_table_of_backbones_shows_cases_at_two_rates(tmp_path: Path) -> None:
    cases = [
        Case(label=f"{label}, rate {rate:g}", options={**TINY, "family": "vit_encoder", "rate": rate})
        for label, rates in (("both", (1e-3, 1e-2)), ("one", (2e-3,)))
        for rate in rates
    ]
    run_sweep(StockStudy(name="tiny", claim="a test", cases=tuple(cases), seeds=2), tmp_path / "tiny.zarr")
    rows = backbone_rows(open_cells(tmp_path / "tiny.zarr"))
    assert [(row["case"], [at["runs"] for at in row["counts"]]) for row in rows] == [("both", [2, 2])]
    shown = backbones(tmp_path, "tiny")
    assert "| both | 2 of 2 | 2 of 2 | below 0.001 |" in shown and "| one |" not in shown
    assert "| both |" in backbone_ramps(tmp_path, "tiny")


@pytest.mark.parametrize("library", ["transformers", "diffusers"])
def test_a_missing_library_is_said_before_anything_is_written(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    cases = tuple(Case(label=family, options={**TINY, "family": family}) for family in ("bert", "dit"))
    with pytest.raises(ValueError, match=rf"models of other libraries need {library}: pip install"):
        run_sweep(StockStudy(name="tiny", claim="a test", cases=cases, seeds=1), tmp_path / "s.zarr")
    assert not list(tmp_path.iterdir())
