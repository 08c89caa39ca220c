"""The figure of modes by merge: its ratio and interval, the arms it compares, and that none collapsed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import xarray as xr
from matplotlib.figure import Figure

from meanmode.paper_figs.all_figures import draw_figures
from meanmode.paper_figs.figures.merge_modes import draw
from meanmode.sim.onset.training_onset import training_onset
from meanmode.sim.store.run_reader import open_run
from meanmode.sweeps.studies.merge_ratios import (
    LAYERSCALE,
    MERGES,
    MV_SPLIT,
    PLAIN,
    arm,
    arms,
    band_ratio,
)
from meanmode.sweeps.studies.run_sizes import run_config

DATA = Path(__file__).parents[2] / "paper_figs" / "data"
STORES = sorted((DATA / "merge_modes").glob("*.zarr"))
DEEPER = sorted((DATA / "merge_modes_64").glob("*.zarr"))


@pytest.fixture(scope="module")
def runs() -> list[xr.Dataset]:
    return [open_run(path) for path in STORES]


def test_it_is_drawn_from_the_committed_runs(tmp_path: Path) -> None:
    (path,) = draw_figures(["merge_modes"], DATA, tmp_path)
    assert path.stat().st_size > 50_000


def test_ratios_are_drawn_with_their_intervals(
    runs: list[xr.Dataset], has_the_look: Callable[[Figure], bool]
) -> None:
    figure = draw(*runs)
    said = " ".join(figure.get_supxlabel().split())
    found = arms(runs)
    ratio = band_ratio(found[MV_SPLIT], found[LAYERSCALE], "g_ctr", "attn")
    interval, point = (line.get_xdata() for line in figure.axes[-1].lines[1:3])
    assert (list(interval), list(point)) == ([ratio.low, ratio.high], [ratio.value])
    assert f"{len(runs) // len(MERGES)} seeds" in said and has_the_look(figure)
    assert all(panel.get_xlabel() and panel.lines for panel in figure.axes)


@pytest.mark.parametrize("path", [*STORES, *DEEPER], ids=lambda path: f"{path.parent.stem}-{path.stem}")
def test_no_run_collapsed(path: Path) -> None:
    assert training_onset(open_run(path)).kind == "none"


def scaled(run: xr.Dataset, first: float, second: float) -> xr.Dataset:
    """A run whose g_ctr has one value up to 72 % of its steps, and another one after."""
    value = xr.where(run["step"] <= 0.72 * run.sizes["step"], first, second)
    return run.assign(g_ctr=value + 0 * run["g_ctr"])


def test_the_ratio_is_of_geometric_means_over_seeds_in_the_second_half(runs: list[xr.Dataset]) -> None:
    over = {seed: scaled(runs[0], 100.0, value) for seed, value in enumerate((2.0, 24.0))}
    under = {seed: scaled(runs[0], 7.0, value) for seed, value in enumerate((1.0, 3.0))}
    ratio = band_ratio(over, under, "g_ctr", "ffn")
    assert (ratio.value, ratio.low, ratio.high, ratio.seeds) == pytest.approx((4.0, 2.0, 8.0, 2))


def test_pairs_of_one_seed_leave_no_spread(runs: list[xr.Dataset]) -> None:
    """Seeds differ a thousandfold, but by the same factor in both arms."""
    over = {seed: scaled(runs[0], 1.0, 3 * 10.0**seed) for seed in range(4)}
    under = {seed: scaled(runs[0], 1.0, 10.0**seed) for seed in range(4)}
    ratio = band_ratio(over, under, "g_ctr", "attn")
    assert (ratio.low, ratio.high) == pytest.approx((3.0, 3.0))


def test_arms_that_differ_in_seeds_are_refused(runs: list[xr.Dataset]) -> None:
    with pytest.raises(ValueError, match="arms of the same seeds and steps"):
        draw(*runs[1:])


def test_a_run_of_another_merge_is_refused(runs: list[xr.Dataset]) -> None:
    document = json.loads(runs[0].attrs["configuration"])
    document["model"]["merge"] = "rezero"
    with pytest.raises(ValueError, match="got a run of merge 'rezero'"):
        arms([runs[0].assign_attrs(configuration=json.dumps(document))])


def test_the_arms_of_layerscale_differ_in_their_writers(runs: list[xr.Dataset]) -> None:
    assert {name: len(of) for name, of in arms(runs).items()} == dict.fromkeys(MERGES, len(runs) // 4)
    assert json.loads(arms(runs)[PLAIN][0].attrs["configuration"])["model"]["merge"] == "plain"


@pytest.mark.parametrize(
    ("writer", "said"), [("attn", "10.00 (9.06 to 10.79)"), ("ffn", "12.17 (10.72 to 13.82)")]
)
def test_the_ratio_at_64_blocks(writer: str, said: str) -> None:
    by_arm: dict[str, dict[int, xr.Dataset]] = {LAYERSCALE: {}, MV_SPLIT: {}}
    for path in DEEPER:
        run = open_run(path)
        by_arm[arm(run)][run_config(run).training.seed] = run
    assert str(band_ratio(by_arm[MV_SPLIT], by_arm[LAYERSCALE], "g_ctr", writer)) == said
