"""Event studies: runs of a seed share their healthy part, and a fork is the run it would have been anyway."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from meanmode.dit.config.presets import MV_SPLIT, PRESETS
from meanmode.dit.train.ensemble_runs import fresh_network, train_runs
from meanmode.sim.store.sweep_store import DONE, open_cells, open_progress
from meanmode.sim.train.ensemble_optimiser import AdamW, EnsembleOptimiser
from meanmode.sim.train.state_transfer import carried_over
from meanmode.sweeps.engine.event_study import AROUND, HELD, EventStudy, healthy_run
from meanmode.sweeps.engine.execution import run_sweep
from meanmode.sweeps.engine.store_kinds import stored_plan
from meanmode.sweeps.engine.study import Case

JUMP = {"schedule": "jump", "first_rate": 1e-3, "first_steps": HELD + 3, "rate": 0.02, "steps": HELD + 9}

STUDY = EventStudy(
    name="tiny_event",
    claim="tiny",
    base=PRESETS["digits-16l"].with_fields({"depth": 3, "batch": 2, **JUMP}),
    cases=(
        Case(label="jump"),
        Case(label="smaller batch", options={"batch": 1, "rate": 0.01}),
        Case(label="mean deleted", options={"interventions": ((HELD + 4, "delete:mean:writer-gradient"),)}),
        Case(label="MV-Split", options=MV_SPLIT),
    ),
    seeds=2,
    first_seed=3,
    forked=("rate", "batch", "merge", "alpha"),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("event") / "e.zarr"
    assert run_sweep(STUDY, path) == []
    return path


def test_runs_of_a_seed_share_one_healthy_run(store: Path) -> None:
    assert STUDY.units() == [(0, 2, 4, 6), (1, 3, 5, 7)]
    data = open_cells(store)
    assert (data["status"] == DONE).all()
    assert data["since_jump"].values.tolist() == list(range(1 - HELD, 7))
    held = data["loss"].sel(since_jump=slice(1 - HELD, 1)).values
    # the batch differs from the fork on, the deleted gradient from the first step at the new rate on
    assert np.array_equal(held[0], held[4]) and not np.isclose(held[0], held[2]).any()
    assert data["loss"].values[0, -1] != data["loss"].values[4, -1]


def test_a_fork_is_the_run_that_was_never_forked(store: Path) -> None:
    data = open_cells(store)
    (whole,) = train_runs([STUDY.cells[0].run], observe=("g_mean", "tcs_image"))
    after = whole.series.sel(step=slice(4, None))
    np.testing.assert_array_equal(data["loss"].values[0], after["loss"].values.astype(np.float32))
    # which other observables are measured changes the last bits of a cosine
    median = np.median(after["tcs_image"].values[:, 2:], 1)
    np.testing.assert_allclose(data["tcs_deep"].values[0], median, atol=1e-6)
    size = np.sqrt(np.square(after["g_mean"].values[:, 1:].astype(float)).sum(1))
    np.testing.assert_allclose(data["g_mean_all"].values[0], size, rtol=1e-6)


def test_runs_stepped_together_are_those_followed_alone(store: Path, tmp_path: Path) -> None:
    rates = (Case(label="slow", options={"rate": 0.01}), Case(label="jump"))
    path = tmp_path / "e.zarr"
    assert run_sweep(dataclasses.replace(STUDY, cases=rates, seeds=1), path) == []
    together, alone = open_cells(path).isel(cell=1), open_cells(store).isel(cell=0)
    for name in ("loss", "tcs_deep", "g_mean_all"):
        np.testing.assert_allclose(together[name].values, alone[name].values, rtol=1e-3, atol=1e-5)
    slow = open_cells(path).isel(cell=0)["loss"].values
    assert np.array_equal(slow[: HELD + 1], together["loss"].values[: HELD + 1])
    assert slow[-1] != together["loss"].values[-1]


def test_a_store_rebuilds_its_study(store: Path) -> None:
    stored = stored_plan(open_progress(store).attrs)
    assert isinstance(stored, EventStudy) and stored.runs == STUDY.runs
    assert stored.units() == STUDY.units()


def test_the_blocks_around_an_onset_are_kept(tmp_path: Path) -> None:
    fast = dataclasses.replace(
        STUDY,
        cases=(Case(label="jump", options={"rate": 1.0, "steps": 80}),),
        seeds=1,
        first_seed=1,
    )
    path = tmp_path / "e.zarr"
    run_sweep(fast, path)
    run = open_cells(path).isel(cell=0)
    onset = int(run["onset_step"])
    assert run["onset_kind"] == 1 and onset > 0 and run["since_onset"].values.tolist() == list(AROUND)
    cosines = run["tcs_image"].sel(since_onset=0).values
    assert np.median(cosines[2:]) == pytest.approx(float(run["tcs_deep"].sel(since_jump=onset)), abs=1e-6)
    early = [onset + offset < 1 - HELD for offset in AROUND]
    np.testing.assert_array_equal(np.isnan(run["g_mean"].values).all((1, 2)), early)


def test_a_healthy_run_that_collapses_is_the_outcome_of_its_runs(tmp_path: Path) -> None:
    fields = {"first_rate": 0.06, "first_steps": 90, "rate": 0.06, "steps": 95}
    gone = dataclasses.replace(STUDY, base=STUDY.base.with_fields(fields), cases=STUDY.cases[:1], seeds=1)
    path = tmp_path / "e.zarr"
    assert run_sweep(gone, path) == []
    data = open_cells(path)
    assert -90 < float(data["onset_step"][0]) < 0 and np.isnan(data["loss"].values).all()


def test_carried_over_weights_and_moments_keep_their_names() -> None:
    plain = healthy_run(STUDY.runs[0], STUDY.base, STUDY.forked)
    split = STUDY.runs[3]
    (trained,) = train_runs([plain], keep_states=[plain.training.steps])
    state, device = trained.states[plain.training.steps], torch.device("cpu")
    before, after = (EnsembleOptimiser(fresh_network([run], device), AdamW()) for run in (plain, split))
    moved = carried_over(state, before.network, after.network)
    after.restore(0, moved)
    before.restore(0, state)
    weights = dict(before.network.named_parameters())
    for name, weight in after.network.named_parameters():
        if name in weights:
            assert torch.equal(weight, weights[name]), name
        else:
            assert name.endswith(("alpha", "beta")) and weight.unique().numel() == 1
    assert after.values.shape[1] > before.values.shape[1]
    moments = [moved[f"{half}.exp_avg"].count_nonzero() for half in ("matrices", "vectors")]
    known = [state[f"{half}.exp_avg"].count_nonzero() for half in ("matrices", "vectors")]
    assert moments == known
    same = carried_over(state, before.network, before.network)
    assert all(torch.equal(same[name], state[name]) for name in state)


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"schedule": "warmup"}, "needs a jump"), ({"first_steps": HELD}, f"after more than {HELD} steps")],
)
def test_an_event_needs_a_jump_behind_measured_steps(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(STUDY, base=STUDY.base.with_fields(changed))
