"""Figures of runs and of their fronts: what they draw, and what they refuse."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

from meanmode.paper_figs.all_figures import draw_figures
from meanmode.paper_figs.figures import (
    dynamic_front,
    long_runs,
    loss_and_rho,
    merge_losses,
    phase_diagram,
    standard_writers,
)
from meanmode.paper_figs.figures.events import event_report
from meanmode.paper_figs.figures.stacks import trainability
from meanmode.sim.store.run_reader import open_run
from meanmode.sim.store.sweep_store import open_cells, unstacked
from meanmode.sweeps.studies.forecast_files import read_forecast
from meanmode.sweeps.studies.merge_ratios import LOSS_WINDOW, case_series, running_median
from meanmode.sweeps.studies.token_exponents import exponent_profile, exponent_rows

DATA = Path(__file__).parents[2] / "paper_figs" / "data"
Look = Callable[[Figure], bool]


@pytest.fixture(scope="module")
def plain() -> xr.Dataset:
    return open_run(DATA / "digits_16l.zarr")


@pytest.fixture(scope="module")
def split() -> xr.Dataset:
    return open_run(DATA / "digits_16l_mvsplit.zarr")


def test_rho_of_every_block_stands_below_the_loss(
    plain: xr.Dataset, split: xr.Dataset, has_the_look: Look
) -> None:
    figure = loss_and_rho.draw(plain, split)
    assert has_the_look(figure) and [panel.get_title() for panel in figure.axes[:2]] == ["plain", "MV-Split"]
    assert figure.axes[0].lines[0].get_ydata() == pytest.approx(plain["loss"].values)
    drawn = figure.axes[2].collections[0].get_array()
    assert drawn.shape == plain["rho"].dropna("step", how="all").transpose("block", "step").shape


def test_long_runs_share_a_row_with_their_twin(
    plain: xr.Dataset, split: xr.Dataset, has_the_look: Look
) -> None:
    figure = long_runs.draw(plain, split)
    assert has_the_look(figure) and len(figure.axes) == 3
    first, second = (line.get_ydata() for line in figure.axes[0].lines)
    assert np.nanmin(first) > np.nanmin(second)
    document = json.loads(plain.attrs["configuration"])
    document["model"]["merge"] = "rezero"
    with pytest.raises(ValueError, match="got merge 'rezero'"):
        long_runs.draw(plain.assign_attrs(configuration=json.dumps(document)))


def test_the_report_lists_the_largest_gradients_of_its_spike(plain: xr.Dataset, has_the_look: Look) -> None:
    figure = event_report.draw(plain)
    spike = json.loads(plain.attrs["events"])[1]
    widths = [bar.get_width() for bar in figure.axes[2].patches]
    assert has_the_look(figure) and widths == [entry["norm"] for entry in spike["largest"]]
    said = [text.get_text().strip() for text in figure.axes[2].texts]
    assert said[:3] == ["patch weight", "patch bias", "block 1"]
    assert f"step {spike['step']} " in figure.get_supxlabel()
    with pytest.raises(ValueError, match="the run has none"):
        event_report.draw(plain.assign_attrs(events="[]"))


def test_the_front_of_standard_writers_lies_where_it_was_predicted(has_the_look: Look) -> None:
    """The prediction is for the first step; training then moves the front up."""
    run = open_run(DATA / "standard_writers.zarr")
    figure = standard_writers.draw(run)
    (line,) = figure.axes[0].lines
    predicted = line.get_ydata()[0]
    first, last = (run["tcs"].isel(step=step).values for step in (0, -1))
    assert has_the_look(figure) and abs(int((first >= 0.9).argmax()) - predicted) < 8
    assert (last >= 0.9).argmax() < predicted / 2


def test_the_dynamic_front_is_drawn_from_its_document(tmp_path: Path, has_the_look: Look) -> None:
    rows = [
        {"step": step, "front": front, "front_std": 1.0} for step, front in ((1, None), (2, 5.0), (3, 4.0))
    ]
    sizes = {"width": 8, "depth": 9, "image_tokens": 16, "text_tokens": 4, "batch": 2, "steps": 3}
    run = {"title": "one", "schedule": "rate 1", **sizes, "measured": rows, "predicted": rows}
    figure = dynamic_front.draw({"runs": [run]})
    points, line = figure.axes[0].lines
    assert points.get_xydata().tolist() == line.get_xydata().tolist() == [[2, 5], [3, 4]]
    assert has_the_look(figure) and len(dynamic_front.draw({"runs": [run, run]}).axes) == 2
    with pytest.raises(ValueError, match="it has no runs"):
        dynamic_front.draw({})
    (tmp_path / "dynamic_front.json").symlink_to(DATA / "dynamic_front.json")
    assert [path.name for path in draw_figures((), tmp_path, tmp_path / "out")] == ["dynamic_front.png"]


def test_merges_are_drawn_as_medians_over_seeds(has_the_look: Look) -> None:
    data = open_cells(DATA / "stabilisers.zarr")
    figure = merge_losses.draw({"stabilisers": data})
    left, right = figure.axes
    assert has_the_look(figure) and left.get_legend_handles_labels()[1] == list(merge_losses.CASES)
    losses = data["loss"].values[data["case"].values == "plain"]
    line = left.lines[0]
    step = int(line.get_xdata()[5])
    window = losses[:, step - 1 - LOSS_WINDOW // 2 : step + LOSS_WINDOW // 2]
    assert line.get_ydata()[5] == pytest.approx(np.median(np.median(window, 1)))
    assert max(max(line.get_ydata()) for line in right.lines) == 1.0  # the clip
    with pytest.raises(ValueError, match="no case 'x': choose from"):
        case_series(data, "x")


def test_a_running_median_has_no_value_at_its_ends() -> None:
    values = xr.DataArray([[*range(20), np.nan]], dims=("seed", "step"))
    found = running_median(values).values[0]
    half = LOSS_WINDOW // 2
    assert found[half:-half].tolist() == pytest.approx([*range(half, 20 - half), np.nan], nan_ok=True)
    assert np.isnan(found[:half]).all() and np.isnan(found[-half:]).all()


def test_phases_are_those_of_the_block_map(monkeypatch: pytest.MonkeyPatch, has_the_look: Look) -> None:
    """At FFN ratio 8 no input collapses at 0.8, some do at 1.0; the measured stacks agree."""
    monkeypatch.setattr(phase_diagram, "SCALES", np.array([0.5, 0.8, 1.0]))
    monkeypatch.setattr(phase_diagram, "RATIOS", np.array([3.0, 8.0]))
    figure = phase_diagram.draw({"front_settings": open_cells(DATA / "front_settings.zarr")})
    threshold, missed, fell = figure.axes[1].lines
    assert threshold.get_ydata() == pytest.approx([0, np.nan, 0.476], abs=1e-3, nan_ok=True)
    assert has_the_look(figure) and len(missed.get_xdata()) == 2 and len(fell.get_xdata()) == 5


def test_the_figure_shows_signs_and_needs_a_forecast(
    monkeypatch: pytest.MonkeyPatch, has_the_look: Look
) -> None:
    for name in ("SCALES", "RATIOS", "GAINS"):
        monkeypatch.setattr(trainability, name, getattr(trainability, name)[::6])
    data = open_cells(DATA / "trainability.zarr")
    with pytest.raises(ValueError, match="put it beside the store"):
        trainability.draw({"trainability": data})
    data.attrs["forecast"] = json.dumps(read_forecast(DATA / "trainability.forecast.json"))
    figure = trainability.draw({"trainability": data})
    shrinks, grows = (line.get_ydata() for line in figure.axes[0].lines[-2:])
    assert has_the_look(figure) and len(shrinks) == 8 and list(grows) == [8.0]


def test_exponents_at_every_block_are_those_of_the_rows(tiny_token_law: Path) -> None:
    grid = unstacked(open_cells(tiny_token_law))
    profile = exponent_profile(grid)
    for row in exponent_rows(grid):
        of = profile.sel(adjoint_cosine=row["adjoint_cosine"]).isel(block=-1 - row["blocks_from_loss"])
        for name in ("predicted", "measured"):
            assert float(of[name]) == pytest.approx(row[name], nan_ok=True)
