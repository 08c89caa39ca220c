"""The rooms of the house and who may import whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("theory", "sim", "dit", "sweeps", "paper_figs")
ALLOWED = {
    "theory": set(),
    "sim": {"theory"},
    "dit": {"sim", "theory"},
    "sweeps": {"dit", "sim", "theory", "paper_figs"},
    "paper_figs": {"theory", "sim.store"},
}
MODULES = [path for room in ROOMS for path in sorted((ROOT / room).glob("**/*.py"))]


def imported(path: Path) -> set[str]:
    """Every module name a file imports, at any depth of its code."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def within(name: str, allowed: str) -> bool:
    return name == allowed or name.startswith(f"{allowed}.")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_stay_within_the_rooms(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    for name in imported(path):
        if name.split(".")[0] in ROOMS:
            assert any(within(name, allowed) for allowed in {room, *ALLOWED[room]}), f"{room} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_open_with_their_purpose_and_stay_short(path: Path) -> None:
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), "a module says in its first line what it is for"
    assert len(text.splitlines()) <= 400


def test_theory_imports_no_torch() -> None:
    code = "import theory, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
