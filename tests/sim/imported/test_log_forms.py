"""Every form of a log, whole and with faults, is read as a person would read it."""

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meanmode.sim.imported.import_plan import plan_import
from meanmode.sim.imported.log_files import read_log
from meanmode.sim.imported.row_steps import Reading
from meanmode.sim.store.files import StoreError
from meanmode.sim.store.run_reader import logged_mask, open_run
from meanmode.sim.store.run_writer import RunWriter

CASES = Path(__file__).parents[4] / "shared" / "cases"
MADE = runpy.run_path(str(Path(__file__).with_name("logs.py")))
LOGS, LINES, story = MADE["LOGS"], MADE["LINES"], MADE["story"]


def test_there_are_many_logs() -> None:
    assert len(LOGS) >= 60 and len({log.name for log in LOGS}) == len(LOGS)


@pytest.mark.parametrize("log", LOGS, ids=lambda log: log.name)
def test_it_is_read(mms, tmp_path: Path, log: Any) -> None:
    source = log.write(tmp_path / "source")
    status, _, said = mms("import", source, "--out", tmp_path / "run", *log.options)
    if log.refused:
        assert status == 2 and log.refused in said and said.count("\n") == 1
        assert not (tmp_path / "run").exists()
        return
    assert status == 0 and log.note in said, said
    run = open_run(tmp_path / "run")
    logged = logged_mask(run, "loss")
    assert run["step"].values[logged].tolist() == log.steps
    np.testing.assert_allclose(run["loss"].values[logged], log.loss, rtol=1e-3)


@pytest.mark.skipif(not CASES.exists(), reason="the cases are not here")
@pytest.mark.parametrize(
    ("case", "rows", "last", "names"),
    [
        ("a02_trainer_state/trainer_state.json", 60, 600, {"loss", "grad_norm", "lr", "eval_loss"}),
        ("a03_guided_progress/progress.csv", 60, 1181, {"loss", "grad_norm", "eval_loss"}),
        ("a05_megatron/main_log.txt", 49, 490, {"loss", "grad_norm", "lr"}),
        ("a08_wandb_history/history.jsonl", 30, 146, {"loss", "grad_norm"}),
        ("a13_gz/metrics.jsonl.gz", 100, 100, {"loss", "grad_norm"}),
        ("b01_killed_in_a_line/metrics.jsonl", 80, 80, {"loss", "grad_norm"}),
        ("b02_header_again_after_resume/metrics.csv", 110, 110, {"loss", "tcs"}),
        ("b09_second_file_restarts", 95, 95, {"loss", "tcs"}),
        ("c01_two_names_one_variable/metrics.csv", 60, 60, {"train_loss", "train_loss_2", "tcs"}),
        ("c04_steps_as_floats/metrics.csv", 60, 60, {"loss", "tcs"}),
        ("c06_semicolons/metrics.csv", 60, 60, {"loss", "tcs"}),
        ("d02_nan_to_the_end_no_cosine/metrics.csv", 180, 18000, {"loss", "grad_norm"}),
        ("d06_fine_tuning_blows_up/metrics.csv", 12, 300, {"loss", "tcs"}),
    ],
)
def test_the_cases_are_read(mms, tmp_path: Path, case: str, rows: int, last: int, names: set[str]) -> None:
    status, _, said = mms("import", CASES / case, "--out", tmp_path / "run")
    assert status == 0, said
    run = open_run(tmp_path / "run")
    assert (run.sizes["step"], int(run["step"][-1])) == (rows, last) and names <= set(map(str, run))
    assert all(logged_mask(run, name).all() for name in names & {"loss", "grad_norm"})


