"""Progress of a sweep: rate across stops and processes, time left, failures, kinds of store, old stores."""

import dataclasses
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import zarr

from meanmode.sim.store.run_reader import is_run
from meanmode.sim.store.sweep_store import DONE, FAILED, PROVENANCE, TODO, open_progress
from meanmode.sim.store.sweep_writer import SweepWriter
from meanmode.sweeps.engine.cost import unit_cost
from meanmode.sweeps.engine.event_study import EventStudy
from meanmode.sweeps.engine.status import RECENT_RUNS, recent_rate, status_lines, status_of
from meanmode.sweeps.engine.store_kinds import stored_plan
from meanmode.sweeps.engine.store_layout import check_same, lay_out
from meanmode.sweeps.engine.sweep import Sweep
from meanmode.sweeps.named.all_sweeps import SWEEPS

DATA = Path(__file__).parents[3] / "paper_figs" / "data"
STOCK = (
    *("watched_alarms", "watched_alarms_deep", "watched_alarms_unlogged", "watched_merges"),
    *("backbone_vit", "backbone_text", "backbone_ramps"),
)
KINDS_OF = {
    **{name: "event_study" for name, sweep in SWEEPS.items() if isinstance(sweep, EventStudy)},
    **{name: "committor_study" for name in ("committor", "committor_400")},
    "event_silence": "splitting_study",
    **{name: "stock_study" for name in STOCK},
    "depth_pays": "judged_study",
    **{f"waiting_time{which}_spectrum": "spectrum_study" for which in ("", "_low")},
}
STACKS = {name for name, sweep in SWEEPS.items() if isinstance(sweep, Sweep)} | {"collapse_front_alpha_one"}
NUMBERS = ("cells_per_minute", "gigaflops", "seconds_left", "last_finished")


def serial(count: int, seconds: float, begin: float = 0.0) -> np.ndarray:
    """Finish times of consecutive runs of one process."""
    return begin + seconds * np.arange(1, count + 1)


SCENES = {
    "one process": (serial(8, 2.0), 2.0, 0.5),
    "one run": (serial(1, 4.0), 4.0, 0.25),
    "a stop of a day": (np.concatenate([serial(5, 2.0), serial(5, 2.0, 86400)]), 2.0, 0.5),
    "two processes in step": (np.repeat(serial(6, 2.0), 2), 2.0, 1.0),
    "two processes out of step": (
        np.concatenate([serial(3 * RECENT_RUNS, 2.0), serial(3 * RECENT_RUNS, 2.0, 1.0)]),
        2.0,
        1.0,
    ),
    "more processes than recent runs": (np.repeat(serial(4, 10.0), 4 * RECENT_RUNS), 10.0, 0.4 * RECENT_RUNS),
    "two processes, then four": (
        np.concatenate([np.repeat(serial(500, 2.0), 2), np.repeat(serial(500, 2.0, 1000), 4)]),
        2.0,
        2.0,
    ),
    "writing between runs": (serial(8, 2.5), 2.0, 8 / (7 * 2.5 + 2)),
}


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("begin", [0.0, 1.8e9])
def test_the_rate_is_what_is_finished_while_anything_runs(scene: str, begin: float) -> None:
    ends, seconds, expected = SCENES[scene]
    shuffled = np.random.default_rng(0).permutation(ends) + begin
    walls, ones = np.full(len(ends), seconds), np.ones(len(ends))
    assert recent_rate(shuffled, walls, ones) == pytest.approx(expected, rel=1e-3)
    assert recent_rate(shuffled, walls, 7 * ones) == pytest.approx(7 * expected, rel=1e-3)


def test_the_rate_forgets_how_fast_it_was_long_ago() -> None:
    slow, fast = serial(100, 60.0), serial(200, 1.0, begin=6000)
    walls = np.concatenate([np.full(100, 60.0), np.full(200, 1.0)])
    assert recent_rate(np.concatenate([slow, fast]), walls, np.ones(300)) == pytest.approx(1.0)


def test_nothing_finished_has_no_rate() -> None:
    assert recent_rate(np.empty(0), np.empty(0), np.empty(0)) is None


