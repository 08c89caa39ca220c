"""Compiled blocks on the command line: refused where they cannot be had, before anything is written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from meanmode.sim.store.files import StoreError
from meanmode.sweeps.engine.store_layout import check_same, lay_out
from meanmode.sweeps.engine.study import with_compiled_blocks
from meanmode.sweeps.named.all_sweeps import SWEEPS

COMMANDS = {
    "sweep run": ("sweep", "run", "second_moments", "--compile", "--seeds", "1"),
    "train": ("train", "digits-16l", "--set", "compile=true", "--set", "steps=1"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_without_a_compiler_nothing_is_written(command: str, tmp_path: Path) -> None:
    environment = os.environ | {"CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    out = tmp_path / "out"
    found = subprocess.run(
        [sys.executable, "-m", "meanmode", *COMMANDS[command], "--out", str(out)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 2
    (line,) = found.stderr.splitlines()
    assert "torch.compile does not work here" in line and "install a C++ compiler" in line
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("collapse_front", "trains none of this project's networks"),
        ("watched_merges", "trains none of this project's networks"),
        ("event_causes", "measures gradients at every step"),
        ("event_silence", "measures gradients at every step"),
        ("committor", "measures gradients at every step"),
    ],
)
def test_what_is_not_compiled_is_said(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"{name} {reason}: leave out --compile"):
        with_compiled_blocks(SWEEPS[name])


def test_a_study_is_not_resumed_with_compiled_blocks(tmp_path: Path) -> None:
    study = SWEEPS["second_moments"]
    lay_out(study, tmp_path / "s.zarr")
    with pytest.raises(StoreError, match=r"its base\.training\.compile is False, asked for True"):
        check_same(with_compiled_blocks(study), tmp_path / "s.zarr")
