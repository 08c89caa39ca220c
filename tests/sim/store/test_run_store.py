"""The run store: data come back bitwise, whether late, resumed or extended; full disks, damage."""

import errno
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr

from meanmode.sim.store.compaction import compact
from meanmode.sim.store.files import StoreError, StoreExistsError, Variable
from meanmode.sim.store.run_reader import is_run, open_run
from meanmode.sim.store.run_store import create_run
from meanmode.sim.store.run_writer import RunWriter

ROOT = Path(__file__).parents[3]

VARIABLES = {
    "loss": Variable(definition="Loss of the batch"),
    "tcs": Variable(dims=("block",), definition="Mean cosine over pairs of tokens"),
    "g_mean": Variable(dims=("block", "writer"), definition="Mean-coherent gradient"),
    "grad_norm_family": Variable(dims=("family",), definition="Gradient norm by family"),
}
SIZES = {"block": range(4), "writer": ("attn", "ffn"), "family": ["embedding", "W_O"]}
INTERVAL = 10


def lay_out(path: Path, steps: int = 60) -> Path:
    attributes = {"configuration": json.dumps({"depth": 3})}
    create_run(path, steps=steps, interval=INTERVAL, sizes=SIZES, variables=VARIABLES, attributes=attributes)
    return path


def row(step: int) -> dict[str, Any]:
    """Values that a run logs at a step: observables at a few steps, and a loss that is sometimes NaN."""
    rng = np.random.default_rng(step)
    values: dict[str, Any] = {"loss": np.nan if step % 17 == 0 else rng.normal()}
    values["grad_norm_family"] = rng.normal(size=2)
    if step % 7 == 0:
        values |= {"tcs": rng.normal(size=4), "g_mean": rng.normal(size=(4, 2)).astype(np.float32)}
    return values


