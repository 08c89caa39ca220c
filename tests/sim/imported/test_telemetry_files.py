"""Telemetry logged elsewhere: the viewer's document, tables, event files, and damaged forms of each."""

import base64
import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest

from meanmode.sim.imported.log_files import Log, read_log

EXCERPT = Path(__file__).parents[4] / "shared" / "data" / "published_400l_excerpt.json"

EVENTS = base64.b64decode(
    "SAAAAAAAAAD+kkidCbgY/PybwNpBGg1icmFpbi5FdmVudDoyUi4KLHRlbnNvcmJvYXJkLnN1bW1hcnkud3JpdGVyLmV2ZW50X2Zp"
    "bGVfd3JpdGVyPLoRiBEAAAAAAAAAnW21LhABKg0KCwoEbG9zcxUAAEA/Lr4yeCQAAAAAAAAAQiuATRAUKiAKHgoFdGNzLzNCCAgB"
    "KgQAAAA/SgsKCQoHc2NhbGFyc6Xw+hYmAAAAAAAAAHNP4wAQrAIqIQofCgJsckIMCAIyCJqZmZmZmbk/SgsKCQoHc2NhbGFyc54r"
    "YiIuAAAAAAAAAMXLV/oQrAIqKQonCg50L3RleHRfc3VtbWFyeUILCAcSBBICCAFCAXhKCAoGCgR0ZXh0e81Z5A=="
)
"""torch.utils.tensorboard.SummaryWriter of tensorboard 2.21.0, with walltime=0 everywhere:
add_scalar("loss", 0.75, 1), add_scalar("tcs/3", 0.5, 20, new_style=True),
add_scalar("lr", 0.1, 300, new_style=True, double_precision=True), add_text("t", "x", 300)"""

SECOND_RECORD = 88

Values = dict[str, tuple[list[int], list[float]]]


def viewer(**changes: Any) -> dict[str, Any]:
    """A document as the published viewer has it."""
    loss = {"s": [10, 20, 30], "v": [0.5, None, math.inf]}
    layers = {"0": {"s": [10, 30], "v": [0.1, 0.2]}, "2": {"s": [20], "v": [0.3]}}
    document = {
        "config": {"N_LAYERS": 4, "anchor_layers": [0, 2]},
        "scalars": {"loss": loss, "deep_Q": {"s": [20.0], "v": [7]}},
        "layerwise": {"token_sim": layers},
    }
    return document | changes


def page(document: Any) -> str:
    data = json.dumps(document)
    return f"<html>\n<script>\nwindow.TRAINING_DATA = {data};\n</script>\n{{not JSON}}\n</html>\n"


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Log]:
    """Write a file with this content and read it."""

    def run(content: str | bytes, name: str) -> Log:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_log(path)

    return run


def values_of(log: Log) -> Values:
    return {name: (of.steps.tolist(), of.values.tolist()) for name, of in log.series.items()}


def record(message: bytes) -> bytes:
    """A record of an event file, with its checksums."""

    def checked(content: bytes) -> bytes:
        check = google_crc32c.value(content)
        return content + struct.pack("<I", ((check >> 15 | check << 17) + 0xA282EAD8) % 2**32)

    return checked(struct.pack("<Q", len(message))) + checked(message)


def event(step: int, name: str, value: float) -> bytes:
    """The record of a scalar as torch writes it; all lengths and the step must be below 128."""
    logged = bytes([0x0A, len(name)]) + name.encode() + b"\x15" + struct.pack("<f", value)
    summary = bytes([0x0A, len(logged)]) + logged
    return record(bytes([0x10, step, 0x2A, len(summary)]) + summary)


