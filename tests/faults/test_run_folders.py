"""Run folders and checkpoints: nothing executed, nothing deleted that is not ours, one trainer at a time."""

import io
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.distributed.checkpoint import metadata

from meanmode.dit.train.checkpoint_files import checkpoint_folders, digest_of
from meanmode.sim.store.run_reader import open_run

SMALL = (
    "digits-16l",
    *(word for name in ("depth=2", "steps=4", "checkpoint_every=2") for word in ("--set", name)),
)
"""The run that the folder `whole` holds."""

READERS = {
    "sample": ("sample", "run", "--each", 1, "--steps", 1, "--out", "x.png"),
    "export": ("export", "run", "--out", "x.safetensors"),
    "evaluate": ("evaluate", "run", "--probe", "timestep", "--samples", 3),
    "measure": ("measure", "run", "--samples", 2, "--out", "x.zarr"),
    "front": ("predict", "front", "--from", "run"),
    "fork": ("train", *SMALL, "--set", "steps=6", "--fork", "run", "--out", "x"),
    "resume": ("train", *SMALL, "--set", "steps=6", "--resume", "--out", "run"),
}
"""Every command that reads a checkpoint."""

COPY = Callable[[str], Path]


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content, but for the lock of a run."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def last(run: Path) -> Path:
    return checkpoint_folders(run)[-1]


def rewrite(checkpoint: Path, name: str, new: bytes) -> None:
    """Change a file of a checkpoint, and its digest in the manifest to match."""
    (checkpoint / name).write_bytes(new)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest[name] = digest_of(checkpoint / name)
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.file}",)


