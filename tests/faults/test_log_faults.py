"""Hostile logs and options of `mms import`: one sentence, exit 2, no hang, nothing written."""

import gzip
import json
import os
import struct
from pathlib import Path

import google_crc32c
import pytest

LOG = "".join(json.dumps({"step": step, "loss": 1.0 / step}) + "\n" for step in range(1, 20)).encode()


def record(message: bytes) -> bytes:
    """A record of an event file, with its checksums."""

    def checked(content: bytes) -> bytes:
        check = google_crc32c.value(content)
        return content + struct.pack("<I", ((check >> 15 | check << 17) + 0xA282EAD8) % 2**32)

    return checked(struct.pack("<Q", len(message))) + checked(message)


def bomb(content: bytes, times: int) -> bytes:
    """A small gzipped file that unpacks to much."""
    return gzip.compress(content * times)


HOSTILE = {
    "deep.json": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deep"),
    "deep.jsonl": (b"[" * 100_000 + b"]" * 100_000, "nested too deep"),
    "varint.tfevents": (record(b"\x10" + b"\xff" * 2**20), "contains no values"),
    "endless.tfevents": (record(b"\x10\x01")[:8] + b"", "looks like"),
    "zeros.gz": (bomb(b"\0" * 2**20, 256), "looks like a binary file"),
    "blank.jsonl.gz": (bomb(b"\n" * 2**20, 256), "a file of blank lines"),
    "rows.jsonl.gz": (bomb(b'{"step": 1, "loss": 1.0}\n' * 40_000, 60), "bytes that are read of such a log"),
    "line.txt": (b"step: 1 loss: 1\n" + b"a b" * 2**23, "is longer than 16,777,216 characters"),
    "twice.gz": (gzip.compress(gzip.compress(LOG)), "gzipped twice"),
    "weights.pt": (b"PK\x03\x04" + bytes(100), "a zip archive, such as a torch checkpoint"),
    "old.pt": (b"\x80\x02cposix\nsystem\n", "a pickle"),
    "huge_layer.jsonl": (b'{"step": 1, "tcs/999999999": 1}\n', "at most 10000"),
    "huge_step.jsonl": (b'{"step": 900719925474099, "loss": 1}\n', "above 100000000"),
    "digits.jsonl": (b'{"step": ' + b"9" * 5000 + b', "loss": 1}\n', "is not JSON"),
    "columns.csv": (
        b"step," + b",".join(b"a%d" % n for n in range(30_000)) + b"\n" + b"1," * 30_000 + b"1\n",
        "names",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_log_is_refused_in_a_sentence(attempt, tmp_path: Path, name: str) -> None:
    content, said = HOSTILE[name]
    (tmp_path / name).write_bytes(content)
    assert said in attempt("import", name, "--out", "run", folder=tmp_path).refusal()
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    "path", ["pipe", "/dev/zero", "/dev/stdin", "/proc/self", "/proc/self/mem", "loop", "missing"]
)
def test_what_is_no_file_is_refused(attempt, tmp_path: Path, path: str) -> None:
    """A pipe waits, a device does not end, and links lead back to where they begin."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    attempt("import", path, "--out", "run", folder=tmp_path).refusal()
    assert not (tmp_path / "run").exists()


def test_a_folder_with_pipes_and_circles_is_walked_once(attempt, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    os.mkfifo(tmp_path / "logs/a.csv")
    (tmp_path / "logs/again").symlink_to(tmp_path / "logs")
    (tmp_path / "logs/metrics.jsonl").write_bytes(LOG)
    assert attempt("import", "logs", "--out", "run", folder=tmp_path).code == 0


@pytest.mark.parametrize(
    "options",
    [
        ("--depth", 10**12),
        ("--depth", "nan"),
        ("--initial-loss", "nan"),
        ("--initial-loss", "inf"),
        ("--initial-loss", -1),
        ("--step-offset", 99999999999999999999),
        ("--steps-per-row", 0),
        ("--steps-per-row", 10**30),
        ("--samples-per-step", 0),
        ("--only", "=1"),
        ("--name", "loss=step"),
    ],
)
def test_options_out_of_range_are_refused(attempt, tmp_path: Path, options: tuple[object, ...]) -> None:
    (tmp_path / "log.jsonl").write_bytes(LOG)
    attempt("import", "log.jsonl", "--out", "run", *options, folder=tmp_path).refusal()
    assert [file.name for file in tmp_path.iterdir()] == ["log.jsonl"]
