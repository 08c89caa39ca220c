"""Excerpts: fewer observables and steps, with the values and the label of the whole run."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from meanmode.sim.onset.excerpt import excerpt
from meanmode.sim.onset.training_onset import INITIAL_STEPS, training_onset
from meanmode.sim.store.files import StoreError, StoreExistsError
from meanmode.sim.store.run_reader import open_run

DATA = Path(__file__).parents[3] / "paper_figs" / "data"
NAMES = ("loss", "tcs", "tcs_image", "g_mean")


@pytest.mark.parametrize("around", [50, None])
def test_an_excerpt_holds_the_same_values(tmp_path: Path, around: int | None) -> None:
    whole = open_run(DATA / "digits_16l.zarr")
    onset = training_onset(whole)
    assert onset.step is not None
    excerpt(DATA / "digits_16l.zarr", tmp_path / "part.zarr", names=NAMES, around=around)
    part = open_run(tmp_path / "part.zarr")
    assert set(part) == set(NAMES)
    steps = whole["step"] if around is None else slice(onset.step - around, onset.step + around)
    xr.testing.assert_equal(
        part, whole[list(NAMES)].sel(step=steps).drop_vars(["family", "matrix"], errors="ignore")
    )
    assert part["g_mean"].attrs == whole["g_mean"].attrs
    assert part.attrs["configuration"] == whole.attrs["configuration"]


def test_an_excerpt_is_labelled_like_the_whole_run(tmp_path: Path) -> None:
    """Its initial level is that of the whole run, whose first losses it does not contain."""
    whole = open_run(DATA / "digits_16l.zarr")
    onset = training_onset(whole)
    excerpt(DATA / "digits_16l.zarr", tmp_path / "part.zarr", names=NAMES, around=60)
    part = open_run(tmp_path / "part.zarr")
    assert int(part["step"][0]) > 100
    assert (training_onset(part).step, training_onset(part).kind) == (onset.step, onset.kind)
    assert part.attrs["initial_loss"] == np.median(whole["loss"][:INITIAL_STEPS])
    assert json.loads(part.attrs["onset"]) == dataclasses.asdict(onset)


def test_an_excerpt_of_missing_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="has no entropy: choose from loss"):
        excerpt(DATA / "digits_16l.zarr", tmp_path / "part.zarr", names=("entropy",))
    with pytest.raises(StoreError, match="has no onset, so no 9 steps around it: copy all steps instead"):
        excerpt(DATA / "digits_16l_mvsplit.zarr", tmp_path / "part.zarr", names=NAMES, around=9)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    with pytest.raises(StoreExistsError):
        excerpt(DATA / "digits_16l.zarr", tmp_path, names=NAMES)
