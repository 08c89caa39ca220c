"""The tables of results are those that the committed stores give, and `mms results` refreshes them."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from meanmode.paper_figs.gallery import gallery
from meanmode.sweeps.studies.detection import VIEWS, labelled_runs, score
from meanmode.sweeps.studies.markdown import pipe_table
from meanmode.sweeps.studies.results.pages import calls_of, generated, refreshed
from meanmode.sweeps.studies.results.tables import TABLES as RESULTS
from meanmode.sweeps.studies.results.training_tables import detection_line

ROOT = Path(__file__).parents[2]
DATA = ROOT / "paper_figs" / "data"
PAGES = [ROOT / "docs" / "gallery.md", *sorted((ROOT / "docs" / "results").glob("*.md"))]
TABLES = {**RESULTS, "gallery": gallery}
SLOW = ("detection",)
"""Tables that take minutes."""

CALLS = [(page, call) for page in PAGES for call in calls_of(page.read_text())]


@pytest.mark.parametrize(
    ("page", "call"),
    [
        pytest.param(page, call, id=call, marks=[pytest.mark.slow] if call.split()[0] in SLOW else [])
        for page, call in CALLS
    ],
)
def test_the_tables_are_made_from_the_committed_stores(page: Path, call: str) -> None:
    block = f"<!-- generated: {call} -->\n\n{generated(call, TABLES, DATA)}\n\n<!-- end -->"
    assert block in page.read_text(), f"run mms results: {page.name} is out of date"


DETECTED = ("detector_unseen",)
"""Studies that the rules of the detector were not set on."""


@pytest.mark.parametrize("view", ["all signals, every 10 steps", "loss and gradient norm, every 10 steps"])
def test_the_detector_does_what_the_table_says(view: str) -> None:
    """The two views of sparse logs, without the minutes that the whole table takes."""
    runs = labelled_runs([DATA / f"{study}.zarr" for study in DETECTED])
    line = pipe_table([], [detection_line(score(runs, VIEWS[view]).row(view))]).splitlines()[-1]
    assert line in (ROOT / "docs" / "results" / "warning.md").read_text()


def test_every_table_is_on_a_page() -> None:
    assert {call.split()[0] for _, call in CALLS} == set(TABLES)


def test_every_block_ends_and_every_page_is_in_the_index() -> None:
    for page in PAGES:
        text = page.read_text()
        marks = re.findall(r"<!-- (generated|end)", text)
        assert marks == ["generated", "end"] * len(calls_of(text)), page.name
    index = (ROOT / "docs" / "results" / "index.md").read_text()
    assert [
        page.name for page in PAGES[1:] if page.name != "index.md" and f"({page.name})" not in index
    ] == []


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """A folder with a page of one quick table that is out of date."""
    page = "# Samples\n\n<!-- generated: samples fashion_evaluation -->\nold\n<!-- end -->\n\nProse.\n"
    (tmp_path / "page.md").write_text(page)
    return tmp_path


def test_results_rewrites_what_is_out_of_date_once(
    mms: Callable[..., tuple[int, str, str]], docs: Path
) -> None:
    before = (docs / "page.md").read_text()
    status, out, _ = mms("results", "--data", DATA, "--docs", docs, "--check")
    assert (status, (docs / "page.md").read_text()) == (1, before)
    assert "out of date" in out and "samples fashion_evaluation" in out
    assert mms("results", "--data", DATA, "--docs", docs)[0] == 0
    text = (docs / "page.md").read_text()
    assert "| FID-EffNetLite0(n=500, real) | 22.32 | - |" in text and "old" not in text and "Prose." in text
    status, out, _ = mms("results", "--data", DATA, "--docs", docs, "--check")
    assert status == 0 and "up to date" in out


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("nothing event", "unknown table 'nothing'"),
        ("event_factors", "missing a required argument"),
        ("samples fashion_evaluation colour=red", "unexpected keyword argument"),
        ("samples elsewhere", "is not a JSON document"),
        ("fronts elsewhere", "elsewhere"),
    ],
)
def test_a_block_that_cannot_be_made_is_refused(call: str, message: str) -> None:
    page = f"<!-- generated: {call} -->\n<!-- end -->\n"
    with pytest.raises((ValueError, OSError), match=message):
        refreshed(page, TABLES, DATA)


def test_a_folder_without_pages_is_refused(mms: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    status, _, err = mms("results", "--docs", tmp_path)
    assert status == 2 and "--docs" in err
