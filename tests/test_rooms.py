"""The rooms of the house, their storeys, and who may import whom."""

import ast
import subprocess
import sys
import tomllib
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STOREYS = {
    "theory": ("setting", "proof", "laws", "meanfield", "onset"),
    "sim": (
        "kernels",
        "trunk",
        "anatomy",
        "convert",
        "observe",
        "intervene",
        "store",
        "onset",
        "watch",
        "train",
        "imported",
        "simulate",
    ),
    "dit": ("config", "model", "data", "train", "evaluate"),
    "sweeps": ("statistics", "engine", "named", "studies", "report", "cli"),
    "paper_figs": ("shared", "figures", "gallery", "all_figures"),
}
"""Room -> its storeys, lowest first: each imports itself and what stands before it."""

ALLOWED = {
    "theory": set(),
    "sim": {"theory"},
    "dit": {"theory", "sim"},
    "sweeps": {"theory", "sim", "dit"},
    "sweeps.cli": {"theory", "sim", "dit", "paper_figs"},
    "paper_figs": {"theory", "sim.store", "sweeps.studies"},
}
"""Room, or storey with a rule of its own -> what it may import of other rooms."""

SUBJECTS = {
    *("collapse_front", "committor", "critical_rate", "depth_profiles", "dynamic_front", "frame_means"),
    *("half_rate", "interventions", "long_contexts", "merges", "mixers", "mixers_training"),
    *("phase_diagram", "schedule_risk"),
    *("state_space", "structured_fronts", "sweep", "timestep_probe", "token_law", "trainability"),
    *("waiting_time",),
}
"""Stems that several modules share, since they speak of one thing: a law, its measurement, its figure."""

IN_ROOMS = {
    ".".join(("meanmode", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for room in STOREYS
    for path in sorted((ROOT / room).glob("**/*.py"))
}
"""Every module of a room by the name under which it is imported."""

FACE = {"meanmode": ROOT / "meanmode/__init__.py", "meanmode.__main__": ROOT / "meanmode/__main__.py"}
MODULES = FACE | IN_ROOMS


def imported(path: Path, *, top_level: bool = False) -> set[str]:
    """Modules of this project that a file imports, at any depth of its code or at the top of it."""
    tree = ast.parse(path.read_text())
    names: set[str] = set()
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in MODULES else str(node.module) for name in whole}
    return {name for name in names if name.split(".")[0] == "meanmode"}


def storey(name: str) -> tuple[str, str]:
    """Room and storey of a module."""
    parts = name.split(".")[1:]
    return parts[0], parts[1] if len(parts) > 1 else ""


def within(name: str, allowed: str) -> bool:
    return name == f"meanmode.{allowed}" or name.startswith(f"meanmode.{allowed}.")


@pytest.mark.parametrize("name", IN_ROOMS)
def test_imports_go_down(name: str) -> None:
    room, own = storey(name)
    order = STOREYS[room]
    assert own in ("", *order), f"{name} stands on no storey of {room}"
    elsewhere = ALLOWED.get(f"{room}.{own}", ALLOWED[room])
    for other in imported(IN_ROOMS[name]):
        if other.split(".")[1] == room:
            assert own and order.index(storey(other)[1]) <= order.index(own), f"{name} imports {other}"
        else:
            assert any(within(other, allowed) for allowed in elsewhere), f"{name} imports {other}"


def test_studies_speak_of_no_study_by_name() -> None:
    """An experiment that has served its purpose can be removed: engine and studies never import `named`."""
    for name, path in IN_ROOMS.items():
        if storey(name) in (("sweeps", "engine"), ("sweeps", "studies"), ("sweeps", "statistics")):
            assert not any(within(other, "sweeps.named") for other in imported(path)), name


def test_imports_run_in_no_circle() -> None:
    graph = {name: imported(path, top_level=True) for name, path in MODULES.items()}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_modules_open_with_their_purpose_and_stay_short(name: str) -> None:
    text = MODULES[name].read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "a module says in its first line what it is for"
    assert len(text.splitlines()) <= 400
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 60, f"{node.name} has {length} lines"


@pytest.mark.parametrize("name", MODULES)
def test_nobody_imports_what_is_private_elsewhere(name: str) -> None:
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("meanmode"):
            assert not [alias.name for alias in node.names if alias.name.startswith("_")]


def test_folders_stay_small_and_names_say_what_they_hold() -> None:
    folders, stems = defaultdict(list), defaultdict(list)
    for name, path in IN_ROOMS.items():
        if path.stem != "__init__":
            folders[path.parent].append(path.stem)
            stems[path.stem].append(name)
    crowded = {str(folder): len(held) for folder, held in folders.items() if len(held) > 20}
    assert not {folder for folder in crowded if not folder.endswith("figures")}
    assert {stem for stem, names in stems.items() if len(names) > 1} <= SUBJECTS


def test_the_packages_are_those_of_the_tree() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {name for name, path in MODULES.items() if path.stem == "__init__"}
    assert sorted(settings["packages"]) == sorted(found)
    assert settings["package-dir"] == {
        "meanmode": "meanmode",
        **{f"meanmode.{room}": room for room in STOREYS},
    }
    for room in STOREYS:
        assert (ROOT / "meanmode" / room).resolve() == ROOT / room


@pytest.mark.parametrize(
    "statement",
    [
        "import meanmode",
        "import meanmode; meanmode.Setting; meanmode.LAWS; meanmode.predict_front",
        *(f"import meanmode.theory.{name}" for name in ("laws.all_laws", "meanfield.profile", "onset")),
        *(f"import meanmode.dit.config.{name}" for name in ("presets", "run_config", "signals")),
        "import meanmode.sim.intervene.grammar, meanmode.sim.trunk.constants",
        "import meanmode.sweeps.named.all_sweeps",
        "import meanmode.sweeps.cli.main",
    ],
)
def test_what_needs_no_torch_imports_none(statement: str) -> None:
    code = f"{statement}; import sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