class Evaluated(Touch):
    """Evaluates an expression when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"open({str(self.file)!r}, 'w')",)


def edited(change: Callable[[metadata.Metadata], object]) -> Callable[[bytes, Path], bytes]:
    """A table of contents in which one thing is changed."""

    def edit(table: bytes, _: Path) -> bytes:
        found = pickle.loads(table)
        change(found)
        return pickle.dumps(found)

    return edit


def _elsewhere(table: metadata.Metadata) -> None:
    for part in table.storage_data.values():
        part.relative_path = "../../../../etc/passwd"


def _other_file(table: metadata.Metadata) -> None:
    for part in table.storage_data.values():
        part.relative_path = "pipe"


def _bytes_entries(table: metadata.Metadata) -> None:
    for name in list(table.state_dict_metadata):
        table.state_dict_metadata[name] = metadata.BytesStorageMetadata()


def _huge(table: metadata.Metadata) -> None:
    for entry in table.state_dict_metadata.values():
        entry.size = type(entry.size)([2**40])


def _negative(table: metadata.Metadata) -> None:
    for part in table.storage_data.values():
        part.offset = -1


TABLES: dict[str, Callable[[bytes, Path], bytes]] = {
    "a command": lambda _, touched: pickle.dumps(Touch(touched)),
    "an expression": lambda _, touched: pickle.dumps(Evaluated(touched)),
    "getattr": lambda *_: b"\x80\x04\x8c\x08builtins\x8c\x07getattr\x93\x8c\x02os\x8c\x06system\x86R.",
    "a command in an attribute": lambda table, touched: edited(
        lambda found: setattr(found, "planner_data", Touch(touched))
    )(table, touched),
    "a command of protocol 0": lambda _, touched: f"cos\nsystem\n(S'touch {touched}'\ntR.".encode(),
    "a dotted name": lambda *_: b"\x80\x04\x8c\x05torch\x8c\x14serialization.os.sys\x93.",
    "a class that is changed": lambda *_: (
        b"\x80\x04\x8c\x29torch.distributed.checkpoint.metadata\x8c\x08Metadata\x93N}\x8c\x01aNs\x86b."
    ),
    "path traversal": edited(_elsewhere),
    "a pipe as its file": edited(_other_file),
    "entries of bytes": edited(_bytes_entries),
    "huge tensors": edited(_huge),
    "negative offsets": edited(_negative),
    "no tensors": edited(lambda found: found.state_dict_metadata.clear()),
    "no places": edited(lambda found: found.storage_data.clear()),
    "another object": lambda *_: pickle.dumps({"a": 1}),
    "a huge memo": lambda *_: b"\x80\x04Nr\xff\xff\xff\x7f.",
    "nested deep": lambda *_: b"\x80\x04}" + b")" + b"\x85" * 1_000_000 + b"Ns.",
    "huge": lambda *_: pickle.dumps(["x" * 1000] * 10_000 + list(range(5_000_000))),
    "cut": lambda table, _: table[: len(table) // 2],
    "empty": lambda *_: b"",
}


def planted(run: Path, kind: str) -> Path:
    """Plant a table of contents in all checkpoints of a run; return the file that nothing may create."""
    touched = run.parent / "touched"
    for checkpoint in checkpoint_folders(run):
        os.mkfifo(checkpoint / "pipe")
        rewrite(checkpoint, ".metadata", TABLES[kind]((checkpoint / ".metadata").read_bytes(), touched))
    return touched


@pytest.mark.parametrize("command", READERS)
def test_a_hostile_checkpoint_runs_nothing(attempt: Any, copy_of: COPY, tmp_path: Path, command: str) -> None:
    run = copy_of("run")
    touched, before = planted(run, "a command"), content(run)
    said = attempt(*READERS[command], folder=tmp_path).refusal()
    assert ".metadata is no table of tensors: it calls" in said
    assert not touched.exists() and content(run) == before


@pytest.mark.parametrize("kind", TABLES)
def test_hostile_tables_are_refused(attempt: Any, copy_of: COPY, tmp_path: Path, kind: str) -> None:
    run = copy_of("run")
    touched, before = planted(run, kind), content(run)
    for command in ("export", "resume"):
        said = attempt(*READERS[command], folder=tmp_path).refusal()
        assert str(last(run).relative_to(tmp_path)) in said
        assert not touched.exists() and content(run) == before


DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000


@pytest.mark.parametrize("command", ["fork", "resume"])
@pytest.mark.parametrize("name", ["run.json", "manifest.json", "config.json"])
@pytest.mark.parametrize(
    "harm",
    [DEEP, b"", b"[]", b"null", b'{"step": "x"}', b"\xff\xfe", b'{"model": [], "training": 3}', None],
    ids=["deep", "empty", "list", "null", "types", "bytes", "sections", "pipe"],
)
def test_damaged_documents_are_named(
    attempt: Any, copy_of: COPY, tmp_path: Path, command: str, name: str, harm: bytes | None
) -> None:
    run = copy_of("run")
    for folder in checkpoint_folders(run) if name != "config.json" else [run]:
        if harm is None:
            (folder / name).unlink()
            os.mkfifo(folder / name)
        elif name == "run.json":
            rewrite(folder, name, harm)
        else:
            (folder / name).write_bytes(harm)
    said = attempt(*READERS[command], folder=tmp_path).refusal()
    assert name in said or "run" in said
    assert not said.startswith("mms: unexpected")


@pytest.mark.parametrize(
    ("note", "value"),
    [
        ("step", -1),
        ("step", True),
        ("step", 10**30),
        ("configuration", []),
        ("wall_s", "long"),
        ("factors", {"readers": None}),
        ("roll_backs", 1.5),
        ("encoders", [1]),
    ],
)
def test_notes_of_the_wrong_type_are_named(
    attempt: Any, copy_of: COPY, tmp_path: Path, note: str, value: object
) -> None:
    run = copy_of("run")
    for checkpoint in checkpoint_folders(run):
        notes = json.loads((checkpoint / "run.json").read_text())
        rewrite(checkpoint, "run.json", json.dumps({**notes, note: value}).encode())
    for command in ("fork", "resume"):
        assert f"its {note} is" in attempt(*READERS[command], folder=tmp_path).refusal()


@pytest.mark.parametrize(
    ("field", "value"),
    [("depth", 65_000), ("width", 2**20), ("depth", "2"), ("heads", None), ("side", 8192), ("rope", 1)],
)
def test_a_configuration_that_is_not_that_of_the_tensors_is_refused(
    attempt: Any, copy_of: COPY, tmp_path: Path, field: str, value: object
) -> None:
    run = copy_of("run")
    (run / "config.json").unlink()
    for checkpoint in checkpoint_folders(run):
        notes = json.loads((checkpoint / "run.json").read_text())
        notes["configuration"]["model"] |= {field: value}
        notes["configuration"]["model"] |= {"text_width": value} if field == "width" else {}
        rewrite(checkpoint, "run.json", json.dumps(notes).encode())
    if field == "side":  # no weight depends on it; the data do
        attempt(*READERS["sample"], folder=tmp_path).refusal()
        return
    said = attempt(*READERS["export"], folder=tmp_path).refusal()
    assert field in said or "does not match its configuration" in said


def _compressed(arrays: dict[str, np.ndarray]) -> bytes:
    found = io.BytesIO()
    np.savez_compressed(found, **arrays)
    return found.getvalue()


def _pickled() -> bytes:
    found = io.BytesIO()
    np.savez(found, until=np.array([{"a": 1}], dtype=object))
    return found.getvalue()


def _claimed() -> bytes:
    found = io.BytesIO()
    with zipfile.ZipFile(found, "w") as archive:
        head = b"{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999,), }"
        archive.writestr("until.npy", b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head)
    return found.getvalue()


@pytest.mark.parametrize(
    "watch",
    [b"", b"no archive", _compressed({"until": np.zeros(10**7)}), _pickled(), _claimed()],
    ids=["empty", "no archive", "compressed", "pickled", "claimed"],
)
def test_damaged_measurements_are_named(attempt: Any, copy_of: COPY, tmp_path: Path, watch: bytes) -> None:
    run = copy_of("run")
    for checkpoint in checkpoint_folders(run):
        rewrite(checkpoint, "watch.npz", watch)
    assert "watch.npz is damaged" in attempt(*READERS["resume"], folder=tmp_path).refusal()


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "..", ""])
def test_a_manifest_names_files_of_its_checkpoint_only(
    attempt: Any, copy_of: COPY, tmp_path: Path, name: str
) -> None:
    run = copy_of("run")
    checkpoint = last(run)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    (checkpoint / "manifest.json").write_text(json.dumps({**manifest, name: "0"}))
    said = attempt("export", checkpoint, "--out", "x.pt", folder=tmp_path).refusal()
    assert "which is no file of the checkpoint" in said


# ownership


def test_an_imported_run_is_not_taken(attempt: Any, copy_of: COPY, tmp_path: Path) -> None:
    copy_of("log.jsonl")
    assert attempt("import", "log.jsonl", "--out", "r", folder=tmp_path, seconds=60).code == 0
    before = content(tmp_path / "r")
    said = attempt("train", *SMALL, "--out", "r", folder=tmp_path).refusal()
    assert "telemetry.zarr" in said or "zarr.json" in said or "Zarr store" in said
    assert content(tmp_path / "r") == before


@pytest.mark.parametrize(
    "name", ["telemetry.zarr", "checkpoints", "weights", "autopsy-00000001.txt", "config.json"]
)
@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_a_user_has_is_not_taken(attempt: Any, tmp_path: Path, name: str, kind: str) -> None:
    out, mine = tmp_path / "r", tmp_path / "mine"
    out.mkdir()
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    if kind == "link":
        (out / name).symlink_to(mine)
    elif kind == "file":
        (out / name).write_text("years of work")
    else:
        shutil.copytree(mine, out / name)
    before = content(tmp_path)
    said = attempt("train", *SMALL, "--out", "r", folder=tmp_path).refusal()
    assert "r already holds" in said
    assert content(tmp_path) == before


@pytest.mark.parametrize("out", ["sweep.zarr", "text.txt", "pipe", "/proc/x", "text.txt/r"])
def test_a_place_that_is_no_folder_is_refused(attempt: Any, whole: Path, out: str) -> None:
    before = content(whole)
    assert out in attempt("train", *SMALL, "--out", out, folder=whole).refusal()
    assert content(whole) == before


def test_other_files_in_the_folder_stay(attempt: Any, tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "notes.txt").write_text("mine")
    assert attempt("train", *SMALL, "--out", "r", folder=tmp_path, seconds=60).code == 0
    assert (tmp_path / "r" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("harm", ["half", "hidden", "unnamed"])
def test_a_beginning_that_was_cut_off_is_taken_up(
    attempt: Any, copy_of: COPY, tmp_path: Path, harm: str
) -> None:
    """Killed while it lays out its telemetry, before its configuration, before the telemetry has its name."""
    run = copy_of("run")
    shutil.rmtree(run / "checkpoints")
    (run / "telemetry.zarr").rename(run / ".telemetry.begun")
    resume: tuple[str, ...] = ()
    if harm == "half":
        (run / ".telemetry.begun").rename(run / "..telemetry.begun.0123.partial")
    if harm == "unnamed":  # an empty store, since no step is made before it is named
        shutil.rmtree(run / ".telemetry.begun")
        fresh = tmp_path / "fresh"
        assert attempt("train", *SMALL, "--out", fresh, folder=tmp_path, seconds=60).code == 0
        (fresh / "telemetry.zarr").rename(run / ".telemetry.begun")
        document = json.loads((run / ".telemetry.begun" / "zarr.json").read_text())
        document["attributes"] |= {"logged_steps": 0, "events": "[]"}
        (run / ".telemetry.begun" / "zarr.json").write_text(json.dumps(document))
        resume = ("--resume",)
    else:
        (run / "config.json").unlink()
    ended = attempt("train", *SMALL, *resume, "--out", "run", folder=tmp_path, seconds=60)
    assert ended.code == 0, ended.err
    assert {path.name for path in run.iterdir()} == {".lock", "config.json", "telemetry.zarr", "checkpoints"}
    assert open_run(run).sizes["step"] == 4


# one trainer per folder


def _train(out: str, delay: float, answers: Any) -> None:
    """Train a tiny run in this process after a while; answer with how it ended."""
    from meanmode.dit.config.presets import PRESETS
    from meanmode.dit.train.trainer import Trainer

    run = PRESETS["digits-16l"].with_options(
        {"depth": "1", "steps": "3", "telemetry_every": "0", "stop_on": "never"}
    )
    time.sleep(delay)
    try:
        Trainer(run, Path(out)).train()
        answers.put((os.getpid(), ""))
    except Exception as error:
        answers.put((os.getpid(), f"{error}"))


def _pair(out: Path, delays: tuple[float, float]) -> dict[int, str]:
    """Start two trainers on one folder; return by process why it failed, if it did."""
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    both = [context.Process(target=_train, args=(str(out), delay, answers)) for delay in delays]
    for process in both:
        process.start()
    found = dict(answers.get(timeout=120) for _ in both)
    for process in both:
        process.join()
    return found


PAIRS = """
import json, random, sys, torch
from pathlib import Path
torch.set_num_threads(1)
import meanmode.dit.train.trainer, meanmode.dit.config.presets, accelerate, dask.array
import sklearn.datasets.data, sklearn.datasets.descr, torch._dynamo
from tests_of_pairs import _pair
chance = random.Random(int(sys.argv[3]))
for number in range(int(sys.argv[2])):
    delays = (0.0, chance.uniform(0, 0.3)) if number % 4 else (0.0, 0.0)
    out = Path(sys.argv[1]) / str(number)
    print(json.dumps(_pair(out, delays)), flush=True)
