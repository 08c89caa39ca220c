"""`mms report` as a command: where it writes, what it refuses, a run that grows, and who names it."""

import errno
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meanmode.sweeps.report import making

Command = Callable[..., tuple[int, str, str]]
MARK = '<meta name="generator" content="mms report">'


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_page_is_one_file_below_five_megabytes(
    mms: Command, collapsed: Path, tiny_store: Path, tmp_path: Path
) -> None:
    """Runs and stores side by side; what comes from files is escaped, and a rule forbids requests."""
    code, out, err = mms("report", collapsed, tiny_store, "--out", "both.html")
    assert (code, out, err) == (0, "both.html\n", "")
    text = (tmp_path / "both.html").read_text()
    assert len(text) < 5_000_000 and MARK in text and "default-src 'none'" in text
    assert [path.name for path in tmp_path.iterdir()] == ["both.html"]
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    outside = re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert not re.findall(r"(?:src|href)=[\"'](?!data:|#)", outside)


def test_the_name_follows_the_subject(mms: Command, craft: Callable[..., Path]) -> None:
    (Path("mine")).mkdir()
    craft(Path("mine/telemetry.zarr"), 30)
    assert mms("report", "mine")[1] == "mine.report.html\n"
    assert mms("report", "mine/telemetry.zarr")[1] == "mine.report.html\n"
    assert making.default_out([Path("a"), Path("b")]) == Path("report.html")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("runs/lr0.001", "lr0.001"),
        ("runs/lr0.002.zarr", "lr0.002"),
        ("runs/lr0.001/..", "runs"),
        ("loss0.1.jsonl.gz", "loss0.1"),
        ("loss0.1", "loss0.1"),
    ],
)
def test_only_known_suffixes_are_left_out_of_the_name(path: str, name: str) -> None:
    """Two learning rates do not overwrite each other, and a report has a name in every folder."""
    Path("runs/lr0.001").mkdir(parents=True)
    assert making.default_out([Path(path)]) == Path(f"{name}.report.html")


@pytest.mark.parametrize(
    ("out", "said"),
    [("taken.html", "is no report"), ("folder", "is a folder"), ("missing/x.html", "is no folder")],
)
def test_nothing_else_is_overwritten(
    mms: Command, collapsed: Path, tmp_path: Path, out: str, said: str
) -> None:
    (tmp_path / "taken.html").write_text("mine")
    (tmp_path / "folder").mkdir()
    code, _, err = mms("report", collapsed, "--out", out)
    assert code == 2 and said in err and len(err.splitlines()) == 1
    assert (tmp_path / "taken.html").read_text() == "mine" and len(list(tmp_path.iterdir())) == 2


