"""Splitting studies: stages, shared states, stores, and the rule of a silent exit."""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meanmode.dit.config.presets import PRESETS
from meanmode.dit.train.ensemble_runs import train_runs
from meanmode.sim.store.files import StoreError
from meanmode.sim.store.sweep_store import DONE, TODO, open_cells, open_progress
from meanmode.sweeps.engine.event_study import HELD
from meanmode.sweeps.engine.execution import run_sweep
from meanmode.sweeps.engine.splitting.paths import Parent
from meanmode.sweeps.engine.splitting.paths import Path as TrainedPath
from meanmode.sweeps.engine.splitting.splitting_study import (
    SplittingStudy,
    Start,
    data_order_seed,
    shared_out,
    stored_splitting,
)
from meanmode.sweeps.engine.store_kinds import stored_plan
from meanmode.sweeps.named.event_silence import EVENT_SILENCE
from meanmode.sweeps.studies.events.silence import LEVELS, RECENT, drift, is_silent, level_of, silence
from meanmode.sweeps.studies.results.splitting_table import silence as silence_table

STUDY = SplittingStudy(
    name="tiny_splitting",
    claim="tiny",
    base=PRESETS["digits-16l"].with_fields(
        {
            "depth": 2,
            "batch": 2,
            "schedule": "jump",
            "first_rate": 1e-3,
            "first_steps": HELD + 1,
            "rate": 0.02,
        }
    ),
    parents=(1, 2),
    levels=(1.02,),
    trajectories=2,
    horizon=4,
    expectation="none",
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("splitting") / "tiny_splitting.zarr"
    assert run_sweep(STUDY, path) == []
    return path


def test_a_trajectory_inherits_the_path_of_its_ancestor(store: Path) -> None:
    data = open_cells(store)
    assert (data["status"] == DONE).all() and data.sizes["cell"] == 2 * 2 * 2
    grid = {
        (int(p), int(s), int(n)): i
        for i, (p, s, n) in enumerate(
            zip(*(data[name].values for name in ("parent", "stage", "number")), strict=True)
        )
    }
    followed = 0
    for (parent, stage, _), cell in grid.items():
        own = data.isel(cell=cell)
        if stage == 0 or np.isnan(own["start_step"]):
            continue
        before = data.isel(cell=grid[parent, stage - 1, int(own["ancestor"])])
        start = int(own["start_step"])
        followed += 1
        assert start == before["crossing_step"] == before["last_step"] and own["root"] == before["root"]
        for name in ("loss", "g_mean", "tcs_image"):
            inherited = slice(1 - HELD, start)
            np.testing.assert_array_equal(
                own[name].sel(since_jump=inherited), before[name].sel(since_jump=inherited)
            )
    assert followed


def test_a_trajectory_is_the_run_with_its_data_order(store: Path) -> None:
    own = open_cells(store).isel(cell=1)
    jump, last = STUDY.base.training.first_steps, int(own["last_step"])
    parent = STUDY.base.with_fields({"seed": 1, "data_seed": 1, "steps": jump})
    (held,) = train_runs([parent], keep_states=[jump])
    forked = parent.with_fields({"data_seed": data_order_seed(1, 0, 1), "steps": jump + last})
    (run,) = train_runs(
        [forked], observe=("g_mean",), begin=[held.states[jump]], after=jump, initial_loss=2.0
    )
    np.testing.assert_allclose(own["loss"].sel(since_jump=slice(1, last)), run.series["loss"], rtol=1e-6)
    size = np.sqrt(np.square(run.series["g_mean"].values[:, 1:].astype(float)).sum((1, 2)))
    np.testing.assert_allclose(own["g_mean"].sel(since_jump=slice(1, last)), size, rtol=1e-6)


def test_resuming_gives_the_same_bits(store: Path, tmp_path: Path) -> None:
    one = dataclasses.replace(STUDY, parents=(2,))
    assert run_sweep(one, tmp_path / "one.zarr") == []
    whole, own = open_cells(store), open_cells(tmp_path / "one.zarr")
    later = whole.isel(cell=whole["parent"].values == 2)
    for name in ("loss", "crossing_step", "root", "stage_probability"):
        np.testing.assert_array_equal(later[name].values, own[name].values)


def test_a_store_rebuilds_its_study(store: Path, mms) -> None:
    stored = stored_plan(open_progress(store).attrs)
    assert stored == STUDY == stored_splitting(open_progress(store).attrs)
    status, out, _ = mms("compare", store, "--json")
    rows = json.loads(out)["rows"]
    assert status == 0 and [row["quantity"] for row in rows] == [
        "collapse_probability",
        *["silent_share"] * 2,
    ]
    assert "tiny_splitting" in silence_table(store.parent, "tiny_splitting")


def test_a_jump_levels_and_parents_are_needed() -> None:
    with pytest.raises(ValueError, match="levels must ascend"):
        dataclasses.replace(STUDY, levels=(3.0, 2.0))
    with pytest.raises(ValueError, match="needs a jump"):
        dataclasses.replace(STUDY, base=STUDY.base.with_fields({"first_steps": HELD}))
    with pytest.raises(ValueError, match="4 parents, got --seeds 9"):
        EVENT_SILENCE.with_options({}, 9)
    assert EVENT_SILENCE.with_options({}, 2).parents == EVENT_SILENCE.parents[:2]


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_states_are_shared_out_evenly(survivors: int, count: int, seed: int) -> None:
    path = TrainedPath(rows={}, state=None)
    crossed = [Start(path=path, ancestor=float(number), root=number) for number in range(survivors)]
    found = shared_out(crossed, count, np.random.default_rng(seed))
    times = Counter(start.root for start in found)
    assert len(found) == count and shared_out([], count, np.random.default_rng(seed)) == []
    assert all(count // survivors <= times[number] <= -(-count // survivors) for number in range(survivors))


def path_of(g_mean: list[float], cosines: list[float]) -> TrainedPath:
    """A path of these values after a held stretch of ones."""
    held = np.ones(HELD)
    return TrainedPath(
        rows={
            "loss": np.ones(HELD + len(g_mean)),
            "g_mean": np.concatenate([held, g_mean]),
            "tcs_image": np.concatenate([0.3 * held, cosines]),
        },
        state=None,
    )


@pytest.mark.parametrize(
    ("g_mean", "cosines", "first", "step"),
    [
        ([1, 9, 1, 1], [0.3] * 4, 1, None),  # a spike of one step
        ([1, 9, 9, 1], [0.3] * 4, 1, 3),
        ([9, 9, 9, 1], [0.3] * 4, 3, 3),
        ([1, 1, 1, 1], [0.3, 0.3, 0.3, 0.95], 1, 4),  # a collapse has crossed every level
        ([], [], 0, None),
    ],
)
def test_a_level_is_crossed_by_the_median_signal_or_the_cosine(g_mean, cosines, first: int, step) -> None:
    assert path_of(g_mean, cosines).crossing(5.0, first) == step


def loss_of(values: list[float]) -> np.ndarray:
    return np.concatenate([np.ones(HELD), values])


FLAT, LATE = [1.0] * 30, [1.0] * 27 + [2.0] * 3
SCENES = {
    "flat to the end": (FLAT, (True, True)),
    "out in the last steps": (LATE, (True, True)),
    "out five steps before": ([1.0] * 23 + [2.0] * 7, (False, False)),
    "drifting from the jump on": (list(np.linspace(1.0, 2.0, 30)), (False, False)),
    "lifted by the jump, then flat": ([1.3] * 30, (False, True)),
}


@pytest.mark.parametrize("scene", SCENES)
def test_a_silent_exit_is_flat_and_sudden(scene: str) -> None:
    values, expected = SCENES[scene]
    loss = loss_of(values)
    assert tuple(is_silent(*drift(loss, 30, level_of(loss, 30, name))) for name in LEVELS) == expected


def test_an_early_exit_is_not_judged_by_the_level_before_it() -> None:
    assert np.isnan(level_of(loss_of(FLAT), RECENT[-1], LEVELS[1]))
    assert level_of(loss_of(FLAT), RECENT[-1] + 1, LEVELS[1]) == 1


def test_shares_are_weighted_by_the_probability_of_the_exits(store: Path) -> None:
    """Parent 1: half of stage 0 crosses, and both of stage 1 exit; parent 2: all cross, and one exits."""
    data = open_cells(store)
    parent, stage, number = (data[name].values for name in ("parent", "stage", "number"))
    data["stage_probability"] = ("cell", np.where((parent == 1) == (stage == 0), 0.5, 1.0))
    data["root"] = ("cell", np.where(parent == 1, 0, number))
    exits = (stage == 1) & ((parent == 1) | (number == 0))
    data["crossing_step"] = ("cell", np.where(exits, 3.0, np.nan))
    loss = np.ones((data.sizes["cell"], data.sizes["since_jump"]))
    loss[parent == 2, HELD:] = 2.0
    data["loss"] = (("cell", "since_jump"), loss)
    data["loss"].values[exits & (parent == 2), HELD - 6 : HELD - 2] = 1.1  # its drift began before the jump
    found = silence(data)
    assert found.probability.value == pytest.approx(0.5)
    assert found.silent[LEVELS[0]].value == pytest.approx(0.5)  # two of weight 1/4, and one of 1/2
    assert found.counts(LEVELS[0]) == (1, 2) and len(found.exits) == 3
    assert np.isnan(found.silent[LEVELS[1]].value)
    data["status"].values[0] = TODO
    with pytest.raises(StoreError, match="--resume"):
        silence(data)


class Scripted(Parent):
    """A parent whose runs have a given TCS from the jump on, and a high loss."""

    def __init__(self, cosines: list[float], horizon: int) -> None:
        self.cosines, self.horizon, self.initial_loss = np.array(cosines), horizon, 1.0

    def extended(self, path: TrainedPath, data_seed: int, last: int) -> tuple[TrainedPath, dict[int, Any]]:
        new = slice(path.step, last)
        rows = {name: np.concatenate([path.rows[name], self.cosines[new]]) for name in path.rows}
        return dataclasses.replace(path, rows=rows | {"loss": np.ones(HELD + last)}), {}


@pytest.mark.parametrize(
    ("cosines", "onset", "last"),
    [
        ([0.3] * 50, None, 10),  # nothing at the horizon
        ([0.3] * 5 + [0.95] * 45, 6, 35),  # the step of the first check that is TAIL steps after the onset
        ([0.3] * 9 + [0.95] * 40, 10, 38),
        ([0.3] * 12 + [0.95] * 40, None, 10),  # begins after the horizon
        ([0.3] * 9 + [0.95] * 2 + [0.3] * 40, None, 15),  # returns
    ],
)
def test_a_collapse_is_followed_until_its_label_is_certain(cosines: list[float], onset, last: int) -> None:
    start = dataclasses.replace(path_of([], []), state={})
    path, found = Scripted(cosines, 10).to_collapse(start, 0)
    assert (found.step, path.step) == (onset, last)