"""


def pairs_in(folder: Path, count: int, seed: int) -> list[dict[str, str]]:
    """How pairs of trainers ended that were forked from a fresh process, one pair per folder."""
    shutil.copy(__file__, folder / "tests_of_pairs.py")
    (folder / "pairs.py").write_text(PAIRS)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    command = [sys.executable, "-W", "ignore", "pairs.py", ".", str(count), str(seed)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("count", [8, pytest.param(50, marks=pytest.mark.slow)])
def test_of_two_trainers_on_a_folder_one_trains(tmp_path: Path, count: int) -> None:
    ends = pairs_in(tmp_path, count, seed=count)
    assert len(ends) == count
    for number, found in enumerate(ends):
        winners = [process for process, why in found.items() if not why]
        losers = [why for why in found.values() if why]
        assert len(winners) == len(losers) == 1, found
        named = f"{number} is in use: process {winners[0]} on " in losers[0]
        assert named or "already holds a run" in losers[0], found
        assert open_run(tmp_path / str(number)).sizes["step"] == 3
        assert [path.name for path in checkpoint_folders(tmp_path / str(number))] == ["step-00000003"]


@pytest.fixture
def living(start: Any, copy_of: COPY) -> Any:
    """A trainer that resumes a copy of the run for a long time, stopped at the end."""
    run = copy_of("run")
    words = [str(word) for word in SMALL if word not in ("steps=4", "checkpoint_every=2")]
    words = [
        word for at, word in enumerate(words) if word != "--set" or words[at + 1 : at + 2] == ["depth=2"]
    ]
    settings = ("--set", "steps=100000", "--set", "checkpoint_every=100000")
    process = start("train", *words, *settings, "--resume", "--out", run)
    deadline = time.monotonic() + 60
    while not (run / ".owner.json").exists() and process.running and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.running
    return process


@pytest.mark.parametrize(
    "words",
    [("train", *SMALL, "--resume", "--out", "run"), ("sweep", "compact", "run")],
    ids=["resume", "compact"],
)
def test_beside_a_living_trainer_is_refused(attempt: Any, living: Any, tmp_path: Path, words: Any) -> None:
    said = attempt(*words, folder=tmp_path).refusal()
    assert f"run is in use: process {living.pids[0]} on " in said
    assert living.running


def test_a_killed_trainer_is_no_obstacle(attempt: Any, living: Any, tmp_path: Path) -> None:
    assert living.kill() == [-signal.SIGKILL]
    assert (tmp_path / "run" / ".owner.json").exists()
    ended = attempt("train", *SMALL, "--resume", "--out", "run", folder=tmp_path, seconds=60)
    assert ended.code == 0, ended.err
    assert not (tmp_path / "run" / ".owner.json").exists()


# lost checkpoints


def test_with_all_checkpoints_damaged_nothing_is_dropped(attempt: Any, copy_of: COPY, tmp_path: Path) -> None:
    run = copy_of("run")
    for checkpoint in checkpoint_folders(run):
        os.truncate(next(checkpoint.glob("*.distcp")), 10)
    before = content(run)
    said = attempt("train", *SMALL, "--resume", "--out", "run", folder=tmp_path).refusal()
    assert "holds no intact checkpoint of its own" in said and "--begin-anew" in said
    assert content(run) == before
    ended = attempt("train", *SMALL, "--resume", "--begin-anew", "--out", "run", folder=tmp_path, seconds=60)
    assert ended.code == 0, ended.err
    aside = {name: kept for name, kept in content(run / "before-1").items()}
    assert aside == before
    assert open_run(run / "before-1").sizes["step"] == open_run(run).sizes["step"] == 4
    assert attempt("export", "run", "--out", "w.pt", folder=tmp_path, seconds=60).code == 0


def test_a_run_with_its_checkpoints_gone_is_not_trained_again_unasked(
    attempt: Any, copy_of: COPY, tmp_path: Path
) -> None:
    run = copy_of("run")
    shutil.rmtree(run / "checkpoints")
    said = attempt("train", *SMALL, "--resume", "--out", "run", folder=tmp_path).refusal()
    assert "has logged 4 steps, but its checkpoints are gone" in said


def test_beginning_anew_is_refused_beside_an_intact_checkpoint(
    attempt: Any, copy_of: COPY, tmp_path: Path
) -> None:
    run = copy_of("run")
    before = content(run)
    said = attempt("train", *SMALL, "--resume", "--begin-anew", "--out", "run", folder=tmp_path).refusal()
    assert "step-00000004 is intact" in said and content(run) == before
    assert "--resume" in attempt("train", *SMALL, "--begin-anew", "--out", "x", folder=tmp_path).refusal()


@pytest.fixture
def two_runs(attempt: Any, copy_of: COPY, tmp_path: Path) -> tuple[Path, Path]:
    """A run, and one of another seed whose last checkpoint is copied into it as one of a later step."""
    run, other = copy_of("run"), tmp_path / "other"
    options = ("--set", "seed=5", "--set", "steps=9")
    ended = attempt("train", *SMALL, *options, "--out", other, folder=tmp_path, seconds=60)
    assert ended.code == 0, ended.err
    shutil.copytree(last(other), run / "checkpoints" / last(other).name)
    return run, other


def test_another_runs_checkpoint_is_neither_used_nor_counted_nor_deleted(
    attempt: Any, two_runs: tuple[Path, Path], tmp_path: Path
) -> None:
    run, _ = two_runs
    foreign = content(run / "checkpoints" / "step-00000009")
    ended = attempt("export", "run", "--out", "w.pt", folder=tmp_path, seconds=60)
    assert ended.code == 0 and "belongs to another run (its seed is 5, not 0)" in ended.err
    options = ("--set", "steps=12", "--set", "keep=1")
    ended = attempt("train", *SMALL, *options, "--resume", "--out", "run", folder=tmp_path, seconds=60)
    assert ended.code == 0 and "at step 12" in ended.out, ended.err
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"step-00000009", "step-00000012"}
    assert content(run / "checkpoints" / "step-00000009") == foreign


def test_another_runs_checkpoint_of_the_same_step_is_renamed(
    attempt: Any, two_runs: tuple[Path, Path], tmp_path: Path
) -> None:
    run, other = two_runs
    before = content(last(other))
    options = ("--set", "steps=9", "--set", "keep=1")
    ended = attempt("train", *SMALL, *options, "--resume", "--out", "run", folder=tmp_path, seconds=60)
    assert ended.code == 0, ended.err
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert names == {"step-00000009", "set-aside-1-step-00000009"}
    assert content(run / "checkpoints" / "set-aside-1-step-00000009") == before


def test_a_damaged_checkpoint_does_not_count(attempt: Any, copy_of: COPY, tmp_path: Path) -> None:
    """With keep=1, a damaged later checkpoint once made the new one be deleted as soon as it was written."""
    run = copy_of("run")
    shutil.copytree(last(run), run / "checkpoints" / "step-00000099")
    os.truncate(next((run / "checkpoints" / "step-00000099").glob("*.distcp")), 10)
    options = ("--set", "steps=6", "--set", "keep=1")
    ended = attempt("train", *SMALL, *options, "--resume", "--out", "run", folder=tmp_path, seconds=60)
    assert ended.code == 0, ended.err
    assert (run / "checkpoints" / "step-00000006").is_dir()
    assert attempt("export", "run", "--out", "w.pt", folder=tmp_path, seconds=60).code == 0


# full disks


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [0, 1, 4, 16, 64])
def test_a_full_disk_is_named_and_what_was_written_resumes(
    attempt: Any, whole: Path, tmp_path: Path, kilobytes: int
) -> None:
    """Files of at most this size can be written, so that telemetry, configuration or checkpoints fail."""
    words = ("train", *SMALL, "--out", "r")
    typed = " ".join(map(str, words))
    limited = f"ulimit -f {kilobytes}; exec {sys.executable} -m meanmode {typed}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    ended = subprocess.run(
        ["bash", "-c", limited], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    said = [line for line in ended.stderr.splitlines() if line.strip() and "it/s" not in line]
    assert ended.returncode == 2 and len(said) == 1 and said[0].startswith("mms: "), ended.stderr
    assert "File too large" in said[0] and (" r " in said[0] or "r/" in said[0])
    begun = (tmp_path / "r" / "config.json").exists()
    assert begun or not (tmp_path / "r").exists()
    assert attempt(*words, *["--resume"] * begun, folder=tmp_path, seconds=60).code == 0
    ours, theirs = open_run(tmp_path / "r"), open_run(whole / "run")
    np.testing.assert_array_equal(ours["loss"].values, theirs["loss"].values)


# divergence, and a fork without a checkpoint of its own


@pytest.mark.parametrize("stop_on", ["never", "divergence"])
def test_a_diverged_training_exits_with_1(attempt: Any, tmp_path: Path, stop_on: str) -> None:
    """Also where it is resumed when it is complete."""
    options = (
        "--set",
        f"stop_on={stop_on}",
        "--set",
        "first_rate=1e12",
        "--set",
        "first_steps=4",
        "--set",
        "clip=none",
    )
    words = ("train", *SMALL, *options, "--out", "r")
    ended = attempt(*words, folder=tmp_path, seconds=60)
    assert ended.code == 1 and ("complete" in ended.out or "not finite" in ended.out), ended.err
    assert attempt(*words, "--resume", folder=tmp_path, seconds=60).code == 1


def test_a_fork_that_was_stopped_before_its_first_checkpoint_starts_where_it_began(
    attempt: Any, copy_of: COPY, tmp_path: Path
) -> None:
    run = copy_of("run")
    words = ("train", *SMALL, "--set", "steps=7", "--set", "checkpoint_every=100")
    ended = attempt(*words, "--fork", "run", "--out", "x", folder=tmp_path, seconds=60)
    assert ended.code == 0, ended.err
    expected = open_run(tmp_path / "x")["loss"].values
    shutil.rmtree(tmp_path / "x" / "checkpoints")
    assert attempt(*words, "--resume", "--out", "x", folder=tmp_path, seconds=60).code == 0
    np.testing.assert_array_equal(open_run(tmp_path / "x")["loss"].values, expected)
    shutil.rmtree(tmp_path / "x" / "checkpoints")
    shutil.rmtree(run)
    said = attempt(*words, "--resume", "--out", "x", folder=tmp_path).refusal()
    assert "began at one that is no longer there, run/checkpoints/step-00000004" in said


# arguments


NONSENSE = {
    "first_rate=-1": "first_rate must be at least 0, got -1.0",
    "first_rate=nan": "first_rate must be at least 0, got nan",
    "first_steps=-1": "first_steps must be at least 0, got -1",
    "seed=100000000000000000000000000": "seed must be at most 9223372036854775807",
    "data_seed=9223372036854775808": "data_seed must be at most 9223372036854775807",
    "steps=10000000000000000000000000": "steps must be at most 10000000",
    "interval=1000000000": "interval must be at most 10000",
    "event_window=1000000000000": "event_window must be at most 10000",
    "width=0": "width must be at least 1",
    "width=-4": "width must be at least 1",
    "width=100000000000": "width must be at most 1048576",
    "width=1048576": "this run does not fit",
    "depth=10000000000": "depth must be at most 65536",
    "batch=16777216": "this run does not fit",
    "side=8192": "this run does not fit",
    "ffn_ratio=nan": "ffn_ratio must be positive and finite, got nan",
    "text_tokens=1000000000000": "text_tokens must be at most",
    "copies=1000000": "copies must be at most 64",
    "slope=1e300": "slope must be at most 1e+12",
    "eps=inf": "eps must be at most 1e+12, got inf",
    "alarm_factor=nan": "alarm_factor must be in [0, 1), got nan",
    "keep=100000000000": "keep must be at most 1000000",
    "betas=[0.9, NaN]": "betas must be two numbers",
    'interventions=[[5, "freeze:readers"]]': "at step 5 never acts: the run ends at 4",
    "interventions=[" * 2: "interventions must be a JSON list",
    "interventions=" + "[" * 100_000: "interventions must be a JSON list",
}


@pytest.mark.parametrize(("setting", "said"), NONSENSE.items(), ids=[name[:30] for name in NONSENSE])
def test_nonsense_is_refused_before_anything_is_written(
    attempt: Any, tmp_path: Path, setting: str, said: str
) -> None:
    assert said in attempt("train", *SMALL, "--set", setting, "--out", "x", folder=tmp_path).refusal()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("depth", [65_536, 10**7])
def test_the_estimate_of_a_deep_network_takes_no_time(attempt: Any, tmp_path: Path, depth: int) -> None:
    ended = attempt("train", *SMALL, "--set", f"depth={depth}", "-n", folder=tmp_path)
    assert ended.code == (0 if depth <= 65_536 else 2) and ended.seconds < 5
