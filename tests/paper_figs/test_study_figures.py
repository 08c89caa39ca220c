"""Figures of studies of training runs: what they draw from the stores, and which stores they need."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

from meanmode.paper_figs.all_figures import STUDY_FIGURES, draw_figures
from meanmode.paper_figs.figures.critical_rate import draw as draw_critical_rate
from meanmode.paper_figs.figures.half_rate import draw as draw_half_rate
from meanmode.paper_figs.figures.interventions import draw as draw_interventions
from meanmode.paper_figs.figures.margin import draw as draw_margin
from meanmode.sim.store.files import StoreError
from meanmode.sim.store.sweep_store import open_cells
from meanmode.sweeps.engine.study import Case, Study
from meanmode.sweeps.named.critical_rate import CRITICAL_RATE_DEEP, CRITICAL_RATE_DEPTH, CRITICAL_RATE_SLOPES
from meanmode.sweeps.named.critical_rate_settings import CRITICAL_RATE_SETTINGS
from meanmode.sweeps.named.interventions import INTERVENTION_TABLE
from meanmode.sweeps.named.stabilisers import STABILISERS, STABILISERS_DEEP
from meanmode.sweeps.studies.critical_rates import study_rows
from meanmode.sweeps.studies.run_sizes import sizes_of
from meanmode.sweeps.studies.stability_margin import steps_before_onset

DATA = Path(__file__).parents[2] / "paper_figs" / "data"
SEEDS, STEPS = 3, 60

FORECAST = {
    "made_from": {"critical_rate_depth.zarr": ""},
    "anchor": {"critical_rate": 0.0015, "slope": 5e-5, "depth": 16},
    "law": {"threshold": 0.02, "coherence": 0.01},
    "power_law": {"intercept": -5.0, "exponent": -0.5, "exponent_error": 0.01, "runs": 72},
}


def shortened(study: Study) -> Study:
    """A few cases, three seeds and 60 steps; studies not used for the fit have a forecast at step 30."""
    few = study.cases[:4] + study.cases[max(4, len(study.cases) - 1) :]
    short = tuple(Case(label=of.label, options={**of.options, "steps": STEPS}) for of in few)
    rows = []
    for case in short:
        run = study.base.with_fields(case.options)
        rate = run.training.learning_rate(run.model.depth).rate(30)
        ends = {"predicted": rate, "predicted_low": 0.9 * rate, "predicted_high": 1.1 * rate}
        rows.append({"case": case.label, **ends, "predicted_power_law": 2 * rate, "predicted_coherent": rate})
    forecast = () if study is CRITICAL_RATE_DEPTH else tuple(rows)
    return dataclasses.replace(study, cases=short, seeds=SEEDS, ensemble=SEEDS, forecast=forecast)


STUDIES = (CRITICAL_RATE_DEPTH, CRITICAL_RATE_DEEP, CRITICAL_RATE_SLOPES, CRITICAL_RATE_SETTINGS)
STUDIES += (INTERVENTION_TABLE, STABILISERS, STABILISERS_DEEP)


@pytest.fixture(scope="module")
def folder(crafted_study: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small stores of all studies: onsets at steps 18 to 50, none in the last case, and one divergence."""
    folder = tmp_path_factory.mktemp("studies")
    for study in map(shortened, STUDIES):
        count = len(study.cases)
        onsets: dict[str, tuple[int | None, ...]] = {
            case.label: tuple(18 + 30 * place // count + seed for seed in range(SEEDS))
            for place, case in enumerate(study.cases)
        }
        onsets[study.cases[-1].label] = (None,) * SEEDS
        onsets[study.cases[1].label] = (20, 24, -40)
        crafted_study(study, folder / f"{study.name}.zarr", onsets)
    (folder / "critical_rate_deep.forecast.json").write_text(json.dumps(FORECAST))
    return folder


def opened(folder: Path, *names: str) -> dict[str, xr.Dataset]:
    return {name: open_cells(folder / f"{name}.zarr") for name in names}


OF_STUDIES = ["critical_rate", "margin", "interventions"]
"""Figures of ramps; those of forks and of constant rates are tested on the committed stores."""


@pytest.mark.parametrize("name", OF_STUDIES)
def test_a_figure_says_what_was_run(
    folder: Path, name: str, tmp_path: Path, has_the_look: Callable[[Figure], bool]
) -> None:
    (path,) = draw_figures([name], folder, tmp_path)
    assert path.stat().st_size > 10_000
    studies, draw = STUDY_FIGURES[name]
    figure = draw(opened(folder, *studies))
    assert all(panel.get_xlabel() and panel.get_ylabel() and panel.lines for panel in figure.axes)
    said = " ".join(figure.get_supxlabel().split())
    assert "Width 16" in said and "3 seeds per case" in said and has_the_look(figure)


@pytest.mark.parametrize(
    ("name", "study"), [(name, study) for name in OF_STUDIES for study in STUDY_FIGURES[name][0]]
)
def test_a_figure_is_drawn_from_any_one_of_its_studies(folder: Path, name: str, study: str) -> None:
    figure = STUDY_FIGURES[name][1](opened(folder, study))
    assert "3 seeds" in " ".join(figure.get_supxlabel().split())
    assert any(panel.lines for panel in figure.axes)


def test_figures_are_drawn_from_the_studies_that_exist(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "stabilisers.zarr").symlink_to(folder / "stabilisers.zarr")
    paths = draw_figures((), tmp_path, tmp_path / "out")
    assert [path.stem for path in paths] == ["interventions", "merge_losses"]


def test_a_figure_without_its_studies_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "critical_rate_deep.zarr").symlink_to(folder / "critical_rate_deep.zarr")
    missing = "interventions.zarr or .*stabilisers.zarr or .*, which does not exist: make it with "
    with pytest.raises(
        StoreError, match=missing + "`mms sweep run interventions --out .*interventions.zarr`"
    ):
        draw_figures(["interventions"], tmp_path, tmp_path)


