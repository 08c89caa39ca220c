"""What a file that is no training log looks like, in words, so that a refusal helps."""

import json
import re
from pathlib import Path

EXPECTED = (
    "expected a training log: JSON lines, CSV, trainer_state.json, lines of text with steps and losses, "
    "TensorBoard event files, or the published viewer"
)


MAGIC = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "a zip archive, such as a torch checkpoint or an .npz file",
    b"PK\x05\x06": "an empty zip archive",
    b"\x93NUMPY": "a numpy array",
    b"\x89HDF": "an HDF5 file",
    b"SQLite format 3": "an SQLite database",
    b"PAR1": "a Parquet table: convert it to CSV",
    b"ARROW1": "an Arrow table: convert it to CSV",
    b":W&B": "a binary wandb run: export its history as CSV",
    b"BZh": "a bzip2 archive: unpack it",
    b"\xfd7zXZ": "an xz archive: unpack it",
    b"\x28\xb5\x2f\xfd": "a zstd archive: unpack it",
    b"\x1f\x8b": "a file that is gzipped twice",
    b"7z\xbc\xaf": "a 7z archive",
    b"\x7fELF": "a program",
    b"RIFF": "a sound, video or WebP file",
    b"OggS": "a sound or video file",
    **{bytes([0x80, version]): "a pickle, such as an old torch checkpoint" for version in (2, 3, 4, 5)},
}
"""First bytes of a file -> what it is."""


PYTHON = re.compile(r"^(?:import \w|from [\w.]+ import |def \w+\(|class \w+[(:]|@\w)", re.MULTILINE)


def refusal(path: Path, kind: str) -> str:
    """Sentence that refuses a file."""
    return f"{path} is not a training log: it looks like {kind}; {EXPECTED}"


def binary_kind(head: bytes) -> str | None:
    """What the first bytes of a file show; None if it may be text."""
    for magic, kind in MAGIC.items():
        if head.startswith(magic):
            return kind
    if head[257:262] == b"ustar":
        return "a tar archive"
    if head[4:8] == b"ftyp":
        return "a video"
    if len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**27:
        return "a safetensors file of weights"
    sample = head[: 2**16]
    control = sum(sample.count(code) for code in range(32) if code not in (8, 9, 10, 12, 13, 27))
    return "a binary file" if b"\0" in sample or control > len(sample) / 20 else None


def text_kind(path: Path, head: str) -> str:
    """What a text is that no form of a log was recognised in."""
    start, suffix = head.lstrip()[:1000].lower(), path.suffix.lower()
    if start.startswith(("<!doctype html", "<html")):
        return "an HTML page without the viewer's data"
    if start.startswith("<"):
        return "an XML or HTML document"
    if suffix == ".ipynb" or '"nbformat"' in head:
        return "a notebook"
    if suffix == ".py" or start.startswith("#!/usr/bin/env python") or PYTHON.search(head):
        return "a Python script"
    if start.startswith("#!"):
        return "a script"
    if start.startswith(("{", "[")):
        return _json_kind(head)
    if suffix in (".yaml", ".yml", ".toml", ".ini", ".cfg"):
        return "a configuration"
    if suffix in (".md", ".rst", ".tex"):
        return "a document"
    rows = [re.split(r"[,;\t ]+", line.strip()) for line in head.splitlines()[:5] if line.strip()]
    if rows and all(_is_number(field) for row in rows for field in row):
        return "a table of numbers without a header: add a first line with the names of its columns"
    return "a text without lines of steps and losses"


def _json_kind(head: str) -> str:
    try:
        json.loads(head)
    except RecursionError:
        return "JSON nested too deep to be read"
    except ValueError:
        return "JSON that is cut or damaged"
    return "a JSON document without rows of values"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
