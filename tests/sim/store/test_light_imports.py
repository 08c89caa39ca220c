"""Stores are read without torch, so that `mms sweep status` and figures start quickly."""

import subprocess
import sys
from pathlib import Path

STORE = Path(__file__).parents[3] / "sim" / "store"
NEEDS_TORCH = {"observable_variables"}
"""Reads the docstrings of the observables, which are functions of tensors."""


def test_stores_import_no_torch() -> None:
    names = sorted(path.stem for path in STORE.glob("*.py") if path.stem not in NEEDS_TORCH | {"__init__"})
    assert len(names) > 5
    code = (
        "import importlib, sys\n"
        f"for name in {names}:\n"
        "    importlib.import_module(f'meanmode.sim.store.{name}')\n"
        "    assert 'torch' not in sys.modules, name\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
