"""The figure of amplification at a collapse: its regressions, which blocks count as active, and its laws."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from meanmode.paper_figs.all_figures import draw_figures
from meanmode.paper_figs.figures.amplification_event import draw
from meanmode.sim.store.run_reader import open_run
from meanmode.sweeps.studies.around_onset import ACTIVE, coherence, moments, regression, regressions
from meanmode.sweeps.studies.run_sizes import run_config
from meanmode.theory.laws.all_laws import LAWS

DATA = Path(__file__).parents[2] / "paper_figs" / "data"


@pytest.fixture(scope="module")
def run() -> xr.Dataset:
    return open_run(DATA / "amplification_event.zarr")


def tokens_of(run: xr.Dataset) -> int:
    model = run_config(run).model
    return model.image_tokens + model.text_tokens


def test_it_is_drawn_from_the_committed_run(tmp_path: Path) -> None:
    (path,) = draw_figures(["amplification_event"], DATA, tmp_path)
    assert path.stat().st_size > 50_000


def test_the_caption_keeps_our_regressions_apart_from_the_papers(run: xr.Dataset) -> None:
    figure = draw(run)
    said = " ".join(figure.get_supxlabel().split())
    assert " ".join(LAWS["A5"].statement.split()) in said
    ours, paper = said.split("The paper's regressions")
    assert "0.961" in paper and "0.961" not in ours
    for (moment, writer), fit in regressions(run).items():
        assert fit is None or f"{writer} {moment} {fit}" in ours
    assert all(panel.get_xlabel() and panel.get_ylabel() for panel in figure.axes)


def test_regression_by_hand() -> None:
    """Sxy 5.5, Sxx 5, Syy 8.75."""
    fit = regression([0, 1, 2, 3], [1, 3, 2, 5])
    assert fit is not None and fit.points == 4
    np.testing.assert_allclose((fit.slope, fit.intercept, fit.r_squared), (1.1, 1.1, 5.5**2 / (5 * 8.75)))


@pytest.mark.parametrize(("x", "y"), [([0, 1], [1, 2]), ([2, 2, 2], [1, 2, 3]), ([], [])])
def test_no_line_through_too_few_points(x: list[float], y: list[float]) -> None:
    assert regression(x, y) is None


def test_only_active_blocks_are_regressed(run: xr.Dataset) -> None:
    """Blocks on the line y = 3 x + 1, and one far off it that is just below the threshold."""
    absolute = xr.zeros_like(run["kappa_abs"]) + run["block"] / 100
    changed = run.assign(
        kappa_abs=absolute, amplification=1 + 3 * (tokens_of(run) - 1) * absolute + 1
    ).transpose("step", "block", "writer")
    changed["amplification"].loc[{"block": 20}] = 1 + ACTIVE
    fits = regressions(changed)
    for fit in fits.values():
        assert fit is not None and fit.points == run.sizes["block"] - 1
        np.testing.assert_allclose((fit.slope, fit.intercept, fit.r_squared), (3, 1, 1), rtol=1e-4)


def test_coherence_counts_every_other_token(run: xr.Dataset) -> None:
    here = coherence(run.assign(kappa=xr.ones_like(run["kappa"])), moments(run)["event"], "attn")
    assert (here["signed"] == tokens_of(run) - 1).all()
    assert here["block"].values.tolist() == list(range(1, run.sizes["block"]))
