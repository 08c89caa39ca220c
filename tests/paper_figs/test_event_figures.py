"""Figures of event studies: what they draw, the paper's numbers marked as such, and what they leave out."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

from meanmode.paper_figs.all_figures import BESIDE, STUDY_FIGURES, draw_figures
from meanmode.paper_figs.figures.events import event_causes, event_factor
from meanmode.sim.store.files import StoreError
from meanmode.sweeps.studies.events.event_curves import since_onset
from meanmode.sweeps.studies.events.event_rules import event_rows
from meanmode.sweeps.studies.events.event_summaries import at_distance

NAMES = ("event", "event_regression", "event_factor", "event_causes", "event_depth")
DATA = Path(__file__).parents[2] / "paper_figs" / "data"
Studies = Mapping[str, xr.Dataset]


@pytest.fixture(scope="module")
def drawn(event_studies: Studies) -> dict[str, Figure]:
    """Every figure, from all of its studies."""
    return {
        name: draw({study: event_studies[study] for study in (*studies, *BESIDE.get(name, ()))})
        for name, (studies, draw) in STUDY_FIGURES.items()
        if name in NAMES
    }


def texts(figure: Figure) -> str:
    """Everything that is written in the panels and in legends above them."""
    panels = [text.get_text() for panel in figure.axes for text in panel.texts]
    return "\n".join(panels + [text.get_text() for legend in figure.legends for text in legend.get_texts()])


@pytest.mark.parametrize("name", NAMES)
def test_panels_are_labelled_and_captions_are_short(
    drawn: dict[str, Figure], name: str, has_the_look: Callable[[Figure], bool]
) -> None:
    figure = drawn[name]
    assert "seed" in figure.get_supxlabel() and has_the_look(figure)
    assert all(panel.lines or panel.containers for panel in figure.axes)
    assert any(panel.get_xlabel() for panel in figure.axes)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_study_is_named_with_its_command(name: str, tmp_path: Path) -> None:
    (tmp_path / "committor.zarr").symlink_to(DATA / "committor.zarr")
    first = STUDY_FIGURES[name][0][0]
    with pytest.raises(StoreError, match=f"make it with `mms sweep run {first} --out .*{first}.zarr`"):
        draw_figures((name,), tmp_path, tmp_path)


def test_all_figures_of_a_folder_of_event_studies_are_written(event_folder: Path, tmp_path: Path) -> None:
    paths = draw_figures((), event_folder, tmp_path)
    assert [path.name for path in paths] == ["event.png", "event_regression.png"]


def test_the_event_is_drawn_where_runs_collapsed_after_the_jump(drawn: dict[str, Figure]) -> None:
    """Both settings at low noise and one twin; of the other twin it says that no run did."""
    said = texts(drawn["event"])
    for case in ("width 64, batch 64, 16", "width 32, batch 32, 64", "width 32, batch 4, 64"):
        assert f"{case} tokens: 2 of 2 collapsed" in said
    assert "width 64, batch 4, 16 tokens: none of 2 collapsed after the jump, 2 before it" in said


def test_the_papers_numbers_are_marked(drawn: dict[str, Figure]) -> None:
    """As dotted lines that say so; nothing else is dotted."""
    loss, mean, centered, readers, *_ = drawn["event"].axes[:6]
    for panel, values in ((loss, {0.79, 1.94}), (mean, {155, 61}), (centered, {1, 3}), (readers, {1e-4})):
        dotted = [line for line in panel.lines if line.get_linestyle() == ":"]
        assert {float(line.get_ydata()[0]) for line in dotted} == values
        assert len(panel.texts) == len(dotted)
        assert all(text.get_text().startswith("paper") for text in panel.texts)
    assert "paper's slope" in texts(drawn["event_regression"])


def test_curves_are_aligned_at_the_onset(event_studies: Studies) -> None:
    """Onsets 12 and 13, whose factors are 60 and 61."""
    data = event_studies["event_replicates"]
    near = since_onset(data, [0, 1], 5)
    assert near["g_mean_all"].sel(since_onset=0, writer="ffn").values == pytest.approx([60, 61])
    assert near["loss"].sel(since_onset=[-1, 0]).values.tolist() == [[0.7, 2.0]] * 2


def test_blocks_on_the_law_have_the_published_regression(drawn: dict[str, Figure]) -> None:
    figure = drawn["event_regression"]
    assert len(figure.axes) == 6
    assert texts(figure).count("this writer: 2 of 2") == texts(figure).count("both: 2 of 2") == 6
    points = next(line for line in figure.axes[0].lines if line.get_linestyle() == "None")
    np.testing.assert_allclose(points.get_xdata(), points.get_ydata())
    assert len(points.get_xdata()) == 8  # blocks 1 to 4 of two runs


def test_the_factor_is_drawn_over_the_half_rate_of_the_batch(
    drawn: dict[str, Figure], event_studies: Studies
) -> None:
    rows = event_rows(event_studies["event_batches"])
    half = at_distance(rows[rows["batch"] == 64]).half.value
    first = sorted(rows.loc[(rows["batch"] == 64) & (rows["onset"] > 0), "rate"])[0]
    distances = [float(of.lines[0].get_xdata()[0]) for of in drawn["event_factor"].axes[0].containers]
    assert any(distance == pytest.approx(first / half) for distance in distances)
    interpolated = [float(of.lines[0].get_xdata()[0]) for of in drawn["event_factor"].axes[1].containers]
    assert interpolated == [4, 64]


def test_a_batch_that_never_collapsed_has_no_distance(event_studies: Studies) -> None:
    data = event_studies["event_batches"]
    silent = data.assign(onset_step=np.nan * data["onset_step"], onset_kind=0 * data["onset_kind"])
    figure = event_factor.draw({"event_batches": silent})
    assert "batch 64: no half rate among the rates" in texts(figure)


def test_runs_without_a_collapse_have_an_arrow(drawn: dict[str, Figure], event_studies: Studies) -> None:
    """Onsets at 20 and 22 over 10 and 11; none within 60 steps."""
    panel = drawn["event_causes"].axes[0]
    points = {int(line.get_ydata()[0]): line for line in panel.lines if line.get_marker() in ("o", "|")}
    labels = [tick.get_text() for tick in panel.get_yticklabels()]
    assert labels[:3] == [
        "mean part of writer gradients deleted",
        "control of it",
        "centered part of writer gradients deleted",
    ]
    assert points[0].get_xdata()[0] == pytest.approx(2) and points[0].get_marker() == "o"
    silent = labels.index("no mean write")
    assert points[silent].get_xdata()[0] == pytest.approx(60 / 10.5) and points[silent].get_marker() == "|"
    assert [text.get_text() for text in panel.texts if text.get_text()][silent] == "0 of 2"
    alone = event_causes.draw({"event_causes": event_studies["event_causes"]})
    assert len(alone.axes) == 1 and len(drawn["event_causes"].axes) == 2


def test_depths_of_all_studies_stand_side_by_side(drawn: dict[str, Figure]) -> None:
    titles = [panel.get_title() for panel in drawn["event_depth"].axes[:4]]
    counts = ["plain 2 of 2, MV-Split 0 of 2"] * 3 + ["plain 1 of 1, MV-Split 0 of 1"]
    depths = (16, 64, 128, 400)
    assert titles == [f"{depth} blocks\n{count}" for depth, count in zip(depths, counts, strict=True)]
