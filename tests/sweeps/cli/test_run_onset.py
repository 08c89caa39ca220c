"""`mms onset` of a training run: the keys of its document, its alarms, and the table."""

import json
from pathlib import Path

import numpy as np
import pytest

from meanmode.sim.store.files import Variable
from meanmode.sim.store.run_store import create_run
from meanmode.sim.store.run_writer import RunWriter

STEPS, ONSET, DEPTH = 160, 100, 4


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Folder of a run that collapses at step 100, measured every five steps, with two alarms and a note."""
    dims = {"tcs": ("block",), "g_mean": ("block", "writer"), "g_ctr": ("block", "writer")}
    path = tmp_path / "run" / "telemetry.zarr"
    path.parent.mkdir()
    create_run(
        path,
        steps=200,
        interval=50,
        sizes={"block": range(DEPTH + 1), "writer": ("attn", "ffn")},
        variables={name: Variable(dims=dims.get(name, ()), definition=name) for name in (*dims, "loss")},
        attributes={"configuration": json.dumps({"model": {"depth": DEPTH, "width": 16}, "batch": 4})},
    )
    writer = RunWriter(path)
    writer.annotate({"step": 0, "text": "begun"})
    for step in range(1, STEPS + 1):
        collapsed = step >= ONSET
        values: dict[str, object] = {"loss": 2.0 if collapsed else 2.0 - min(step, 50) / 50}
        if step % 5 == 0:
            values["tcs"] = np.full(DEPTH + 1, 0.99 if collapsed else 0.1)
            values["g_mean"] = np.full((DEPTH + 1, 2), 50.0 if step >= ONSET + 10 else 1.0)
            values["g_ctr"] = np.ones((DEPTH + 1, 2))
        writer.log(step, values)
    for step, value in ((95, np.float32(7.5)), (101, np.inf)):
        writer.annotate({"step": step, "signal": "grad_norm", "value": value, "text": "more than the median"})
    writer.flush()
    return path.parent


def test_the_document_has_the_fixed_keys(mms, run: Path) -> None:
    status, out, err = mms("onset", run, "--json")
    document = json.loads(out)
    assert status == 0 and err == ""
    assert list(document)[:4] == ["onset_step", "onset_kind", "alarms", "evidence"]
    assert document["onset_step"] == ONSET and document["onset_kind"] == "mean_mode"
    assert document["alarms"] == [
        {"step": 95, "signal": "grad_norm", "value": 7.5, "kind": None},
        {"step": 101, "signal": "grad_norm", "value": None, "kind": None},
    ]
    assert document["grade"] == "loss, token signals and writer modes" and document["cannot_say"] == []
    assert set(document["evidence"]) == {"g_mean", "g_ctr", "mode_ratio", "tcs", "loss"}
    assert document["evidence"]["tcs"]["first_step"] == ONSET
    assert document["evidence"]["g_mean"] == {"first_step": ONSET + 10, "ratio": 50.0}
    assert document["evidence"]["g_ctr"] == {"first_step": None, "ratio": 1.0}


def test_the_store_itself_and_a_compacted_one_say_the_same(mms, run: Path) -> None:
    document = mms("onset", run, "--json")[1]
    assert mms("onset", run / "telemetry.zarr", "--json")[1] == document
    RunWriter(run).finish()
    assert mms("sweep", "compact", run)[0] == 0
    assert mms("onset", run, "--json")[1] == document


def test_the_table_is_in_the_order_of_what_moved(mms, run: Path) -> None:
    status, out, _ = mms("onset", run)
    head, label, *rest = out.splitlines()
    assert status == 0 and head.endswith("run: steps 1 to 160, depth 4, width 16, batch 4")
    assert label == "collapse with the mean-mode signature, onset at step 100"
    assert rest[:2] == ["alarm at step 95: grad_norm 7.5", "alarm at step 101: grad_norm not finite"]
    table = [line.split() for line in rest[2:] if line]
    assert table[0] == ["signal", "first_step", "ratio"]
    assert [row[0] for row in table[1:]] == ["tcs", "loss", "g_mean", "mode_ratio", "g_ctr"]
    assert table[1] == ["tcs", "100", "9.9"] and table[-1][1:] == ["-", "1"]


def test_a_run_without_onset_says_so(mms, run: Path) -> None:
    RunWriter(run, after=90).flush()
    document = json.loads(mms("onset", run, "--json")[1])
    found = {name: document[name] for name in ("onset_step", "onset_kind", "alarms", "evidence")}
    assert found == {"onset_step": None, "onset_kind": "none", "alarms": [], "evidence": {}}
    assert mms("onset", run)[1].splitlines()[1:] == ["no collapse and no divergence"]


def test_a_run_without_rows_has_no_verdict_and_a_damaged_one_is_refused_in_one_line(mms, run: Path) -> None:
    RunWriter(run, after=0)
    status, out, _ = mms("onset", run)
    assert status == 0 and "no verdict: no loss was logged" in out and "cannot say whether it learned" in out
    (run / "telemetry.zarr" / "zarr.json").write_text("{")
    status, out, err = mms("onset", run)
    assert status == 2 and out == "" and "zarr" in err and err.count("\n") == 1


@pytest.mark.parametrize("command", ["detect", "margin", "compare"])
def test_commands_that_take_studies_say_so_of_a_run(mms, run: Path, command: str) -> None:
    status, out, err = mms(command, run)
    assert status == 2 and out == "" and err.count("\n") == 1
    assert f"is a single run: mms {command} takes" in err and "use mms onset" in err
