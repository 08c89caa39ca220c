"""What a run shows around its onset: the event, factors over what was before it, and active blocks."""

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from meanmode.sim.onset.training_onset import MOVED, MOVED_LOSS
from meanmode.sim.store.run_reader import open_run
from meanmode.sweeps.studies.around_onset import (
    ACTIVE,
    FAR,
    NEAR,
    coherence,
    event_step,
    factors,
    lasting_moves,
    moments,
    near_onset,
    onset_of,
    regression,
    regressions,
    step_before,
    stretch,
)
from meanmode.sweeps.studies.run_sizes import run_config

DATA = Path(__file__).parents[3] / "paper_figs" / "data"


@pytest.fixture(scope="module")
def run() -> xr.Dataset:
    return open_run(DATA / "event.zarr")


@pytest.fixture(scope="module")
def deeper() -> xr.Dataset:
    return open_run(DATA / "amplification_event.zarr")


def tokens_of(run: xr.Dataset) -> int:
    model = run_config(run).model
    return model.image_tokens + model.text_tokens


def test_a_whole_run_is_labelled_as_its_excerpt_is() -> None:
    near = near_onset(open_run(DATA / "digits_16l.zarr"), 30)
    onset = onset_of(near)["step"]
    assert near["step"].values.tolist() == list(range(onset - 30, onset + 31))
    assert near_onset(near, 30).identical(near)
    with pytest.raises(ValueError, match="shows the steps around an onset; the run has none"):
        near_onset(open_run(DATA / "digits_16l_mvsplit.zarr"), 30)


def test_the_event_is_the_largest_gradient_near_the_onset(run: xr.Dataset) -> None:
    onset = json.loads(run.attrs["onset"])["step"]
    spiked = run.assign(grad_norm=xr.ones_like(run["grad_norm"]))
    spiked["grad_norm"].loc[{"step": onset + 6}] = 100.0
    spiked["grad_norm"].loc[{"step": onset - 5}] = 9.0
    assert event_step(spiked) == onset - 5
    before = spiked["grad_norm"].sel(step=slice(onset - 5 - FAR, onset - 5 - NEAR))
    before[:] = np.random.default_rng(0).permutation(len(before)) + 1.0
    assert float(before.sel(step=step_before(spiked))) == (FAR - NEAR + 2) / 2


def test_factors_are_over_the_median_before(run: xr.Dataset) -> None:
    event = event_step(run)
    ones = run.assign(g_mean=xr.full_like(run["g_mean"], 2.0))
    ones["g_mean"].loc[{"step": event, "writer": "ffn"}] = 14.0
    ones["g_mean"].loc[{"step": slice(event + NEAR, event + FAR)}] = 0.5
    ones["g_mean"].loc[{"block": slice(0, 8)}] = np.nan
    found = {(row["signal"], row["writer"]): (row["at_event"], row["after"]) for row in factors(ones)}
    assert found["g_mean", "ffn"] == (7.0, 0.25)
    assert found["g_mean", "attn"] == (1.0, 0.25)


def test_lasting_moves_are_sorted_with_the_signals_that_stayed_last(run: xr.Dataset) -> None:
    """The loss has a threshold of its own; a signal that never moved for good has no delay."""
    onset = json.loads(run.attrs["onset"])
    onset["evidence"]["rho"]["first_step"] = None
    rows = lasting_moves(run.assign_attrs(onset=json.dumps(onset)))
    delays = [row["delay"] for row in rows[:-1]]
    assert delays == sorted(delays) and (rows[-1]["signal"], rows[-1]["delay"]) == ("rho", None)
    thresholds = {row["signal"]: row["threshold"] for row in rows}
    assert (thresholds["loss"], thresholds["tcs"]) == (MOVED_LOSS, MOVED)


@pytest.mark.parametrize("before", [True, False])
def test_a_run_that_is_too_short_is_refused(run: xr.Dataset, before: bool) -> None:
    event = event_step(run)
    with pytest.raises(ValueError, match=r"this figure needs steps \d+ to \d+; the run has"):
        stretch(run.sel(step=slice(event - FAR + 1, event + FAR - 1)), before=before)


def test_regression_by_hand() -> None:
    """Sxy 5.5, Sxx 5, Syy 8.75."""
    fit = regression([0, 1, 2, 3], [1, 3, 2, 5])
    assert fit is not None and fit.points == 4
    np.testing.assert_allclose((fit.slope, fit.intercept, fit.r_squared), (1.1, 1.1, 5.5**2 / (5 * 8.75)))


@pytest.mark.parametrize(("x", "y"), [([0, 1], [1, 2]), ([2, 2, 2], [1, 2, 3]), ([], [])])
def test_no_line_through_too_few_points(x: list[float], y: list[float]) -> None:
    assert regression(x, y) is None


def test_only_active_blocks_are_regressed(deeper: xr.Dataset) -> None:
    """Blocks on the line y = 3 x + 1, and one far off it that is just below the threshold."""
    absolute = xr.zeros_like(deeper["kappa_abs"]) + deeper["block"] / 100
    changed = deeper.assign(
        kappa_abs=absolute, amplification=1 + 3 * (tokens_of(deeper) - 1) * absolute + 1
    ).transpose("step", "block", "writer")
    changed["amplification"].loc[{"block": 20}] = 1 + ACTIVE
    fits = regressions(changed)
    for fit in fits.values():
        assert fit is not None and fit.points == deeper.sizes["block"] - 1
        np.testing.assert_allclose((fit.slope, fit.intercept, fit.r_squared), (3, 1, 1), rtol=1e-4)


def test_coherence_counts_every_other_token(deeper: xr.Dataset) -> None:
    here = coherence(deeper.assign(kappa=xr.ones_like(deeper["kappa"])), moments(deeper)["event"], "attn")
    assert (here["signed"] == tokens_of(deeper) - 1).all()
    assert here["block"].values.tolist() == list(range(1, deeper.sizes["block"]))