def test_a_full_disk_leaves_the_older_page(
    mms: Command, collapsed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = f"<head>{MARK}</head>"
    (tmp_path / "x.html").write_text(older)
    write = Path.write_bytes

    def full(path: Path, content: Any) -> int:
        write(path, content[:1000])
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    code, _, err = mms("report", collapsed, "--out", "x.html")
    assert code == 2 and "No space left on device" in err and len(err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["x.html"]
    assert (tmp_path / "x.html").read_text() == older


def test_a_missing_extra_is_named_before_any_work(
    mms: Command, collapsed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "find_spec", lambda name: None)
    for words in (("report", collapsed), ("train", "digits-16l", "--out", "run", "--report")):
        code, _, err = mms(*words)
        assert code == 2 and "pip install 'mean-mode-screaming[report]'" in err and len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_growing_run_is_watched_to_its_end(
    mms: Command,
    craft: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    interrupted: bool,
) -> None:
    """Each time that the watch waits, the run grows; in between it cannot be read, and the page stays."""
    run, pages = craft(tmp_path / "run.zarr", 40), []

    def wait(_: float) -> None:
        pages.append(Path("run.report.html").read_text())
        if interrupted:
            raise KeyboardInterrupt
        if len(pages) == 1:
            (run / "loss").rename(run / "moved")
            (run / "zarr.json").touch()
        elif len(pages) == 2:
            (run / "moved").rename(run / "loss")
            craft(run, 90)
        else:
            craft(run, 120)

    monkeypatch.setattr(making.time, "sleep", wait)
    code, out, err = mms("report", run, "--watch")
    assert (code, out) == (0, "run.report.html\n") and "--watch" in pages[0]
    assert "in steps 1 to 40, so far" in pages[0] and 'data-reload="10"' in pages[0]
    last = Path("run.report.html").read_text()
    assert "data-reload=" not in last
    if interrupted:
        assert "watching ended" in err and "so far" in last
    else:
        assert pages[1] == pages[0] and "the page is left as it was" in err
        assert "collapsed at step 82" not in pages[2] and "collapsed at step 82" in last


def test_a_growing_file_in_a_folder_is_watched(mms: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder itself does not change when a log in it does; nor does the page in it count."""
    pages: list[str] = []

    def log(first: int, stop: int) -> None:
        with Path("logs/deep/log.jsonl").open("a") as file:
            file.writelines(f'{{"step": {step}, "loss": 1.0}}\n' for step in range(first, stop))

    def wait(_: float) -> None:
        pages.append(Path("logs/page.html").read_text())
        if len(pages) == 4:
            raise KeyboardInterrupt
        if len(pages) < 3:
            log(20 * len(pages), 20 * len(pages) + 20)

    Path("logs/deep").mkdir(parents=True)
    log(1, 20)
    monkeypatch.setattr(making.time, "sleep", wait)
    assert mms("report", "logs", "--watch", "--out", "logs/page.html")[0] == 0
    assert all(f"in steps 1 to {last}" in page for last, page in zip((19, 39, 59), pages, strict=False))
    assert pages[3] == pages[2]


def test_training_ends_with_the_command_to_look_at_it(mms: Command) -> None:
    short = ("--set", "steps=2", "--set", "depth=2")
    assert "look at it: mms report run\n" in mms("train", "digits-16l", *short, "--out", "run")[2]
    again = mms("train", "digits-16l", *short, "--out", "run", "--resume", "--report")
    assert "look at it: run.report.html\n" in again[2] and MARK in Path("run.report.html").read_text()


def test_a_sweep_ends_with_the_command_to_look_at_it(mms: Command) -> None:
    small = "--tokens 4 --width 16 --heads 2 --weight-std 0.2 --input-cosine 0.3 --depth 4 --merge plain"
    code, _, err = mms("sweep", "run", *small.split(), "--seeds", 1, "--out", "a b.zarr", "--report")
    assert code == 0 and "look at it: a b.report.html\n" in err and Path("a b.report.html").exists()
    again = mms("sweep", "run", *small.split(), "--seeds", 1, "--out", "a b.zarr", "--resume")
    assert "look at it: mms report 'a b.zarr'\n" in again[2]


@pytest.mark.parametrize("failed", [False, True])
def test_a_report_that_fails_hides_no_outcome(
    mms: Command, monkeypatch: pytest.MonkeyPatch, failed: bool
) -> None:
    """The failures come first, then a sentence; the exit code is that of the sweep."""
    from meanmode.sweeps.engine import simulated

    def broken(*_: Any, **__: Any) -> Any:
        raise MemoryError("no room\nfor it")

    monkeypatch.setattr(making, "make_report", broken)
    if failed:
        monkeypatch.setattr(simulated, "simulate", broken)
    small = "--tokens 4 --width 16 --heads 2 --weight-std 0.2 --input-cosine 0.3 --depth 4 --merge plain"
    code, _, err = mms("sweep", "run", *small.split(), "--seeds", 1, "--out", "a.zarr", "--report")
    assert code == int(failed) and ("1 of them failed" in err) == failed
    assert err.endswith("mms: the report was not written (no room for it): mms report a.zarr tries again\n")
