"""What a report says: the verdict of mms onset, where in depth, in which order, how surely."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

from meanmode.sim.store.files import StoreError
from meanmode.sim.store.run_reader import open_run, run_sizes
from meanmode.sim.store.sweep_store import DIVERGED, DONE, FAILED, TODO
from meanmode.sweeps.report import run_subject
from meanmode.sweeps.report.block_maps import block_maps
from meanmode.sweeps.report.contents import Subject, shown
from meanmode.sweeps.report.depth_front import DepthFront
from meanmode.sweeps.report.reduction import Grid, reduced_line, reduced_map
from meanmode.sweeps.report.subjects import MOST_SUBJECTS, read_subjects
from meanmode.sweeps.report.timeline_plot import Shared, timelines_plot
from meanmode.sweeps.report.writing import page
from meanmode.sweeps.studies.run_onset import onset_document

ONSET = 80


@pytest.fixture(scope="module")
def subject(collapsed: Path) -> Subject:
    return read_subjects([collapsed])[0]


def test_the_verdict_is_that_of_onset(subject: Subject, collapsed: Path) -> None:
    document = onset_document(collapsed)
    # its deep blocks, 5 to 8, are alike in the median two steps after the last one is
    assert subject.onset == document["onset_step"] == ONSET + 2
    assert f"collapsed at step {subject.onset}" in subject.verdict and subject.tone == "bad"
    assert list(subject.alarms) == [alarm["step"] for alarm in document["alarms"]] != []


def test_when_where_and_in_which_order(subject: Subject) -> None:
    facts = dict(subject.facts)
    assert f"step {ONSET + 2}, at a learning rate of 0.082" in facts["When"]
    assert "Blocks 7 to 8 were alike first, from step 80" in facts["Where in depth"]
    assert "20 steps before, there was no front" in facts["Where in depth"]
    assert facts["In which order"].startswith("step 80: ") and "Not moved for good" in facts["In which order"]
    tables = {table.title: table for table in subject.tables}
    assert [row[:2] for row in tables["Order in depth"].rows] == [
        ("1 to 2", None),
        ("3 to 4", 84),
        ("5 to 6", 82),
        ("7 to 8", 80),
    ]
    signals = {row[0]: row[1] for row in tables["Order of the signals"].rows}
    assert signals["G_mean"] == 80 and signals["gradient norm"] is None


def test_all_that_was_measured_is_drawn(subject: Subject) -> None:
    assert [panel.title.split(",")[0] for panel in subject.panels] == [
        *("loss", "token cosine (TCS)", "gradient norm", "writer gradients", "amplification A"),
        *("query and key gradients", "learning rate"),
    ]
    assert subject.maps is not None and subject.maps.maps[0].name == "tcs" and len(subject.maps.maps) == 10
    (front,) = subject.maps.marks
    reached = np.isfinite(front.y)
    assert front.x[reached][0] == ONSET and front.y[reached][-1] == pytest.approx(3, abs=1)
    assert [title for title, _ in subject.reports] == ["step 80: <script>alert(1)</script>"]


@pytest.mark.parametrize(
    ("onset", "last", "said", "level"),
    [
        (None, 120, "did not collapse and did not diverge in steps 1 to 120.", "High"),
        (None, 60, "in steps 1 to 60, so far", "High"),
        (-10, 60, "alike from its first step", "High"),
        (100, 110, "although the detector raised an alarm at step 103", "Low"),
    ],
    ids=["learns", "still learns", "born alike", "too early to say"],
)
def test_other_runs_get_other_sentences(
    craft: Callable[..., Path], tmp_path: Path, onset: int | None, last: int, said: str, level: str
) -> None:
    (found,) = read_subjects([craft(tmp_path / "run.zarr", last, onset=onset)])
    assert said in found.verdict and found.unfinished == (last < 120)
    assert dict(found.facts)["Confidence"].startswith(level)


def test_a_run_may_grow_while_it_is_read(collapsed: Path) -> None:
    """Maps are loaded later than the verdict: they leave out what was logged since."""
    depth = DepthFront(open_run(collapsed).sel(step=slice(1, 60)))
    found = block_maps(collapsed, run_sizes(collapsed, ["tcs"]), depth, (1, 60), 10_000)
    assert found is not None and found.width == 60 and found.maps[0].levels.shape == (9, 60)


def test_a_log_gets_the_panels_that_its_data_allow(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    rows = [
        {"step": s, "loss": 2.0 - s / 100, "nan": float("nan")} | {f"tag{i}": s for i in range(400)}
        for s in range(1, 61)
    ]
    log.write_text("\n".join(map(json.dumps, rows)))
    (found,) = read_subjects([log])
    assert "did not collapse" in found.verdict and found.maps is None
    assert any("tokens became alike" in text for text in found.cannot_say)
    assert dict(found.facts)["Confidence"].startswith("Medium")
    assert len(found.panels) == 13 and "300 of 402" in " ".join(found.notes)
    assert "12 of 299 other" in " ".join(found.notes)


@pytest.mark.parametrize(
    ("losses", "tone", "level", "said"),
    [
        ([2.0], "open", "Low", "only 1 row with a finite loss"),
        (np.linspace(2.0, 2.1, 60), "open", "Low", "the loss did not end below 75% of that level"),
        (np.linspace(2.0, 1.0, 60), "good", "Medium", "the loss ended below 75% of that level"),
    ],
    ids=["one row", "does not learn", "learns"],
)
def test_only_a_run_that_learned_is_green(
    tmp_path: Path, losses: list[float], tone: str, level: str, said: str
) -> None:
    log = tmp_path / "log.jsonl"
    rows = [{"step": step, "loss": float(loss)} for step, loss in enumerate(losses, start=1)]
    log.write_text("\n".join(map(json.dumps, rows)))
    (found,) = read_subjects([log])
    confidence = dict(found.facts)["Confidence"]
    assert found.tone == tone and confidence.startswith(level) and said in confidence
    assert ("that it learned does not show" in found.verdict) == (tone == "open")


@pytest.mark.parametrize("peak", [1e39, 1e300])
def test_a_loss_beyond_single_precision_is_drawn(tmp_path: Path, peak: float) -> None:
    log = tmp_path / "log.jsonl"
    losses = [*np.geomspace(1e-9, 1.0, 30), peak]
    log.write_text("\n".join(json.dumps({"step": s, "loss": loss}) for s, loss in enumerate(losses)))
    (found,) = read_subjects([log])
    shared = Shared.over([found])
    assert shared is not None
    grid, _ = timelines_plot(found, 0, ["loss"], shared)
    assert grid.select_one({"name": "line-0-0-0"}).data["y"].max() == peak


def test_the_caption_names_what_is_drawn(subject: Subject, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text("\n".join(json.dumps({"step": 5000 + step, "loss": 1.0}) for step in range(30)))
    (found,) = read_subjects([log])
    assert "Grey dashes: the loss when the log begins. Grey line" in page([found])
    assert "Grey dashes: the initial loss, and TCS of 0.9. Grey line" in page([subject])


def test_alarms_that_are_not_marked_are_counted(
    collapsed: Path, subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_subject, "MOST_ALARMS", 0)
    (found,) = read_subjects([collapsed])
    table = next(table for table in found.tables if table.title == "Alarms of the detector")
    assert found.alarms == table.rows == () != subject.alarms
    assert f"The first 0 of {len(subject.alarms)} alarms are marked and listed." in found.notes


def test_a_sweep_is_its_counts_and_its_forecast(tiny_store: Path) -> None:
    (found,) = read_subjects([tiny_store])
    assert found.verdict.startswith("32 of 32 cells are done.") and "The forecast is off by" in found.verdict
    assert found.maps is not None and [mark.name for mark in found.maps.marks] == [
        "measured front",
        "predicted front",
    ]
    assert found.maps.maps[0].levels.shape == (32, 25)
    table = next(table for table in found.tables if table.title.startswith("Forecast against measured"))
    assert {"tokens", "predicted", "measured", "relative error"} <= set(table.columns)


def test_a_cell_has_one_number_on_the_page(tiny_store: Path, tmp_path: Path) -> None:
    """Its index in the store, as in mms sweep status, whichever cells are left, failed or diverged."""
    path = tmp_path / "some.zarr"
    shutil.copytree(tiny_store, path)
    status = zarr.open_array(path / "status", mode="r+")
    status[:] = TODO
    status[3], status[[7, 20]], status[11] = DIVERGED, DONE, FAILED
    (found,) = read_subjects([path])
    cells = next(table for table in found.tables if table.title == "Cells")
    assert [row[0] for row in cells.rows] == [3, 7, 20] and [row[-1] for row in cells.rows].count(
        "diverged"
    ) == 1
    assert found.maps is not None and all(mark.y.tolist() == [3, 7, 20] for mark in found.maps.marks)
    assert (found.maps.bottom, found.maps.height) == (2.5, 18.0)
    lines = np.flatnonzero((found.maps.maps[0].levels > 0).any(axis=1))
    assert (lines + 3).tolist() == [3, 7, 20] and "cell 11 failed" in found.notes[0]


@pytest.mark.parametrize("count", [0, 5])
def test_a_sweep_that_is_not_done_says_what_is_left(tiny_store: Path, tmp_path: Path, count: int) -> None:
    """Also one without a finished cell."""
    from meanmode.sweeps.engine.execution import run_sweep  # noqa: F401 (the store is written by it)

    shutil.copytree(tiny_store, tmp_path / "part.zarr")
    for file in sorted((tmp_path / "part.zarr" / "status" / "c").iterdir(), key=lambda file: int(file.name))[
        count:
    ]:
        file.unlink()
    (found,) = read_subjects([tmp_path / "part.zarr"])
    assert f"{count} of 32 cells are done, {32 - count} to do" in found.verdict and found.unfinished
    assert any("--resume" in command for _, command in found.next_steps)


@pytest.mark.parametrize("what", ["nothing", "a folder", "no log", "another store", "truncated", "empty run"])
def test_what_is_no_run_is_refused(
    what: str, tmp_path: Path, craft: Callable[..., Path], tiny_store: Path
) -> None:
    path = tmp_path / "it"
    match what:
        case "a folder":
            path.mkdir()
        case "no log":
            path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
        case "another store":
            shutil.copytree(tiny_store / "tcs", path)
        case "truncated":
            craft(path, 60)
            shutil.rmtree(path / "tcs" / "c")
        case "empty run":
            craft(path, 0)
    with pytest.raises((StoreError, ValueError), match="it"):
        read_subjects([path])


def test_too_many_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=f"at most {MOST_SUBJECTS}"):
        read_subjects([tmp_path] * (MOST_SUBJECTS + 1))


def test_a_spike_of_one_step_stays_in_a_timeline() -> None:
    x, y = np.arange(10_000.0), np.zeros(10_000)
    y[[1234, 7777]] = 5, -7
    kept, values = reduced_line(x, y, 50)
    assert (
        len(kept) <= 200
        and {1234.0: 5.0, 7777.0: -7.0}.items() <= dict(zip(kept, values, strict=True)).items()
    )


@pytest.mark.parametrize("spike", [1e6, 1e-6])
def test_a_spike_of_one_block_and_step_stays_in_a_map(spike: float) -> None:
    """In either direction; and the levels say what it was."""
    values = np.ones((3000, 900)) + 0.1 * np.random.default_rng(0).random((3000, 900))
    values[1500, 333] = spike
    grid = Grid.over((1, 3000), (0, 899), 20_000, (600, 256))
    found = reduced_map("m", "", values, np.arange(1, 3001), np.arange(900), grid, hold=True)
    assert found is not None and found.log and found.levels.size <= 20_000 and (found.levels > 0).all()
    level = found.levels[grid.row(np.array([333])), grid.column(np.array([1501]))][0]
    assert level == (255 if spike > 1 else 1)
    assert (found.high if spike > 1 else found.low) == pytest.approx(spike)


def test_a_negative_cosine_is_shown_as_such(collapsed: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    shutil.copytree(collapsed, path)
    zarr.open_array(path / "tcs", mode="r+")[9, 4] = -0.3
    depth = DepthFront(open_run(path))
    found = block_maps(path, run_sizes(path, ["tcs"]), depth, (1, 120), 10_000)
    assert found is not None and found.maps[0].high == 1
    assert found.maps[0].low == pytest.approx(-0.3) and (found.maps[0].levels == 1).any()


def test_gaps_are_held_only_between_measurements() -> None:
    values = np.full((3, 2), np.nan)
    values[0, 1], values[2, 1], values[1, 0] = 1.0, 3.0, np.inf
    grid = Grid.over((1, 11), (0, 3), 100, (100, 100))
    found = reduced_map("m", "", values, np.array([2, 5, 8]), np.array([1, 2]), grid, hold=True)
    assert found is not None and found.levels.shape == (4, 11)
    assert found.levels[2].tolist() == [0, 1, 1, 1, 1, 1, 1, 255, 255, 255, 255]
    assert not found.levels[[0, 1, 3]].any()


def test_names_are_cut_and_printable() -> None:
    assert shown("a\nb\t\x00\u202ec") == "a b ??c" and len(shown("x" * 500)) == 60
