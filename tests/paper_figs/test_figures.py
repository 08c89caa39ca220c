"""Every figure is drawn from a tiny store, with labelled axes and something in each panel."""

from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from meanmode.paper_figs.all_figures import FIGURES, draw_figures
from meanmode.sim.store.files import StoreError
from meanmode.sim.store.sweep_store import open_cells

ELSEWHERE = {"frame_means"}
"""Figures that are drawn beside the tables of their study."""


@pytest.mark.parametrize("name", [name for name in FIGURES if name not in ELSEWHERE])
def test_figure_has_labels_lines_and_points(
    name: str,
    tiny_store: Path,
    tiny_token_law: Path,
    tiny_mixers: Path,
    tiny_structured: Path,
    has_the_look: Callable[[Figure], bool],
) -> None:
    store, draw = FIGURES[name]
    structured = sorted(tiny_structured.glob("*.zarr"))
    (path,) = (path for path in (tiny_store, tiny_token_law, tiny_mixers, *structured) if path.name == store)
    figure = draw(open_cells(path))
    assert "seeds" in figure.get_supxlabel() and has_the_look(figure)
    for panel in figure.axes:
        assert panel.lines or panel.collections
    assert any(panel.get_xlabel() for panel in figure.axes) and any(
        panel.get_ylabel() for panel in figure.axes
    )


@pytest.mark.parametrize(
    ("folder", "names"),
    [
        ("tiny_store", ["collapse_front", "depth_profiles"]),
        ("tiny_token_law", ["token_law", "token_regimes"]),
        ("tiny_mixers", ["mixers"]),
    ],
)
def test_all_figures_of_a_folder_are_written(
    folder: str, names: list[str], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    paths = draw_figures((), request.getfixturevalue(folder).parent, tmp_path / "out")
    assert [path.stem for path in paths] == names
    assert all(path.stat().st_size > 10_000 for path in paths)


def test_a_vector_pdf_is_written_on_request(tiny_mixers: Path, tmp_path: Path) -> None:
    picture, vector = draw_figures(("mixers",), tiny_mixers.parent, tmp_path, pdf=True)
    assert (picture.suffix, vector.suffix) == (".png", ".pdf")
    assert vector.read_bytes().startswith(b"%PDF") and b"/FontFile2" in vector.read_bytes()


def test_a_figure_of_another_sweep_is_refused(tiny_token_law: Path) -> None:
    with pytest.raises(
        ValueError, match=r"this figure draws sweeps over depth, .* the store does not vary depth"
    ):
        FIGURES["collapse_front"][1](open_cells(tiny_token_law))


def test_the_figure_of_mixers_draws_no_grid(tiny_store: Path) -> None:
    with pytest.raises(ValueError, match="draws the sweep `mixers`"):
        FIGURES["mixers"][1](open_cells(tiny_store))


@pytest.mark.parametrize(
    ("folder", "state"), [("none", "does not exist"), ("", "holds no store of a figure")]
)
@pytest.mark.parametrize("names", [(), ("mixers",)])
def test_a_folder_without_data_says_where_the_data_are(
    tmp_path: Path, folder: str, state: str, names: tuple[str, ...]
) -> None:
    with pytest.raises(
        ValueError, match=f"{state}: a checkout .* has the data .* in paper_figs/data.*--data$"
    ):
        draw_figures(names, tmp_path / folder, tmp_path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mixers", "which does not exist: make it with `mms sweep run mixers --out .*mixers.zarr`"),
        (
            "long_runs",
            "digits_400l.zarr and .*digits_1000l_mvsplit_long.zarr, .* as docs/results/training_ramps.md",
        ),
        ("dynamic_front", "dynamic_front.json, .*: make it with `mms train` as docs/results/front.md says"),
        ("waiting_time", "make it with `mms waiting STORES --out .*waiting_time.scores.json`"),
        (
            "event_run",
            "event.zarr, which does not exist: make it with `mms train` as docs/results/event.md says",
        ),
    ],
)
def test_a_missing_store_is_named_with_the_command_that_makes_it(
    name: str, said: str, tiny_store: Path, tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match=said):
        draw_figures((name,), tiny_store.parent, tmp_path)


def test_unknown_figure_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown figure 'x': choose from collapse_front"):
        draw_figures(("x",), tmp_path, tmp_path)
