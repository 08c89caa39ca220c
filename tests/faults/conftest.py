"""What the fault suite shares: commands run in forks of one process, and a folder of things to go wrong."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SECONDS = 10.0
"""A command that takes longer over bad input counts as one that hangs."""

GROWTH = 2**30
"""Bytes by which a command may grow over bad input."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a command ended: its exit code, None where it had to be killed, and what it printed and took."""

    code: int | None
    out: str
    err: str
    seconds: float
    grown: int

    @property
    def sentences(self) -> list[str]:
        """Lines of stderr; of a progress bar only what is left of it when it is gone."""
        lines = [line.split("\r")[-1].strip() for line in self.err.splitlines()]
        return [line for line in lines if line]

    def refusal(self) -> str:
        """The one sentence with which bad input was refused; fails where it was not refused so."""
        assert self.code == 2, f"exit {self.code}: {self.err[-600:]}{self.out[-200:]}"
        assert "Traceback" not in self.err
        assert self.grown <= GROWTH and self.seconds <= SECONDS
        assert len(self.sentences) == 1 and self.sentences[0].startswith("mms: "), self.err
        assert len(self.sentences[0]) > len("mms: ") + 12
        return self.sentences[0]


Attempt = Callable[..., Ended]


@pytest.fixture(scope="session")
def attempt(forks: Any) -> Attempt:
    """Run `mms` with some arguments in a folder, in a fork of a process that has imported everything."""

    def run(*arguments: object, folder: Path, seconds: float = SECONDS) -> Ended:
        words = [str(word) for word in arguments]
        return Ended(**forks.ask("run", arguments=words, folder=str(folder), seconds=seconds))

    return run


@pytest.fixture(scope="session")
def whole(attempt: Attempt, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, a sweep and a study of ours, a log, and files that are none of these."""
    folder = tmp_path_factory.mktemp("whole")
    small = (
        "--depth",
        3,
        "--tokens",
        4,
        "--width",
        16,
        "--heads",
        2,
        "--weight-std",
        0.1,
        "--merge",
        "plain",
    )
    for arguments in (
        (
            "train",
            "digits-16l",
            "--set",
            "depth=2",
            "--set",
            "steps=4",
            "--set",
            "checkpoint_every=2",
            "--out",
            "run",
        ),
        ("sweep", "run", "collapse_front", *small, "--input-cosine", 0, "--seeds", 2, "--out", "sweep.zarr"),
    ):
        ended = attempt(*arguments, folder=folder, seconds=120)
        assert ended.code == 0, ended.err
    rows = [json.dumps({"step": step, "loss": 2.0 - step / 100, "tcs/1": 0.1}) for step in range(1, 60)]
    (folder / "log.jsonl").write_text("\n".join(rows))
    (folder / "text.txt").write_text("hello\n")
    (folder / "empty").write_text("")
    (folder / "cut.json").write_text('{"rows": [')
    (folder / "deep.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    (folder / "deep.jsonl").write_text("[" * 100_000 + "]" * 100_000 + "\n")
    (folder / "bare").mkdir()
    os.mkfifo(folder / "pipe")
    return folder


@pytest.fixture
def copy_of(whole: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A fresh copy of one of the things in `whole`, to be damaged."""

    def copy(name: str) -> Path:
        place = tmp_path / name
        if (whole / name).is_dir():
            shutil.copytree(whole / name, place)
        else:
            shutil.copy(whole / name, place)
        return place

    return copy
