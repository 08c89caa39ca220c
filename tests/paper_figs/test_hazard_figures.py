"""Figures of the hazard: lines are the forecast, points the measured runs."""

from pathlib import Path

import numpy as np
import pytest

from meanmode.paper_figs.all_figures import BESIDE, STUDY_FIGURES, draw_figures
from meanmode.paper_figs.figures.hazards import hazard_depth, schedule_risk, survival
from meanmode.sim.store.regular_files import read_json
from meanmode.sim.store.sweep_store import open_cells
from meanmode.sweeps.engine.study import stored_study
from meanmode.sweeps.studies.hazards.hazard_runs import schedule_rates
from meanmode.theory.onset.hazard import Hazard

DATA = Path(__file__).parents[2] / "paper_figs" / "data"


@pytest.fixture(scope="module")
def slopes() -> dict[str, object]:
    data = open_cells(DATA / "hazard_slopes.zarr")
    data.attrs["forecast"] = (DATA / "hazard_slopes.forecast.json").read_text()
    return {"hazard_slopes": data}


def test_survival_is_that_of_the_forecast_and_of_the_runs(slopes: dict[str, object]) -> None:
    """Lines: the committed hazard. Points: shares of runs that outlast a step; none is censored early."""
    figure = survival.draw(slopes)
    hazard = Hazard.of_document(read_json(DATA / "hazard_slopes.forecast.json")["hazard"])
    run = stored_study(slopes["hazard_slopes"].attrs).runs[0]
    lines = figure.axes[0].lines
    assert lines[0].get_ydata() == pytest.approx(hazard.survival(schedule_rates(run), run.model.depth))
    onsets = slopes["hazard_slopes"]["onset_step"].values[:16]
    x, y = lines[1].get_data()
    assert y == pytest.approx([np.mean(onsets > step) for step in x])
    said = " ".join(figure.get_supxlabel().split())
    assert len(said) < 500 and "before these runs" in said and "16 seeds" in said


def test_a_study_without_a_hazard_is_refused(slopes: dict[str, object]) -> None:
    bare = slopes["hazard_slopes"].copy()
    del bare.attrs["forecast"]
    with pytest.raises(ValueError, match="no forecast by a hazard: write one with mms predict onset"):
        survival.draw({"hazard_slopes": bare})


def test_depths_have_their_runs_and_the_hazard(tmp_path: Path) -> None:
    names = (*STUDY_FIGURES["hazard_depth"][0], *BESIDE["hazard_depth"])
    for name in names:
        for path in DATA.glob(f"{name}.*"):
            (tmp_path / path.name).symlink_to(path)
    (path,) = draw_figures(["hazard_depth"], tmp_path, tmp_path / "out")
    assert path.stat().st_size > 30_000
    assert hazard_depth.STUDIES == STUDY_FIGURES["hazard_depth"][0]


def test_risks_of_schedules_are_lines_and_measured_shares_points() -> None:
    """Points of fitted runs are open; the curve of constant rates at 16 blocks has all of theirs."""
    names = ("hazard_history", "waiting_time_low")
    studies = {name: open_cells(DATA / f"{name}.zarr") for name in names}
    studies["hazard_history"].attrs["forecast"] = (DATA / "hazard_history.forecast.json").read_text()
    shallow, deep = schedule_risk.draw(studies).axes
    for panel in (shallow, deep):
        constant, longer, cosine = (line for line in panel.lines if len(line.get_xdata()) > 1)
        halves = [np.interp(0.5, line.get_ydata(), line.get_xdata()) for line in (constant, longer, cosine)]
        assert halves == sorted(halves)
    filled = [
        [points[0].get_markerfacecolor() != "none" for points in of.containers] for of in (shallow, deep)
    ]
    assert filled == [[True, *[False] * 5], [True]]