@pytest.mark.skipif(not CASES.exists(), reason="the cases are not here")
@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("b05_two_ranks_one_file/metrics.jsonl", "(rank=0, rank=1): pass --only rank=0"),
        ("b07_folder_of_runs", "seed0, "),
    ],
)
def test_the_cases_of_several_runs_are_refused(mms, tmp_path: Path, case: str, said: str) -> None:
    status, _, error = mms("import", CASES / case, "--out", tmp_path / "run")
    assert status == 2 and said in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_event_files_of_two_runs_at_once_are_not_mixed(mms, tmp_path: Path) -> None:
    """Two processes log into one folder at the same time; two writers of other names are one run."""
    for host, names in (("a", ("loss",)), ("b", ("loss",)), ("c", ("eval",))):
        content = b"".join(
            MADE["event"](step, name, 1.0, 1.9e9 + step) for step in range(1, 9) for name in names
        )
        (tmp_path / f"events.out.tfevents.1900000000.{host}").write_bytes(content)
    status, _, error = mms("import", tmp_path, "--dry-run")
    assert status == 2 and "were logged at the same time" in error and error.count("\n") == 1
    (tmp_path / "events.out.tfevents.1900000000.b").unlink()
    assert mms("import", tmp_path, "--dry-run")[0] == 0


def test_an_imported_run_is_not_logged_into(mms, tmp_path: Path) -> None:
    mms("import", LOGS[0].write(tmp_path / "source"), "--out", tmp_path / "run")
    with pytest.raises(StoreError, match="was imported and is therefore read-only"):
        RunWriter(tmp_path / "run")


@st.composite
def broken_logs(draw: st.DrawFn) -> tuple[str, bytes]:
    """A log whose lines were dropped, repeated, reordered, cut and retyped."""
    name = draw(st.sampled_from(sorted(LINES)))
    file, write = LINES[name]
    lines = write(story(draw(st.sampled_from(["healthy", "diverges", "nan", "collapse"]))))
    indices = st.integers(0, len(lines) - 1)
    for change in draw(st.lists(st.sampled_from("drop repeat move cut retype join".split()), max_size=6)):
        at, to = draw(indices) % len(lines), draw(indices) % len(lines)
        match change:
            case "drop" if len(lines) > 1:
                del lines[at]
            case "repeat":
                lines.insert(to, lines[at])
            case "move":
                lines.insert(to, lines.pop(at))
            case "cut":
                lines[at] = lines[at][: draw(st.integers(0, len(lines[at])))]
            case "retype":
                place = draw(st.integers(0, len(lines[at])))
                typed = draw(
                    st.text(st.characters(max_codepoint=0x2FF, exclude_categories=["Cs"]), max_size=3)
                )
                lines[at] = lines[at][:place] + typed + lines[at][place + 1 :]
            case "join":
                lines[at] += lines[to]
    content = "\n".join(lines).encode()
    return file, content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content


@settings(max_examples=300, deadline=None)
@given(log=broken_logs(), counted=st.booleans())
def test_a_broken_log_is_read_or_refused_in_a_sentence(tmp_path_factory, log, counted: bool) -> None:
    file, content = log
    path = tmp_path_factory.mktemp("fuzz") / file
    path.write_bytes(content)
    try:
        found = read_log(path, Reading(steps_per_row=10 if counted else None))
        plan = plan_import(found, renamed={})
    except ValueError as error:
        assert str(error) and "\n" not in str(error)
        return
    assert (np.diff(plan.steps) > 0).all() and plan.steps[0] >= 1
    for series in found.series.values():
        assert len(series.steps) == len(series.values) > 0 and (np.diff(series.steps) > 0).all()


@settings(max_examples=100, deadline=None)
@given(
    name=st.sampled_from(sorted(set(LINES) - {"printed"})),
    dropped=st.sets(st.integers(5, 55), max_size=5),
)
def test_a_dropped_row_drops_its_step_alone(tmp_path_factory, name: str, dropped: set[int]) -> None:
    rows = [row for number, row in enumerate(story("healthy")) if number not in dropped]
    file, write = LINES[name]
    path = tmp_path_factory.mktemp("drop") / file
    path.write_text("".join(line + "\n" for line in write(rows)))
    plan = plan_import(read_log(path), renamed={})
    loss = next(column for column in plan.columns if column.name == "loss").series[()]
    assert loss.steps.tolist() == [row["step"] for row in rows]
