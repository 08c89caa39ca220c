"""Every figure is drawn from a tiny store, with labelled axes and something in each panel."""

from pathlib import Path

import pytest

from paper_figs import FIGURES, draw_figures
from sim.store import open_sweep


@pytest.mark.parametrize("name", FIGURES)
def test_figure_has_labels_lines_and_points(name: str, tiny_store: Path) -> None:
    _, draw = FIGURES[name]
    figure = draw(open_sweep(tiny_store))
    assert "seeds" in figure.get_suptitle()
    for panel in figure.axes:
        assert panel.lines or panel.collections
    assert any(panel.get_xlabel() for panel in figure.axes) and any(
        panel.get_ylabel() for panel in figure.axes
    )


def test_all_figures_are_written(tiny_store: Path, tmp_path: Path) -> None:
    paths = draw_figures((), tiny_store.parent, tmp_path / "out")
    assert [path.stem for path in paths] == list(FIGURES)
    assert all(path.stat().st_size > 10_000 for path in paths)


def test_unknown_figure_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown figure 'x': choose from collapse_front"):
        draw_figures(("x",), tmp_path, tmp_path)