@pytest.mark.parametrize(
    ("name", "written"),
    [("page.html", page), ("data.json", json.dumps), ("data", lambda of: json.dumps(of, indent=1))],
)
def test_the_viewer_document_is_read(read, name: str, written: Callable[[Any], str]) -> None:
    log = read(written(viewer()), name)
    assert log.form == "viewer" and log.layerwise == {"token_sim"} and log.notes == ()
    assert log.config == {"N_LAYERS": 4, "anchor_layers": [0, 2]}
    found = values_of(log)
    assert found.pop("loss") == ([10, 20, 30], [0.5, pytest.approx(math.nan, nan_ok=True), math.inf])
    assert found == {
        "deep_Q": ([20], [7.0]),
        "token_sim/0": ([10, 30], [0.1, 0.2]),
        "token_sim/2": ([20], [0.3]),
    }


@pytest.mark.skipif(not EXCERPT.exists(), reason="the published excerpt is not here")
def test_the_published_excerpt_is_read() -> None:
    log = read_log(EXCERPT)
    assert len(log.series) == 15 + 4 * 18 and log.notes == ()
    assert {tuple(of.steps) for of in log.series.values()} == {tuple(range(25010, 25311, 10))}
    g_mean, g_ctr, ratio, total = (
        log.series[f"writer_{name}"].values for name in ("G_mean", "G_ctr", "ratio", "G_total")
    )
    assert np.abs(g_mean / g_ctr / ratio - 1).max() > 0.1
    assert np.abs(np.hypot(g_mean, g_ctr) / total - 1).max() > 0.01


LONG = {"loss": ([1, 3], [0.5, 0.25]), "train/tcs": ([3], [0.1])}


@pytest.mark.parametrize(
    ("name", "lines", "notes"),
    [
        ("log.csv", ["step,name,value", "1,loss,0.5", "3,loss,0.25", '3,"train/tcs",1e-1'], ()),
        ("log.txt", ["value, step, name", "0.5, 1, loss", "", "0.25, 3, loss", "0.1, 3.0, train/tcs"], ()),
        ("log.csv", ["step,loss,train/tcs,", "1,0.5,,", "3,0.25,0.1,"], ()),
        ("log.jsonl", ['{"step": 1, "loss": 0.5}', "", '{"step": 3, "loss": 0.25, "train/tcs": 0.1}'], ()),
        (
            "log",
            [
                '{"step": 1, "name": "loss", "value": "0.5"}',
                '{"step": 3, "loss": 0.25}',
                '{"step": 3.0, "name": "train/tcs", "value": 0.1, "time": "noon"}',
            ],
            ("values of time are no numbers and were left out",),
        ),
    ],
)
def test_tables_are_read_in_every_form(read, name: str, lines: list[str], notes: tuple[str, ...]) -> None:
    log = read("\r\n".join(lines) + "\n", name)
    assert values_of(log) == LONG and log.notes == notes


def test_non_finite_values_are_kept_and_non_numbers_are_noted(read) -> None:
    rows = [
        '{"step": 1, "loss": NaN, "run": "a", "deep": [1]}',
        '{"step": 2, "loss": "-Infinity", "run": "b"}',
    ]
    log = read("\n".join([*rows, '{"step": 3, "loss": null, "ok": true}']), "log.jsonl")
    assert log.series.keys() == {"loss"}
    np.testing.assert_array_equal(log.series["loss"].values, [math.nan, -math.inf, math.nan])
    assert log.notes == (
        "run changes between a, b: taken as resumes of one run",
        "values of deep, ok are no numbers and were left out",
    )


@pytest.mark.parametrize("form", ["viewer", "table", "events"])
def test_a_step_that_goes_back_ends_the_older_branch(read, form: str) -> None:
    """A resume from step 20, and step 40 twice; another quantity that comes late is no resume."""
    steps, values = [10, 20, 30, 20, 30, 40, 40], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    if form == "viewer":
        scalars = {"loss": {"s": steps, "v": values}, "lr": {"s": [10], "v": [1]}}
        log = read(json.dumps(viewer(scalars=scalars, layerwise={})), "x.json")
    elif form == "table":
        rows = [f"{step},loss,{value}" for step, value in zip(steps, values, strict=True)]
        log = read("\n".join(["step,name,value", *rows, "10,lr,1"]), "x.csv")
    else:
        logged = [event(step, "loss", value) for step, value in zip(steps, values, strict=True)]
        log = read(b"".join([*logged, event(10, "lr", 1.0)]), "events.out.tfevents.1")
    assert values_of(log) == {"loss": ([10, 20, 30, 40], [1.0, 4.0, 5.0, 7.0]), "lr": ([10], [1.0])}
    assert log.notes == (
        "steps go back once, first to 20, as after a resume: the older branch ends there; "
        "2 abandoned rows were left out",
        "1 values are given again at the same step, of which the later one counts",
    )


