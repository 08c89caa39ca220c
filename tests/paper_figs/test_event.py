"""The figure of a collapse: which steps it reads, what it compares, and the order in which signals moved."""

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from meanmode.paper_figs.all_figures import draw_figures
from meanmode.paper_figs.figures.event import WORDS, draw
from meanmode.sim.onset.training_onset import MOVED, MOVED_LOSS, SIGNALS, training_onset
from meanmode.sim.store.run_reader import open_run
from meanmode.sweeps.studies.around_onset import (
    FAR,
    NEAR,
    event_step,
    factors,
    lasting_moves,
    step_before,
    stretch,
)

DATA = Path(__file__).parents[2] / "paper_figs" / "data"


@pytest.fixture(scope="module")
def run() -> xr.Dataset:
    return open_run(DATA / "event.zarr")


def test_it_is_drawn_from_the_committed_run(tmp_path: Path) -> None:
    (path,) = draw_figures(["event"], DATA, tmp_path)
    assert path.stat().st_size > 50_000


def test_panels_are_labelled_and_the_onset_is_that_of_the_excerpt(run: xr.Dataset) -> None:
    onset = training_onset(run)
    figure = draw(run)
    assert f"onset at step {onset.step}" in figure.get_suptitle()
    assert "64 image + 4 text tokens, batch 4" in figure.get_suptitle()
    panels = figure.axes[:6]
    assert all(panel.get_ylabel() and panel.lines for panel in panels)
    assert all(panel.get_xlabel() == "optimiser step" for panel in panels[3:])


def test_the_caption_says_in_which_order_the_signals_moved(run: xr.Dataset) -> None:
    onset = training_onset(run)
    said = " ".join(draw(run).get_supxlabel().split())
    moved = {name: found["first_step"] for name, found in onset.evidence.items() if name in WORDS}
    places = [said.index(f"{WORDS[name]} {step - onset.step:+d}") for name, step in moved.items() if step]
    in_order = [
        place for _, place in sorted(zip([step for step in moved.values() if step], places, strict=True))
    ]
    assert set(WORDS) == set(SIGNALS) and len(places) >= 9
    assert in_order == sorted(in_order)


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


def test_a_run_without_an_onset_or_an_observable_is_refused(run: xr.Dataset) -> None:
    with pytest.raises(ValueError, match="the store names none"):
        draw(run.assign_attrs(onset=json.dumps({"step": None})))
    with pytest.raises(ValueError, match="the run has no rho"):
        draw(run.drop_vars("rho"))