def test_an_unfinished_study_is_refused(crafted_study: Callable[..., Path], tmp_path: Path) -> None:
    study = shortened(CRITICAL_RATE_SLOPES)
    crafted_study(study, tmp_path / "critical_rate_slopes.zarr", {study.cases[0].label: (20, 21, 22)})
    with pytest.raises(StoreError, match="has 6 cells to do"):
        draw_figures(["critical_rate"], tmp_path, tmp_path)


@pytest.fixture(scope="module")
def settings(folder: Path) -> xr.Dataset:
    return open_cells(folder / "critical_rate_settings.zarr")


def test_delta_is_read_before_the_onset(settings: xr.Dataset) -> None:
    """Onsets 18, 19, 20: Delta is ten times the rate at even steps, and counts up to 5 steps before."""
    rows = steps_before_onset(settings)
    slope = 5e-5 * (16 / 24) ** 0.5
    expected = [10 * slope * np.median(range(2, last + 1, 2)) for last in (12, 14, 14)]
    np.testing.assert_allclose(rows[0]["values"], expected, rtol=1e-5)
    assert rows[0]["median"] == pytest.approx(np.median(expected), rel=1e-5)
    assert len(rows[1]["values"]) == 2
    assert (rows[-1]["values"], rows[-1]["median"]) == ([], None)


def test_a_figure_draws_the_median_of_the_comparison(settings: xr.Dataset) -> None:
    """Onsets 20 and 24 and a divergence, which counts as above its last rate: the median is at step 24."""
    row, slope = study_rows(settings)[1], 5e-5 * (16 / 48) ** 0.5
    assert row["measured"] == pytest.approx(24 * slope, rel=1e-5) and row["measured_high"] is None
    points = draw_margin({"critical_rate_settings": settings}).axes[1].lines
    assert any(line.get_xdata()[0] == row["measured"] for line in points)


def test_predicted_rates_lie_where_they_were_predicted(folder: Path) -> None:
    """Law O2 predicts step 30 for all, the power law step 60; measured medians start at step 19."""
    figure = draw_margin(opened(folder, "critical_rate_settings"))
    points = [line for line in figure.axes[1].lines if line.get_label() == "law O2, from a pilot"]
    slope = 5e-5 * (16 / 24) ** 0.5
    np.testing.assert_allclose(points[0].get_xydata()[0], [19 * slope, 30 * slope], rtol=1e-5)


