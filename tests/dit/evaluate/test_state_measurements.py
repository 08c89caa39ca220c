"""States measured again: as training measures them, on samples that it never saw, stored like telemetry."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from meanmode.dit.data.batches import batch_of
from meanmode.dit.data.sources import source_of
from meanmode.dit.evaluate.run_states import states_of
from meanmode.dit.evaluate.state_measurements import (
    FRESH,
    SCALARS,
    fresh_batches,
    measure_state,
    measure_states,
    over_blocks,
    table_rows,
    write_measurements,
)
from meanmode.dit.train.checkpoint_files import folder_of
from meanmode.dit.train.checkpoints import load_network
from meanmode.dit.train.run_folder import WEIGHTS
from meanmode.sim.store.files import StoreError
from meanmode.sim.store.run_reader import logged_mask, open_run

OPTIONS = {
    "depth": 2,
    "steps": 5,
    "checkpoint_every": 2,
    "keep": 9,
    "telemetry_every": 1,
    "weights_ring": 3,
    "interventions": '[[4, "delete:mean:branch"]]',
}


@pytest.fixture(scope="module")
def trained(runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints of steps 2, 4 and 5 and kept weights of steps 3 to 5, changed from step 4 on."""
    out = tmp_path_factory.mktemp("measured") / "run"
    runs.trained(out, runs.tiny(**OPTIONS))
    return out


@pytest.mark.parametrize("step", [2, 3, 4])
def test_a_state_is_measured_as_the_next_step_of_training_was(trained: Path, step: int) -> None:
    """On the batch of that step, with the interventions that began at it."""
    states = states_of(trained)
    run, network = load_network(states.by_step[step], ema=False)
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    batch = batch_of(source_of(run), run, step + 1)
    found = measure_state(network, run, step, [batch], passes=1, samples=run.training.batch)
    row = open_run(trained).sel(step=step + 1)
    assert len(found) > 25 and set(SCALARS) < set(found)
    for name, values in found.items():
        np.testing.assert_allclose(values, row[name], rtol=1e-6, err_msg=name)
    assert all(torch.equal(weight, before[name]) for name, weight in network.state_dict().items())
    assert all(weight.grad is None for weight in network.parameters())


def test_batches_change_nothing_but_rounding(trained: Path) -> None:
    states = states_of(folder_of(trained, 3, WEIGHTS))
    source = source_of(states.run)
    whole, parts = (measure_states(states, source, samples=10, batch=size)[3] for size in (10, 4))
    for name, values in whole.items():
        largest = np.nanmax(np.abs(values), initial=0)
        np.testing.assert_allclose(values, parts[name], rtol=1e-4, atol=1e-4 * largest, err_msg=name)


def test_samples_are_fresh_and_more_of_them_begin_with_the_same(trained: Path) -> None:
    run = states_of(trained).run
    source = source_of(run)
    few, many = (
        [torch.cat(part) for part in zip(*fresh_batches(source, run, *sizes), strict=True)]
        for sizes in ((5, 5), (11, 4))
    )
    assert [len(part) for part in many] == [11] * 4
    assert all(torch.equal(one, more[:5]) for one, more in zip(few, many, strict=True))
    assert many[3].unique(dim=0).shape[0] == 11
    with pytest.raises(ValueError, match="data_seed must be at most"):
        dataclasses.replace(run.training, data_seed=run.training.data_seed + FRESH)


def test_states_are_chosen_and_refused_by_step(trained: Path) -> None:
    states = states_of(trained)
    assert list(states.by_step) == [2, 3, 4, 5]
    assert states.by_step[3].parent.name == WEIGHTS and states.by_step[4].parent.name == "checkpoints"
    assert list(states.at([range(5, 6), range(1, 4)]).by_step) == [2, 3, 5]
    with pytest.raises(ValueError, match=r"run has no state of steps 6 to 9, only of 2, 3, 4, 5"):
        states.at([range(2, 3), range(6, 10)])


def test_states_that_cannot_be_measured_are_named_first(trained: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(trained, tmp_path / "run"))
    states = states_of(out)
    with pytest.raises(StoreError, match=r"step-00000003 has no moving average of the weights: leave out"):
        states.check(ema=True)
    states.at([range(2, 3)]).check(ema=True)
    other = dataclasses.replace(states.run, training=dataclasses.replace(states.run.training, seed=3))
    with pytest.raises(
        StoreError, match=r"belongs to another run \(its seed is 0, not 3\): leave out step 2"
    ):
        dataclasses.replace(states, run=other).check(ema=False)
    os.truncate(next(folder_of(out, 3, WEIGHTS).glob("*.distcp")), 100)
    with pytest.raises(StoreError, match=r"step-00000003 is damaged: .*; leave out step 3 with --steps"):
        states.check(ema=False)
    with pytest.raises(StoreError, match=r"step-00000003 is damaged"):
        states_of(folder_of(out, 3, WEIGHTS))


def test_measurements_are_stored_like_telemetry(trained: Path, tmp_path: Path) -> None:
    states = states_of(trained).at([range(2, 4), range(5, 6)])
    found = measure_states(states, source_of(states.run), samples=6, batch=6)
    found[3]["loss"] = np.array(np.nan)
    write_measurements(tmp_path / "new" / "store", states, found, samples=6)
    data, telemetry = open_run(tmp_path / "new" / "store"), open_run(trained)
    assert data["step"].values.tolist() == [2, 3, 5] and set(data.data_vars) == set(found[2])
    for name, values in found[5].items():
        np.testing.assert_array_equal(data[name].sel(step=5), values, err_msg=name)
        assert data[name].dims == telemetry[name].dims
    assert logged_mask(data, "loss").all()
    assert data.attrs["initial_loss"] == np.median(telemetry["loss"])
    assert json.loads(data.attrs["measured"]) == {"samples": 6, "ema": False, "data_seed": FRESH}
    row = table_rows(found)[2]
    assert row["step"] == 5 and row["g_ctr_ffn"] == pytest.approx(np.linalg.norm(found[5]["g_ctr"][1:, 1]))
    assert row["g_mean_attn_deep"] == pytest.approx(found[5]["g_mean"][2, 0])
    assert np.isnan(over_blocks(np.full((3, 2), np.nan))).all()
