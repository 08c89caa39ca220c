"""The figure of one run around its onset, an excerpt or any other, and the order of its moves."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import xarray as xr
from matplotlib.figure import Figure

from meanmode.paper_figs.all_figures import draw_figures
from meanmode.paper_figs.figures.events.event_run import DRAWN, OBSERVABLES, WORDS, draw
from meanmode.sim.onset.training_onset import SIGNALS, training_onset
from meanmode.sim.store.run_reader import open_run

DATA = Path(__file__).parents[2] / "paper_figs" / "data"


@pytest.fixture(scope="module")
def run() -> xr.Dataset:
    return open_run(DATA / "event.zarr")


def test_it_is_drawn_from_the_committed_run(tmp_path: Path) -> None:
    (path,) = draw_figures(["event_run"], DATA, tmp_path)
    assert path.stat().st_size > 50_000


def test_it_is_drawn_from_any_run(mms: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    """From its folder: the store has its usual name there."""
    (tmp_path / "telemetry.zarr").symlink_to(DATA / "digits_16l.zarr")
    status, out, _ = mms("figures", "--data", tmp_path, "--out", tmp_path / "out")
    assert (status, out.strip()) == (0, str(tmp_path / "out" / "event_run.png"))


def test_a_run_is_drawn_by_no_other_figure() -> None:
    with pytest.raises(ValueError, match="is one run, of which only event_run is drawn"):
        draw_figures(["event_run", "mixers"], DATA / "digits_16l.zarr", Path("out"))


def test_panels_are_labelled_and_the_onset_is_that_of_the_excerpt(
    run: xr.Dataset, has_the_look: Callable[[Figure], bool]
) -> None:
    figure = draw(run)
    lines = figure.get_supxlabel().splitlines()
    assert f"onset at step {training_onset(run).step}" in lines[0] and has_the_look(figure)
    assert len(lines) == 2 and "64 image + 4 text tokens, batch 4" in lines[1]
    panels = figure.axes[:6]
    assert all(panel.get_ylabel() and panel.lines for panel in panels)
    assert all(panel.get_xlabel() == "optimiser step" for panel in panels[3:])


def test_marks_say_when_signals_moved(run: xr.Dataset) -> None:
    onset = training_onset(run)
    said = {text.get_text() for panel in draw(run).axes[:6] for text in panel.texts}
    moved = {
        f"{WORDS[name]} {found['first_step'] - onset.step:+d}"
        for name, found in onset.evidence.items()
        if found["first_step"] is not None and name not in ("amplification", "mode_ratio")
    }
    assert set(WORDS) == set(SIGNALS) and said == moved and len(said) >= 8


def test_few_steps_and_rare_measurements_are_enough(run: xr.Dataset) -> None:
    """Every fifth step measured, six steps before the onset and eight after it, without a functional step."""
    onset = json.loads(run.attrs["onset"])["step"]
    short = run.drop_vars("functional_step").sel(step=slice(onset - 6, onset + 8))
    rare = short.where(short["step"] % 5 == 0)
    figure = draw(rare.assign(loss=short["loss"], grad_norm=short["grad_norm"]))
    assert figure.axes[5].get_title() == "(f) gradient"
    assert figure.axes[4].lines[1].get_xdata().tolist() == [550, 555, 560]


def test_a_run_that_cannot_be_drawn_is_refused(run: xr.Dataset) -> None:
    assert set(DRAWN) < set(OBSERVABLES)
    with pytest.raises(ValueError, match="the run has none"):
        draw(run.assign_attrs(onset=json.dumps({"step": None})))
    with pytest.raises(ValueError, match="the run has no rho"):
        draw(run.drop_vars("rho"))
    with pytest.raises(ValueError, match="an imported log or a watched run has no configuration"):
        draw(run.assign_attrs({"import": "{}"}))
