"""The gallery has every picture once, and the page it names shows that picture and discusses it."""

from pathlib import Path

import pytest

from meanmode.paper_figs.all_figures import DOCUMENT_FIGURES, FIGURES, RUN_FIGURES, STUDY_FIGURES
from meanmode.paper_figs.gallery import PICTURES, gallery

ROOT = Path(__file__).parents[2]
SAMPLES = {"digits_samples", "fashion_samples"}
"""Pictures that `mms sample` makes."""


def test_every_figure_and_every_picture_is_in_the_gallery() -> None:
    assert set(PICTURES) == {*FIGURES, *RUN_FIGURES, *STUDY_FIGURES, *DOCUMENT_FIGURES, *SAMPLES}
    assert set(PICTURES) == {path.stem for path in (ROOT / "paper_figs").glob("*.png")}


@pytest.mark.parametrize("name", PICTURES)
def test_its_page_shows_the_picture(name: str) -> None:
    shows = PICTURES[name].shows
    assert f"../paper_figs/{name}.png" in (ROOT / "docs" / PICTURES[name].page).read_text()
    assert shows.endswith(".") and ". " not in shows


def test_pictures_are_small() -> None:
    sizes = {path.stem: path.stat().st_size for path in (ROOT / "paper_figs").glob("*.png")}
    assert {name: size for name, size in sizes.items() if size > 200_000} == {}


def test_figures_of_the_paper_come_first_in_its_order() -> None:
    said = gallery(ROOT)
    places = [said.index(f"**Fig. {number}.**") for number in (2, 3, 4, 5, 6, 7, 11)]
    assert places == sorted(places) and places[-1] < said.index("## Other figures")
