"""The package beside anything: as a wheel in an empty environment, and next to files of the same names."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("meanmode", "theory", "sim", "dit", "sweeps", "paper_figs")
TRAIN = ("train", "digits-16l", "--set", "steps=2", "--set", "depth=2", "--out", "run")


def python(*arguments: str, cwd: Path, site: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the interpreter in a folder, with the packages of `site` before all others."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if site is not None:
        environment["PYTHONPATH"] = str(site)
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel of this tree was installed."""
    folder = tmp_path_factory.mktemp("wheel")
    for room in ROOMS:
        ignored = shutil.ignore_patterns("data", "__pycache__", "*.png") if room == "paper_figs" else None
        shutil.copytree(ROOT / room, folder / "source" / room, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source" / name)
    built = python(
        *("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", "."),
        "./source",
        cwd=folder,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    installed = python(
        "-m", "pip", "install", "--quiet", "--no-deps", "--target", "site", wheel.name, cwd=folder
    )
    assert installed.returncode == 0, installed.stderr
    return folder / "site"


def test_the_wheel_holds_every_module_and_nothing_else(site: Path) -> None:
    modules = {path.relative_to(site / "meanmode") for path in (site / "meanmode").glob("**/*.py")}
    own = {path.relative_to(ROOT) for room in ROOMS[1:] for path in (ROOT / room).glob("**/*.py")}
    assert modules == own | {Path("__init__.py"), Path("__main__.py")}
    assert [path.name for path in site.iterdir() if path.suffix != ".dist-info"].count("meanmode") == 1
    assert not [room for room in ROOMS[1:] if (site / room).exists()]
    template = Path("sweeps/report/template")
    parts = {path.name for path in (site / "meanmode" / template).iterdir()}
    assert (
        parts
        == {path.name for path in (ROOT / template).iterdir()}
        == {f"report.{of}" for of in ("css", "html.j2", "js")}
    )


COMMANDS = {
    ("--version",): "version",
    ("verify", "P1"): "1 of 1 laws proved",
    ("law", "A2"): "proved",
    ("predict", "front", "--depth", "40", "--tokens", "16"): "collapse front at block",
    ("sweep", "list"): "collapse_front",
    TRAIN: "complete",
}
ONE_AFTER_THE_OTHER = f"""
import contextlib, io, json, runpy, sys
import meanmode.sim.trunk.merges as merges
ended = {{"file": merges.__file__}}
for words in {list(map(list, COMMANDS))}:
    sys.argv, out = ["meanmode", *words], io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            runpy.run_module("meanmode", run_name="__main__", alter_sys=False)
        except SystemExit as stopped:
            ended[words[0]] = stopped.code, out.getvalue()
print(json.dumps(ended))
"""


@pytest.fixture(scope="module")
def ended(site: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Exit code and output of each command by its first word, in one process in a folder of its own."""
    run = python("-c", ONE_AFTER_THE_OTHER, cwd=tmp_path_factory.mktemp("folder"), site=site)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_the_wheel_works_from_any_folder(ended: dict[str, Any], command: tuple[str, ...]) -> None:
    code, printed = ended[command[0]]
    assert not code
    assert COMMANDS[command] in printed


def test_the_wheel_is_what_runs(site: Path, ended: dict[str, Any]) -> None:
    assert Path(ended["file"]).is_relative_to(site)


def test_figures_without_data_say_where_the_data_are(site: Path, tmp_path: Path) -> None:
    run = python("-m", "meanmode", "figures", cwd=tmp_path, site=site)
    assert run.returncode == 2 and len(run.stderr.splitlines()) == 1
    assert "paper_figs/data" in run.stderr and "--data" in run.stderr


@pytest.mark.parametrize("form", ["script", "module"])
def test_files_of_the_same_names_are_not_in_the_way(tmp_path: Path, form: str) -> None:
    """A user's own dit.py, sim.py and folders named like the rooms are not imported and do no harm."""
    for name in ROOMS[1:]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the wrong package')\n")
    for name in ("dit", "sim", "theory"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')\n")
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from meanmode import LAWS, Probe, Setting, open_run, open_sweep, predict_front\n"
        "from meanmode.sweeps.cli.main import main\n"
        "sys.argv[0] = 'mms'\n"
        "main()\n"
    )
    start = ["script.py"] if form == "script" else ["-m", "meanmode"]
    run = python(*start, *TRAIN, cwd=tmp_path)
    assert run.returncode == 0 and "complete" in run.stdout, run.stderr
    assert json.loads((tmp_path / "run" / "config.json").read_text())["model"]["depth"] == 2


def test_the_public_face_is_lazy_and_teaches() -> None:
    code = (
        "import meanmode, sys; loaded = [name for name in sys.modules if name.startswith('meanmode.')]\n"
        "assert not loaded and {'numpy', 'sympy', 'torch'}.isdisjoint(sys.modules)\n"
        "assert set(meanmode.__all__) <= set(dir(meanmode))\n"
        "assert all(getattr(meanmode, name) is not None for name in meanmode.__all__)\n"
        "try:\n    meanmode.predict_onset\nexcept AttributeError as error:\n    print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "predict_front" in run.stdout
