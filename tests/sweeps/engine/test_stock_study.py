"""Studies of watched models of other libraries: runs, stores, and the scores of their alarms."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

pytest.importorskip("transformers")
pytest.importorskip("diffusers")
pytest.importorskip("sklearn")

from meanmode.sim.onset.detector import COLLAPSE, DIVERGENCE, KINDS_OF_ALARMS, NOT_A_NUMBER, Alarm
from meanmode.sim.store.files import StoreError
from meanmode.sim.store.sweep_store import open_cells
from meanmode.sweeps.engine.execution import run_sweep
from meanmode.sweeps.engine.stock.stock_models import stock_model
from meanmode.sweeps.engine.stock.stock_run import FAMILIES, MERGES, StockRun
from meanmode.sweeps.engine.stock.stock_study import StockStudy, stored_stock
from meanmode.sweeps.engine.stock.stock_training import MEASURED, stock_trained
from meanmode.sweeps.engine.study import Case
from meanmode.sweeps.studies.comparison import compare
from meanmode.sweeps.studies.stock.alarm_scores import StockScore, replayed

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