def log(writer: RunWriter, steps: Iterable[int]) -> None:
    """Log like a trainer: an alarm at every 13th step, followed by the observables of the steps before it."""
    for step in steps:
        writer.log(step, row(step))
        if step % 13 == 0:
            writer.annotate({"step": step, "signal": "g_mean", "value": np.float32(step) / 3})
            for late in range(max(step - 5, 1), step):
                writer.log(late, {"tcs": np.full(4, late / 7)})


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with 25 of 60 steps, in intervals of ten."""
    path = lay_out(tmp_path_factory.mktemp("run") / "telemetry.zarr")
    writer = RunWriter(path)
    log(writer, range(1, 26))
    writer.flush()
    return path


@pytest.fixture
def store(logged: Path, tmp_path: Path) -> Path:
    """A copy to resume or to damage."""
    return Path(shutil.copytree(logged, tmp_path / "telemetry.zarr"))


def bits(path: Path) -> dict[str, bytes]:
    """Bytes of every array that is read, and of the events."""
    run = open_run(path)
    arrays = {name: np.asarray(run[name].values, str if run[name].dtype == object else None) for name in run}
    return {name: values.tobytes() for name, values in arrays.items()} | {
        "sizes": repr(dict(run.sizes)).encode(),
        "step": run["step"].values.tobytes(),
        "events": run.attrs["events"].encode(),
    }


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_was_logged_comes_back(store: Path) -> None:
    run = open_run(store)
    assert run["step"].values.tolist() == list(range(1, 26))
    assert run["g_mean"].dims == ("step", "block", "writer") and run["writer"].values[1] == "ffn"
    assert {str(run[name].dtype) for name in ("tcs", "g_mean", "grad_norm_family")} == {"float32"}
    for step in (1, 14, 17, 25):
        here, logged = run.sel(step=step), row(step)
        np.testing.assert_array_equal(here["loss"].values, logged["loss"])
        np.testing.assert_array_equal(
            here["grad_norm_family"].values, logged["grad_norm_family"].astype(np.float32)
        )
    np.testing.assert_array_equal(run["g_mean"].sel(step=14).values, row(14)["g_mean"])
    assert run["g_mean"].sel(step=15).isnull().all()
    assert json.loads(run.attrs["events"]) == [
        {"step": 13, "signal": "g_mean", "value": pytest.approx(13 / 3)}
    ]


def test_plain_xarray_reads_a_store(store: Path) -> None:
    with xr.open_zarr(store, consolidated=False) as data:
        logged = data.isel(step=slice(data.attrs["logged_steps"])).load()
    xr.testing.assert_equal(
        logged.drop_vars(["writer", "family"]), open_run(store).drop_vars(["writer", "family"])
    )
    assert data.sizes["step"] == 60 and data["step"].values.tolist() == list(range(1, 61))
    for name in VARIABLES:
        assert data[name].attrs["long_name"] == VARIABLES[name].definition
        assert zarr.open_array(store / name).chunks == (INTERVAL, *data[name].shape[1:])


def test_it_is_found_in_the_folder_of_its_run(store: Path) -> None:
    assert bits(store.parent) == bits(store)
    assert RunWriter(store.parent).last == 25
    assert is_run(store) and is_run(store.parent) and not is_run(store.parent.parent)


def test_scalars_keep_every_digit_and_an_overflow_is_infinite(store: Path) -> None:
    writer = RunWriter(store)
    writer.log(26, {"loss": 1e300 / 3, "tcs": [1e39, -1e39, 0.1, np.nan]})
    writer.flush()
    last = open_run(store).isel(step=-1)
    assert float(last["loss"]) == 1e300 / 3
    np.testing.assert_array_equal(last["tcs"].values, np.array([np.inf, -np.inf, 0.1, np.nan], np.float32))


def test_an_interval_is_flushed_when_it_is_complete(tmp_path: Path) -> None:
    store = lay_out(tmp_path / "run.zarr")
    writer = RunWriter(store)
    assert open_run(store).sizes["step"] == 0
    for step, shown in ((9, 0), (10, 10), (29, 20), (30, 30), (33, 30)):
        log(writer, range(writer.last + 1, step + 1))
        assert open_run(store).sizes["step"] == shown
    writer.flush()
    assert open_run(store).sizes["step"] == 33


def test_a_step_is_logged_piece_by_piece(store: Path) -> None:
    """Even the last step of an interval, which its first piece has flushed."""
    writer = RunWriter(store)
    for step in range(26, 32):
        writer.log(step, {"loss": float(step)})
        writer.log(step, {"grad_norm_family": [step, 1.0]})
    writer.flush()
    run = open_run(store).sel(step=slice(26, 31))
    assert run["loss"].values.tolist() == run["grad_norm_family"].values[:, 0].tolist() == list(range(26, 32))


@pytest.mark.parametrize("reopened", [False, True])
@pytest.mark.parametrize("step", [1, 9, 10, 11, 24, 25])
def test_a_late_row_changes_nothing_else(store: Path, step: int, reopened: bool) -> None:
    before = open_run(store)
    writer = RunWriter(store)
    if not reopened:
        log(writer, range(26, 52))
        before = open_run(store)
    late = np.arange(8, dtype=np.float32).reshape(4, 2)
    writer.log(step, {"g_mean": late})
    writer.flush()
    after = open_run(store).isel(step=slice(before.sizes["step"]))
    expected = before.copy(deep=True)
    expected["g_mean"].loc[{"step": step}] = late
    xr.testing.assert_equal(after, expected)


@pytest.mark.parametrize("after", [0, 1, 20, 23, 30, 37, None])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, after: int | None) -> None:
    """Logged to step 37 and killed with a few steps unflushed; resumed from a checkpoint."""
    whole, stopped = lay_out(tmp_path / "whole.zarr"), lay_out(tmp_path / "stopped.zarr")
    log(writer := RunWriter(whole), range(1, 56))
    writer.flush()
    log(writer := RunWriter(stopped), range(1, 38))
    writer.flush()
    log(writer, range(38, 40))
    del writer
    kept = 37 if after is None else after
    writer = RunWriter(stopped, after=after)
    assert writer.last == kept and open_run(stopped).sizes["step"] == kept
    assert all(event["step"] <= kept for event in json.loads(open_run(stopped).attrs["events"]))
    log(writer, range(kept + 1, 56))
    writer.flush()
    assert bits(stopped) == bits(whole)
    assert files(stopped) == files(whole)


def test_what_is_dropped_is_gone_for_good(store: Path) -> None:
    """Also for plain readers, and if the resumed run does not log that observable."""
    writer = RunWriter(store, after=7)
    writer.flush()
    with xr.open_zarr(store, consolidated=False) as data:
        assert data.sel(step=slice(8, None)).isnull().all().to_array().all()
    log(writer, range(8, 26))
    writer = RunWriter(store, after=12)
    for step in range(13, 31):
        writer.log(step, {"loss": 0.0})
    run = open_run(store)
    assert run["tcs"].sel(step=slice(13, None)).isnull().all() and run["tcs"].sel(step=7).notnull().all()
    assert (run["loss"].sel(step=slice(13, None)) == 0).all() and run.attrs["events"] == "[]"


def test_a_longer_run_grows_the_store(store: Path, tmp_path: Path) -> None:
    whole = lay_out(tmp_path / "whole.zarr", steps=60)
    log(RunWriter(whole, steps=130), range(1, 131))
    writer = RunWriter(store, after=25, steps=130)
    assert writer.steps == 130
    log(writer, range(26, 131))
    assert bits(store) == bits(whole)
    with xr.open_zarr(store, consolidated=False) as data:
        assert data["step"].values.tolist() == list(range(1, 131))
    assert RunWriter(store, steps=40).steps == 130


@pytest.mark.parametrize("name", ["step", "loss", "g_mean"])
def test_a_kill_while_growing_is_healed(store: Path, name: str) -> None:
    before = bits(store)
    array = zarr.open_array(store / name, mode="r+")
    array.resize((90, *array.shape[1:]))
    assert bits(store) == before
    RunWriter(store, steps=80)
    with xr.open_zarr(store, consolidated=False) as data:
        assert data.sizes["step"] == (80 if name == "step" else 90)
        assert data["step"].values.tolist() == list(range(1, data.sizes["step"] + 1))
    assert bits(store) == before


def test_a_forked_run_starts_after_its_checkpoint(tmp_path: Path) -> None:
    store = lay_out(tmp_path / "fork.zarr")
    assert RunWriter(store, after=23).first == 24
    writer = RunWriter(store, after=23)
    writer.log(24, row(24))
    writer.flush()
    writer = RunWriter(store)
    for step in range(25, 41):
        writer.log(step, row(step))
    run = open_run(store)
    assert run["step"].values.tolist() == list(range(24, 41))
    np.testing.assert_array_equal(run["g_mean"].sel(step=28).values, row(28)["g_mean"])
    with pytest.raises(ValueError, match="step 23 cannot be logged: the next step is 41, the first row 24"):
        RunWriter(store).log(23, {})
    with pytest.raises(StoreError, match="cannot resume after step 20: steps 24 to 40 are logged"):
        RunWriter(store, after=20)


def test_events_hold_numbers_of_every_kind(store: Path) -> None:
    writer = RunWriter(store, after=0)
    writer.annotate({"step": np.int64(0), "text": "begun", "value": [np.float64(0.1), float("inf")]})
    writer.flush()
    assert json.loads(open_run(store).attrs["events"]) == [
        {"step": 0, "text": "begun", "value": [0.1, float("inf")]}
    ]


@pytest.mark.parametrize(
    ("step", "values", "message"),
    [
        (27, {}, "step 27 cannot be logged: the next step is 26"),
        (0, {}, "step 0 cannot be logged"),
        (26, {"colour": 1.0}, "'colour' is not a variable of the run: choose from loss, tcs"),
        (26, {"loss": [1.0]}, r"loss must have shape \(\) at each step, got \(1,\)"),
        (26, {"tcs": 1.0}, r"tcs must have shape \(4,\) at each step, got \(\)"),
        (3, {"g_mean": np.ones((2, 4))}, r"g_mean must have shape \(4, 2\) at each step, got \(2, 4\)"),
    ],
)
def test_what_cannot_be_logged_is_refused_and_leaves_no_trace(
    store: Path, step: int, values: dict[str, Any], message: str
) -> None:
    before, writer = files(store), RunWriter(store)
    with pytest.raises(ValueError, match=message):
        writer.log(step, {"loss": 5.0} | values)
    writer.flush()
    assert writer.last == 25 and files(store) == before


def test_steps_beyond_the_plan_are_refused(tmp_path: Path) -> None:
    writer = RunWriter(lay_out(tmp_path / "run.zarr", steps=12))
    log(writer, range(1, 13))
    with pytest.raises(ValueError, match="step 13 is beyond the 12 planned: reopen the run with more steps"):
        writer.log(13, {})


@pytest.mark.parametrize(
    "event", [{}, {"step": "3"}, {"step": 3, "run": object()}, {"step": 1, "x": np.ones(2)}]
)
def test_an_event_without_step_or_beyond_json_is_refused(store: Path, event: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"an event (needs a whole number as its step|must be JSON)"):
        RunWriter(store).annotate(event)


@pytest.mark.parametrize("after", [-1, 26])
def test_a_run_resumes_only_from_a_logged_step(store: Path, after: int) -> None:
    before = files(store)
    with pytest.raises(StoreError, match=f"cannot resume after step {after}: steps 1 to 25 are logged"):
        RunWriter(store, after=after)
    assert files(store) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps of a run must be at least 1, got 0"),
        ({"interval": 0}, "interval of a run must be at least 1, got 0"),
        ({"sizes": {"block": range(4)}}, "g_mean has dimension writer, which has no size: choose from block"),
        ({"sizes": SIZES | {"tcs": range(2)}}, "tcs is a dimension of the run"),
    ],
)
def test_an_inconsistent_layout_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    plan: dict[str, Any] = {"steps": 9, "interval": 2, "sizes": SIZES, "variables": VARIABLES}
    with pytest.raises(ValueError, match=message):
        create_run(tmp_path / "run.zarr", **{**plan, **change}, attributes={})
    assert list(tmp_path.iterdir()) == []


def test_an_existing_run_is_not_created_again(store: Path) -> None:
    before = files(store)
    with pytest.raises(StoreExistsError, match="already exists: pass --resume"):
        lay_out(store)
    assert files(store) == before


@pytest.mark.parametrize("damage", [None, b"", b"garbage", "flipped"])
@pytest.mark.parametrize(("name", "number"), [("loss", 0), ("loss", 2), ("g_mean", 1), ("g_mean", 2)])
def test_a_lost_or_damaged_chunk_is_named(
    store: Path, name: str, number: int, damage: bytes | str | None
) -> None:
    chunk = damaged(store / name / "c" / str(number), damage)
    where = (
        f"rows {10 * number + 1} to {10 * number + 10} of {name} are missing"
        if damage is None
        else f"{name} cannot"
    )
    with pytest.raises(StoreError, match=where):
        open_run(store)
    writer = RunWriter(store, after=10 * number)
    log(writer, range(writer.last + 1, 31))
    assert chunk.exists() and open_run(store).sizes["step"] == 30


def damaged(path: Path, damage: bytes | str | None) -> Path:
    (chunk,) = (file for file in (path, *path.rglob("*")) if file.is_file())
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.unlink() if damage is None else chunk.write_bytes(content if isinstance(damage, str) else damage)
    return chunk


@pytest.mark.parametrize("name", ["tcs", "step", "writer"])
def test_a_lost_array_is_named(store: Path, name: str) -> None:
    shutil.rmtree(store / name)
    for use in (open_run, RunWriter):
        with pytest.raises(StoreError, match=f"truncated: it lacks a readable {name}"):
            use(store)


@pytest.mark.parametrize(
    ("name", "value"), [("events", "{"), ("variables", "{}"), ("interval", 0), ("logged_steps", "x")]
)
def test_a_damaged_attribute_is_named(store: Path, name: str, value: object) -> None:
    zarr.open_group(store, mode="r+").attrs[name] = value
    for use in (open_run, RunWriter):
        with pytest.raises(StoreError, match=f"is damaged: its attribute {name}"):
            use(store)


def test_fewer_rows_than_are_logged_are_noticed(store: Path) -> None:
    zarr.open_array(store / "tcs", mode="r+").resize((20, 4))
    with pytest.raises(StoreError, match="tcs has 20 of 25 logged steps"):
        open_run(store)


def test_a_sweep_or_a_missing_path_is_not_a_run(tmp_path: Path) -> None:
    sweep = ROOT / "paper_figs" / "data" / "collapse_front.zarr"
    with pytest.raises(
        StoreError, match="is not a 'mean-mode run' store: its attribute kind is 'mean-mode sweep'"
    ):
        open_run(sweep)
    with pytest.raises(StoreError, match="does not exist"):
        open_run(tmp_path / "absent")


def filled_after(writes: int, patch: pytest.MonkeyPatch) -> None:
    """Let the disk be full after this many writes."""
    write, done = Path.write_bytes, []

    def filling(path: Path, content: bytes) -> int:
        if len(done) == writes:
            write(path, content[:10])
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        done.append(path)
        return write(path, content)

    patch.setattr(Path, "write_bytes", filling)


@pytest.mark.parametrize("writes", range(6))
def test_a_full_disk_leaves_the_store_as_it_was(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """Four chunks, the metadata, and the next interval; then there is room again.

    Late values of flushed steps may already be in the store.
    """
    before, writer = open_run(store).drop_vars("tcs"), RunWriter(store)
    with monkeypatch.context() as patch:
        filled_after(writes, patch)
        with pytest.raises(
            StoreError, match=r"could not be written \(No space left on device\) and stays at"
        ) as full:
            log(writer, range(26, 45))
            writer.flush()
        assert "\n" not in str(full.value)
    assert not list(tmp_path.rglob("*.partial"))
    shown = 30 if writes >= 5 else 25
    assert open_run(store).sizes["step"] == shown
    assert open_run(store).drop_vars("tcs").isel(step=slice(25)).equals(before)
    log(writer, range(writer.last + 1, 56))
    writer.flush()
    assert open_run(store).sizes["step"] == 55
    np.testing.assert_array_equal(
        open_run(store)["loss"].values, [row(step)["loss"] for step in range(1, 56)]
    )


def test_a_full_disk_leaves_no_new_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled_after(3, monkeypatch)
    with pytest.raises(StoreError, match="could not be created"):
        lay_out(tmp_path / "run.zarr")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def finished(store: Path) -> Path:
    """A run that was finished before its planned last step."""
    RunWriter(store).finish()
    return store


def test_a_finished_run_is_compacted_to_the_bit_and_is_read_only(finished: Path) -> None:
    before, run = bits(finished), open_run(finished)
    compact(finished.parent)
    assert bits(finished) == before
    xr.testing.assert_identical(open_run(finished), run)
    assert all(len(files(finished / name)) == 2 for name in ("step", *VARIABLES))
    with pytest.raises(StoreError, match="compacted and therefore read-only"):
        RunWriter(finished)
    once = files(finished.parent)
    compact(finished)
    assert files(finished.parent) == once


def test_a_run_within_one_interval_is_compacted_too(tmp_path: Path) -> None:
    store = lay_out(tmp_path / "run.zarr", steps=3)
    writer = RunWriter(store)
    log(writer, range(1, 4))
    writer.flush()
    compact(store)
    assert open_run(store).sizes["step"] == 3
    with pytest.raises(StoreError, match="read-only"):
        RunWriter(store)


def test_an_unfinished_run_is_not_compacted(store: Path) -> None:
    before = files(store)
    with pytest.raises(StoreError, match="is at step 25 of 60: only a finished run can be compacted"):
        compact(store)
    assert files(store) == before


def test_a_finished_run_can_be_extended(finished: Path, tmp_path: Path) -> None:
    whole = lay_out(tmp_path / "whole.zarr")
    for path in (finished, whole):
        writer = RunWriter(path, steps=60)
        log(writer, range(writer.last + 1, 61))
    assert bits(finished) == bits(whole)
