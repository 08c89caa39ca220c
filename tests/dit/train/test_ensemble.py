"""Ensembles of training runs: agreement with the trainer, states, labels, replicated tokens."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from meanmode.dit.config.presets import PRESETS
from meanmode.dit.config.run_config import RunConfig
from meanmode.dit.train.ensemble_measurements import TAIL, watched_blocks
from meanmode.dit.train.ensemble_runs import fresh_network, train_runs
from meanmode.dit.train.trainer import Trainer
from meanmode.sim.store.run_reader import open_run
from meanmode.sim.train.ensemble_optimiser import AdamW, EnsembleOptimiser

SMALL = PRESETS["digits-16l"].with_fields(
    {"depth": 3, "steps": 12, "slope": 1e-3, "writer_std": None, "telemetry_every": 1, "stop_on": "never"}
)


def run(seed: int = 0, **fields: Any) -> RunConfig:
    return SMALL.with_fields({"seed": seed, "data_seed": seed, **fields})


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"merge": "mv_split", "gain_rate": 0.1, "interventions": ((4, "freeze:queries-keys"),)},
        {"reader_rate": 0.5, "clip": None, "data_steps": 2, "first_rate": 1e-4, "first_steps": 3},
    ],
    ids=["plain", "mv_split", "rates"],
)
def test_a_member_agrees_with_the_trainer(fields: dict[str, Any], tmp_path: Path) -> None:
    measured = train_runs([run(seed, **fields) for seed in (0, 7)], functional_every=4, signals_every=2)
    Trainer(run(7, **fields), tmp_path / "run").train()
    alone, series = open_run(tmp_path / "run"), measured[1].series
    np.testing.assert_allclose(series["loss"], alone["loss"], rtol=1e-4)
    np.testing.assert_allclose(series["grad_norm"], alone["grad_norm"], rtol=1e-3)
    np.testing.assert_allclose(series["rate"], alone["lr"], rtol=1e-12)
    deep = list(watched_blocks(3))
    tcs = alone["tcs_image"].sel(block=deep).median("block")
    np.testing.assert_allclose(series["tcs_image"], tcs, rtol=1e-3, atol=1e-4)
    at = [4, 8, 12]
    np.testing.assert_allclose(
        series["functional_step"].sel(step=at), alone["functional_step"].sel(step=at), rtol=1e-3
    )
    modes = alone["g_mean"].sel(block=deep, step=at).median(("block", "writer"))
    np.testing.assert_allclose(series["g_mean"].sel(step=at), modes, rtol=1e-3)
    assert np.isnan(series["functional_step"].sel(step=3)) and np.isnan(series["g_mean"].sel(step=3))
    assert measured[0].series["loss"][-1] != series["loss"][-1]


def test_a_run_continues_from_the_state_of_another() -> None:
    whole = train_runs([run(1), run(2)], keep_states=[5])
    (again,) = train_runs([run(2)], begin=[whole[1].states[5]], after=5, initial_loss=2.0)
    assert again.series["step"].values.tolist() == list(range(6, 13))
    assert again.series.attrs["initial_loss"] == 2.0
    np.testing.assert_allclose(
        again.series["loss"], whole[1].series["loss"].sel(step=slice(6, None)), rtol=1e-5
    )
    (other,) = train_runs([run(2, data_seed=9)], begin=[whole[1].states[5]], after=5)
    assert np.abs(other.series["loss"].values - again.series["loss"].values).max() > 1e-2


def test_replicated_tokens_change_nothing_that_is_learned() -> None:
    """Law X1; as a control, two more text tokens do."""
    once, twice = (train_runs([run(copies=copies)])[0].series["loss"] for copies in (1, 2))
    np.testing.assert_allclose(twice, once, rtol=2e-4)
    longer = train_runs([run(text_tokens=6)])[0].series["loss"]
    assert np.abs(longer - once).max() > 1e-2


def test_runs_end_after_their_collapse() -> None:
    fields = {"depth": 16, "schedule": "warmup", "rate": 0.03, "warmup": 20, "steps": 300, "writer_std": 0.0}
    measured = train_runs([run(seed, **fields) for seed in range(3)])
    assert [one.onset.kind for one in measured] == ["mean_mode"] * 3
    for one in measured:
        last = int(one.series["step"][-1])
        assert one.onset.step is not None and one.onset.step + TAIL <= last < 300
        assert float(one.series["tcs_image"][-1]) > 0.9


@pytest.mark.parametrize(
    ("runs", "states", "message"),
    [
        ([], [], "an ensemble needs at least one run"),
        ([run(), run(batch=2)], [], "run 1 differs from run 0 in more than seed, data_seed"),
        ([run(), run(1)], [{}], "2 runs need 2 states to begin with, got 1"),
    ],
)
def test_runs_that_are_not_an_ensemble_are_refused(
    runs: list[RunConfig], states: list[Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train_runs(runs, begin=states)


@pytest.mark.parametrize(
    ("depth", "blocks"), [(1, (1,)), (3, (2, 3)), (16, tuple(range(9, 17))), (64, tuple(range(36, 65, 4)))]
)
def test_deep_blocks_are_watched(depth: int, blocks: tuple[int, ...]) -> None:
    assert watched_blocks(depth) == blocks


def test_the_moving_average_of_the_weights_is_measured_and_changes_nothing() -> None:
    one_batch = {"data_steps": 1, "steps": 4, "ema": 0.7}
    steps = range(1, 5)
    found = train_runs([run(s, **one_batch) for s in (0, 1)], functional_every=1, keep_states=list(steps))
    plain = train_runs([run(s, **{**one_batch, "ema": 0.0}) for s in (0, 1)], functional_every=1)
    for seed, (measured, without) in enumerate(zip(found, plain, strict=True)):
        np.testing.assert_array_equal(measured.series["loss"].values, without.series["loss"].values)
        assert without.series["average_loss"].isnull().all()
        fresh = fresh_network([run(seed, **one_batch)], torch.device("cpu"))
        average = EnsembleOptimiser(fresh, AdamW()).values[0].clone()
        for step in steps:
            average = 0.7 * average + 0.3 * measured.states[step]["values"]
        # the batch never changes, so the next step of a run that starts at the average has its loss
        begin = {**measured.states[4], "values": average}
        longer = run(seed, **{**one_batch, "steps": 5})
        (following,) = train_runs([longer], begin=[begin], after=4, initial_loss=1.0)
        for name, of in (("average_loss", "loss"), ("average_tcs", "tcs_image")):
            np.testing.assert_allclose(
                measured.series[name].values[-1], following.series[of].values[0], rtol=1e-5
            )
        assert abs(measured.series["average_loss"].values[-1] / measured.series["loss"].values[-1] - 1) > 1e-4
