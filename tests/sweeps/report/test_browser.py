"""The page of a report in a real browser: cursor, maps, tables, schemes, phone, no script, no requests."""

import io
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from meanmode.sweeps.report.making import make_report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine"),
    # the browser's pipes close after the interpreter has looked for open ones
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

Open = Callable[..., Any]
"""Context of a loaded page."""


@pytest.fixture(scope="module")
def html(collapsed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run that collapses at step 82 of 120."""
    out = tmp_path_factory.mktemp("page") / "report.html"
    make_report([collapsed], out)
    return out


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def opened(browser: Any, html: Path) -> Open:
    """Open the page; after use, nothing must have gone wrong and nothing must have been asked for."""

    @contextmanager
    def load(**options: Any) -> Iterator[Any]:
        context = browser.new_context(**{"viewport": {"width": 1100, "height": 800}, **options})
        page, said, asked = context.new_page(), [], []
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(html.as_uri())
        if options.get("java_script_enabled", True):
            page.wait_for_selector("html[data-ready]", state="attached")
            while not page.evaluate("Bokeh.documents[0].is_idle"):
                page.wait_for_timeout(20)
        yield page
        assert said == []
        assert {url for url in asked if not url.startswith(("data:", "blob:"))} == {html.as_uri()}
        context.close()

    return load


def picture(page: Any, selector: str) -> np.ndarray:
    """An element of the page as it is painted [H, W, 3], without the bar of the slider that lies over it."""
    page.add_style_tag(content="#cursor { opacity: 0 }")
    with Image.open(io.BytesIO(page.locator(selector).screenshot())) as image:
        return np.asarray(image.convert("RGB"), dtype=int)


def changed(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Rows of pixels that differ between two pictures."""
    return np.flatnonzero((before != after).any(axis=(1, 2)))


def location(page: Any) -> float:
    return float(page.evaluate("Bokeh.documents[0].get_model_by_name('cursor').location"))


def test_the_cursor_moves_in_all_panels_and_in_the_map(opened: Open) -> None:
    """By a pointer in one of them, and by the slider; the values at the cursor follow."""
    with opened() as page:
        assert location(page) == 82
        lines, maps = picture(page, "#lines-0"), picture(page, "#map-0")
        page.locator("#step").focus()
        for _ in range(30):
            page.keyboard.press("ArrowLeft")
        assert location(page) == 52 and page.inner_text("#at") == "52"
        page.wait_for_timeout(300)
        rows = changed(lines, picture(page, "#lines-0"))
        panels = 1 + int((np.diff(rows) > 30).sum())
        assert panels == 7
        assert len(changed(maps, picture(page, "#map-0"))) > 150
        page.evaluate("document.querySelector('#lines-0').scrollIntoView()")
        box = page.locator("#lines-0").bounding_box()
        page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 100)
        page.mouse.move(box["x"] + box["width"] / 3, box["y"] + 100)
        page.wait_for_timeout(100)
        assert 20 < location(page) < 52
        page.get_by_text("Values at the cursor").click()
        assert "TCS" in page.inner_text("#readout-0")


def test_the_map_switches_and_tells_its_values(opened: Open) -> None:
    with opened() as page:
        before, about = picture(page, "#map-0"), page.inner_text("#about-0")
        page.select_option("#choose-0", label="g_ctr, attn")
        page.wait_for_timeout(300)
        assert page.inner_text("#about-0").startswith("g_ctr of a test (log") and about == "tcs of a test"
        assert len(changed(before, picture(page, "#map-0"))) > 150
        page.locator("#map-0").scroll_into_view_if_needed()
        box = page.locator("#map-0").bounding_box()
        for share in (0.9, 0.93):
            page.mouse.move(box["x"] + share * box["width"], box["y"] + 60)
        value = page.inner_text("#value-0")
        assert "g_ctr, attn about 0.000" in value and "block 7" in value


def test_tables_are_sorted_from_the_keyboard(opened: Open) -> None:
    with opened() as page:
        table = page.locator("table").first
        heading = table.locator("th button").nth(1)
        heading.focus()
        for order in ("ascending", "descending"):
            page.keyboard.press("Enter")
            assert table.locator("th").nth(1).get_attribute("aria-sort") == order
            cells = table.locator("tbody tr td:nth-child(2)").all_inner_texts()
            numbers = [int(cell) for cell in cells if cell]
            assert numbers == sorted(numbers, reverse=order == "descending") and cells[-1] == ""


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_both_schemes_and_a_phone(opened: Open, scheme: str, width: int) -> None:
    """Nothing is wider than the screen, and axes are legible on their ground; the button turns the scheme."""
    with opened(color_scheme=scheme, viewport={"width": width, "height": 800}) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        ground = picture(page, "#lines-0")
        assert (np.median(ground) > 128) == (scheme == "light")
        # axes and texts stand out from the ground on either side
        assert np.abs(ground - np.median(ground)).max() > 120
        page.click("#theme")
        page.wait_for_timeout(300)
        assert (np.median(picture(page, "#lines-0")) > 128) == (scheme == "dark")


def test_hostile_names_are_only_text(opened: Open) -> None:
    with opened() as page:
        assert page.locator("h2 b").count() == 0 and "run <b>&.zarr" in page.inner_text("h2")
        page.get_by_text("step 80: <script>alert(1)</script>").click()
        assert page.locator("script").count() == 4


def test_it_is_read_without_javascript(opened: Open) -> None:
    with opened(java_script_enabled=False) as page:
        assert "collapsed at step 82" in page.inner_text(".verdict")
        assert page.locator("noscript img").bounding_box()["height"] > 200
        assert page.get_by_text("Order in depth").first.is_visible()
        assert not page.locator("#cursor").is_visible() and not page.locator("select").is_visible()