@pytest.fixture
def half_done(tiny_sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with the first eight of sixteen units done, each in two seconds; one of them failed."""
    store = tmp_path / "s.zarr"
    lay_out(tiny_sweep, store)
    writer, clock = SweepWriter(store), [1.8e9]
    monkeypatch.setattr(time, "time", lambda: clock[0])
    for number, unit in enumerate(tiny_sweep.units()[:8]):
        clock[0] += 2.0
        failed = number == 3
        for cell in unit:
            writer.write(
                cell,
                {},
                FAILED if failed else DONE,
                wall_seconds=2.0,
                failure="RuntimeError: no memory" if failed else "",
            )
    clock[0] += 30.0
    return store


def test_rate_and_time_left_are_by_cost(tiny_sweep: Sweep, half_done: Path) -> None:
    found = status_of(half_done)
    assert [found[name] for name in ("to_do", "done", "failed", "diverged")] == [16, 14, 2, 0]
    units = tiny_sweep.units()
    operations = sum(unit_cost(tiny_sweep, unit) for number, unit in enumerate(units[:8]) if number != 3)
    assert found["gigaflops"] == pytest.approx(operations / 14 / 1e9)
    assert found["cells_per_minute"] == pytest.approx(60)
    left = sum(unit_cost(tiny_sweep, unit) for unit in units[8:])
    assert found["seconds_left"] == pytest.approx(14 * left / operations)
    assert found["last_finished"] == 1.8e9 + 16
    assert [failure["cell"] for failure in found["failures"]] == sorted(units[3])
    lines = status_lines(found)
    assert lines[0] == "to_do 16  done 14  failed 2  diverged 0"
    assert lines[1].startswith("60 cells per minute; ") and lines[1].endswith("last cell 30 s ago")
    assert lines[2].endswith("merge plain, seed 3) failed: RuntimeError: no memory") and len(lines) == 4
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    "change",
    [{}, {"ensemble": 2}, {"device": "cuda"}, {"backward": True}, {"axes": {}, "cases": ({"depth": 3},)}],
)
def test_a_store_tells_its_sweep(tiny_sweep: Sweep, tmp_path: Path, change: dict[str, object]) -> None:
    sweep = dataclasses.replace(tiny_sweep, **change)
    lay_out(sweep, tmp_path / "s.zarr")
    stored = stored_plan(open_progress(tmp_path / "s.zarr").attrs)
    assert stored == sweep and stored.units() == sweep.units()


def test_many_failures_are_not_all_shown(half_done: Path) -> None:
    found = status_of(half_done)
    found["failures"] = found["failures"][:1] * 50
    lines = status_lines(found)
    assert len(lines) == 23 and lines[-1] == "30 more failures: --json lists all"


def test_nothing_is_left_of_a_finished_sweep(tiny_store: Path) -> None:
    found = status_of(tiny_store)
    assert found["seconds_left"] == 0 and found["cells_per_minute"] > 0 and found["failures"] == []
    assert abs(found["last_finished"] - time.time()) < 86400


def test_an_empty_store_knows_no_rate(mms, tiny_sweep: Sweep, tmp_path: Path) -> None:
    lay_out(tiny_sweep, tmp_path / "s.zarr")
    found = json.loads(mms("sweep", "status", tmp_path / "s.zarr", "--json")[1])
    assert found["to_do"] == 32 and [found[name] for name in NUMBERS] == [None] * 4
    assert mms("sweep", "status", tmp_path / "s.zarr")[1] == "to_do 32  done 0  failed 0  diverged 0\n"


def test_a_store_of_an_older_version_is_counted(mms, tiny_store: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(tiny_store, tmp_path / "s.zarr"))
    for name in PROVENANCE:
        shutil.rmtree(store / name)
    group = zarr.open_group(store, mode="r+")
    group["status"][5], group["status"][6] = FAILED, TODO
    found = status_of(store)
    assert (found["done"], found["failed"], found["to_do"]) == (30, 1, 1)
    assert [found[name] for name in NUMBERS] == [None] * 4 and found["failures"][0]["error"] == ""
    assert "failed: no message was stored" in mms("sweep", "status", store)[1]


@pytest.mark.parametrize(
    ("command", "name", "lacks"),
    [
        ("onset", "committor", "committor holds a committor study: no onsets"),
        ("compare", "waiting_time_spectrum", "holds spectral scores of networks: nothing to compare"),
    ],
)
def test_what_a_kind_of_store_lacks_is_said(mms, command: str, name: str, lacks: str) -> None:
    status, out, err = mms(command, DATA / f"{name}.zarr")
    assert status == 2 and out == "" and lacks in err and err.count("\n") == 1


def test_a_kind_of_a_newer_version_is_refused(mms, tiny_store: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(tiny_store, tmp_path / "s.zarr"))
    assert zarr.open_group(store, mode="r+").attrs["plan"] == "sweep"
    zarr.open_group(store, mode="r+").attrs["plan"] = "dream"
    status, _, err = mms("sweep", "status", store)
    assert status == 2 and "the store is of the unknown kind 'dream': a newer version has written it" in err


@pytest.mark.parametrize("name", sorted(path.stem for path in DATA.glob("*.zarr") if not is_run(path)))
def test_committed_stores_tell_their_sweep_and_state(name: str) -> None:
    store = DATA / f"{name}.zarr"
    found = status_of(store)
    assert found["done"] > 0 and found["failed"] == found["to_do"] == found["seconds_left"] == 0
    sweep = stored_plan(open_progress(store).attrs)
    assert sweep.kind == KINDS_OF.get(name, "sweep" if name in STACKS else "study")
    assert len(sweep.cells) == found["done"] + found["diverged"]
    check_same(sweep, store)