def test_a_file_written_by_tensorboard_is_read(read) -> None:
    log = read(EVENTS, "events")
    assert log.form == "events" and log.config == {}
    assert values_of(log) == {"loss": ([1], [0.75]), "tcs/3": ([20], [0.5]), "lr": ([300], [0.1])}
    assert log.notes == ("values of t/text_summary are no numbers and were left out",)


def test_event_files_of_a_folder_are_read_in_order_of_time(tmp_path: Path) -> None:
    for number, value in ((2, 0.25), (1, 0.5)):
        content = event(5, "loss", value) + event(number, "loss", value)
        (tmp_path / f"events.out.tfevents.{number}.host").write_bytes(content)
    (tmp_path / "config.yaml").write_text("a: 1")
    log = read_log(tmp_path)
    assert values_of(log) == {"loss": ([1, 2], [0.5, 0.25])}
    assert [file.name[-6:] for file in log.files] == ["1.host", "2.host"]


@pytest.mark.parametrize("cut", [1, 4, 5, 50, 60])
def test_a_truncated_last_record_is_left_out_and_noted(read, cut: int) -> None:
    log = read(EVENTS[:-cut], "events")
    assert log.series.keys() == {"loss", "tcs/3", "lr"}
    assert "the last record of" in log.notes[0] and "at byte 227, is cut short" in log.notes[0]


@pytest.mark.parametrize(
    ("position", "said"),
    [
        (SECOND_RECORD, "is damaged at byte 88: what follows was left out"),
        (SECOND_RECORD + 9, "is damaged at byte 88: what follows was left out"),
        (
            SECOND_RECORD + 20,
            "records of events whose checksum is wrong were left out: 1, the first in line 88",
        ),
        (
            SECOND_RECORD + 30,
            "records of events whose checksum is wrong were left out: 1, the first in line 88",
        ),
    ],
)
def test_a_damaged_record_is_left_out_and_noted(read, position: int, said: str) -> None:
    """Damage in the length, its checksum, the event, and its checksum."""
    content = bytearray(EVENTS)
    content[position] ^= 1
    more = event(7, "early", 0.5)
    log = read(more + bytes(content), "events")
    assert "early" in log.series and "loss" not in log.series
    assert any(said.replace("88", str(88 + len(more))) in note for note in log.notes)


