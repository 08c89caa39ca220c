"""The committor study: forks of the states of a parent, its store and its rows."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from meanmode.dit.config.presets import PRESETS
from meanmode.sim.store.sweep_store import open_cells
from meanmode.sweeps.engine.committor_study import Committor, stored_committor
from meanmode.sweeps.engine.execution import run_sweep
from meanmode.sweeps.engine.status import status_of
from meanmode.sweeps.named.committor import COMMITTOR
from meanmode.sweeps.studies.committor import committor_rows

TINY = Committor(
    name="committor",
    claim="tiny",
    base=PRESETS["digits-16l"].with_fields(
        {"depth": 2, "schedule": "warmup", "rate": 5e-3, "warmup": 3, "steps": 24}
    ),
    parents=(1, 2),
    offsets=(8, 0),
    forks=2,
    horizon=6,
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("committor") / "s.zarr"
    assert run_sweep(TINY, path) == []
    return path


def test_states_lie_before_the_end_of_a_parent_that_does_not_collapse(store: Path) -> None:
    data = open_cells(store)
    assert data["state_step"].values.tolist() == [16, 16, 24, 24] * 2
    assert (data["collapsed"] == 0).all() and data["parent_onset"].isnull().all()
    assert np.isfinite(data["functional_step"]).all() and np.isfinite(data["g_ctr"]).all()
    losses = data["loss"].values
    assert losses[0] == losses[1] and losses[0] != losses[2] and losses[0] != losses[4]


def test_the_committor_is_known_from_its_store(store: Path) -> None:
    assert stored_committor(open_cells(store).attrs).configuration() == TINY.configuration()
    assert status_of(store)["done"] == 8
    assert TINY.units() == [(0, 1, 2, 3), (4, 5, 6, 7)]


def test_rows_are_by_distance_and_by_observable(store: Path, mms) -> None:
    rows = committor_rows(open_cells(store))
    assert [(row["offset"], row["measured"], row["n"]) for row in rows[:2]] == [(0, 0, 2), (8, 0, 2)]
    assert rows[0]["within"] == 6 and len(rows) == 2 * (2 + 8)
    assert {row["observable"] for row in rows[2:10]} >= {"loss", "tcs_image", "functional_step"}
    status, out, _ = mms("compare", store, "--json")
    assert status == 0 and len(json.loads(out)["rows"]) == len(rows)


def test_a_committor_takes_other_parents_alone() -> None:
    assert COMMITTOR.with_options({}, 3).parents == (0, 1, 2)
    with pytest.raises(ValueError, match="takes no options of stacks"):
        COMMITTOR.with_options({"width": (3,)})
    assert dataclasses.replace(TINY, device="cuda").configuration()["device"] == "cuda"