def test_the_threshold_of_the_forecast_is_drawn(folder: Path) -> None:
    studies = opened(folder, "critical_rate_deep")
    studies["critical_rate_deep"].attrs["forecast"] = json.dumps(FORECAST)
    line = draw_margin(studies).axes[0].lines[0]
    assert set(line.get_ydata()) == {0.02} and "Delta_c" in str(line.get_label())


def test_fitted_and_predicted_depths_have_labels_of_their_own(folder: Path) -> None:
    studies = opened(folder, "critical_rate_depth", "critical_rate_deep", "critical_rate_slopes")
    studies["critical_rate_deep"].attrs["forecast"] = json.dumps(FORECAST)
    figure = draw_critical_rate(studies)
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert {"measured, used for the fit", "measured, forecast before", "O1, coherent"} <= set(labels)
    assert "L^-0.50, fitted on 8 to 32 blocks" in labels
    power = next(line for line in figure.axes[0].lines if str(line.get_label()).startswith("L^"))
    np.testing.assert_allclose(power.get_ydata(), np.exp(-5.0) * np.array([8, 16, 32]) ** -0.5)


def test_controls_stand_beside_their_interventions(folder: Path) -> None:
    figure = draw_interventions(opened(folder, "interventions"))
    labels = [tick.get_text().strip() for tick in figure.axes[0].get_yticklabels()]
    assert labels == [case.label for case in shortened(INTERVENTION_TABLE).cases[1:]]


def test_stabilisers_of_both_depths_share_a_panel(folder: Path) -> None:
    figure = draw_interventions(opened(folder, "stabilisers", "stabilisers_deep"))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["16 blocks", "128 blocks"]


def test_half_rates_are_drawn_with_their_forecasts() -> None:
    """One point per depth, the measured share at every rate, and law O2 where it was forecast."""
    studies = {name: open_cells(DATA / f"{name}.zarr") for name in STUDY_FIGURES["half_rate"][0]}
    for name, data in studies.items():
        if (path := DATA / f"{name}.forecast.json").exists():
            data.attrs["forecast"] = path.read_text()
    figure = draw_half_rate(studies)
    said = " ".join(figure.get_supxlabel().split())
    document = json.loads((DATA / "waiting_time_deep.forecast.json").read_text())
    assert "8 to 1000 blocks" in said and "4 to 28 seeds" in said
    law = next(line for line in figure.axes[1].lines if "law O2" in str(line.get_label()))
    x, y = law.get_xdata(), law.get_ydata()
    predicted = {row["depth"]: row["predicted"] for row in document["half_rates"]}
    assert np.interp(128, x, y) == pytest.approx(predicted[128], rel=0.01)
    del studies["waiting_time_deep"].attrs["forecast"]
    assert draw_half_rate({"waiting_time_deep": studies["waiting_time_deep"]}).axes[1].lines


def test_sizes_are_those_of_the_cells() -> None:
    said = sizes_of(open_cells(DATA / "critical_rate_depth.zarr"))
    assert "width 16, heads 1, 8 to 32 blocks, 16 image + 4 text tokens, batch 4" in said
    assert "rate 5e-05 sqrt(16 / blocks) times the step" in said and "24 seeds per case (10 to 33)" in said


def test_the_committor_is_drawn_from_its_forks() -> None:
    data = open_cells(DATA / "committor.zarr")
    figure = STUDY_FIGURES["committor"][1]({"committor": data})
    left, right, *_ = figure.axes
    assert left.get_xlabel() and right.get_ylabel() and len(left.containers) == 3
    soon = (data["fork_onset"] <= 20).groupby(data["offset"]).mean()
    points = left.containers[0].lines[0].get_ydata()
    assert sorted(points) == pytest.approx(sorted(soon.values))
    assert "12 forks of each of 56 states" in " ".join(figure.get_supxlabel().split())