@pytest.mark.parametrize(
    "message", [b"\x2a\x7f", b"\x10\xff", b"\x2b", b"\x2a\x04\x0a\x02\x15\x00", b"\x10" + b"\xff" * 10**6]
)
def test_a_record_that_is_not_an_event_is_left_out(read, message: bytes) -> None:
    """The last one is a whole number that does not end."""
    log = read(record(message) + event(3, "loss", 0.5), "events")
    assert values_of(log) == {"loss": ([3], [0.5])}
    assert log.notes == ("records of events that are no events were left out: 1, the first in line 0",)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "hello\nworld\n", "looks like a text without lines of steps and losses; expected"),
        ("a.png", b"\x89PNG\r\n\x1a\n\x00\xff\xfe", "looks like a PNG image; expected"),
        ("a.pt", b"PK\x03\x04\x00\x00", "looks like a zip archive, such as a torch checkpoint"),
        ("a.bin", b"\x01\x02\x00\x03", "looks like a binary file"),
        ("a.html", "<html>\n<body>a page</body>\n</html>", "an HTML page without the viewer's data"),
        ("a.py", "import torch\nprint('step: 1 loss: 2')\n", "looks like a Python script"),
        ("a.yaml", "lr: 1\nmodel:\n  depth: 2\n", "looks like a configuration"),
        ("a.csv", "1,2,3\n4,5,6\n", "a table of numbers without a header"),
        ("a.json", "", "looks like an empty file"),
        ("a.json", "[1, 2]", "is a JSON document without rows"),
        ("a.json", "[" * 100_000, "nested too deep"),
        ("a.json", '{\n"config": {}}', "is a JSON document without rows"),
        ("a.html", page(viewer())[:150], "is truncated or damaged: .* at character"),
        ("a.json", json.dumps(viewer())[:-1], "is truncated or damaged"),
        ("a.html", "window.TRAINING_DATA = ", "is truncated or damaged"),
        ("a.json", json.dumps(viewer(scalars={}, layerwise={})), "contains no values"),
        ("a.json", json.dumps(viewer(config=[])), "its config is not an object"),
        (
            "a.json",
            json.dumps(viewer(scalars={"a": {"s": [1], "v": ["x"]}}, layerwise={})),
            "contains no values",
        ),
        (
            "a.jsonl",
            '{"x": 1}\n',
            "has no column of steps: it has x; name the one that counts them with --name",
        ),
        ("a.jsonl", '{"step": 1e300, "loss": 1}\n', "has no whole number from 0 on in its column step"),
        ("a.jsonl", '{"step": null, "loss": 1}\n', "has no whole number from 0 on in its column step"),
        ("a.jsonl", '{"step": 1, "name": "loss", "value": "high"}\n', "contains no values"),
        ("a.jsonl", '{"tokens": 1000, "loss": 1}\n', "counts tokens, not steps: pass --samples-per-step N"),
        ("a.jsonl", "\n", "looks like a file of blank lines"),
        ("a.csv", "step,name,value\n1,loss,\n", "contains no values"),
        ("a.csv", "step,loss\n", "contains no values"),
    ],
)
def test_bad_input_is_one_sentence(read, name: str, content: str | bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said) as raised:
        read(content, name)
    assert name in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "content", "values", "note"),
    [
        ("a.jsonl", '{"step": 1, "loss": 1}\n\n{"step": 2, "lo\n', [1], "the last line (3) is cut short"),
        ("a.jsonl", '{"step": 1, "loss": 1}\n[2]\n{"step": 3, "loss": 2}\n', [1, 2], "not JSON objects"),
        (
            "a.jsonl",
            '{"step": 1, "loss": 1}\n{"step": 1.5, "loss": 1}\n',
            [1],
            "(such as 1.5) were left out: 1",
        ),
        ("a.jsonl", '{"loss": 1}\n{"loss": 2}\n', [1, 2], "its rows are counted"),
        ("a.csv", "step,name,value\n1,loss,0.5\n2,loss\n", [0.5], "the last line (3) is cut short"),
        ("a.csv", "epoch,loss\n1,2\n", [2], "the log counts epochs (epoch), not steps"),
        ("a.csv", "step,loss,loss\n1,2,3\n", [2], "the later column is called loss_2"),
        ("a.csv", "step,loss\n1,2\n2,3,4\n3,5\n", [2, 5], "rows with more fields than the header were left"),
        (
            "a.json",
            json.dumps(viewer(layerwise={"mu_eff": {"deep": {}}})),
            [0.5, math.nan, math.inf],
            "no layer",
        ),
        (
            "a.json",
            json.dumps(viewer(layerwise={"b": {"1": {"s": [1], "v": []}}})),
            None,
            "has 1 steps and 0",
        ),
    ],
)
def test_a_bad_part_is_left_out_with_a_note(read, name: str, content: str, values: Any, note: str) -> None:
    log = read(content, name)
    if values is not None:
        np.testing.assert_array_equal(log.series["loss"].values, values)
    assert any(note in said for said in log.notes), log.notes


def test_a_folder_without_a_log_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(ValueError, match="holds no training log"):
        read_log(tmp_path)
