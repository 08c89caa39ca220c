"""Provenance: the commit of this project's own checkout or installation, never of a foreign repository."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
GIT = ("git", "-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false")
INSTALLED = Path("meanmode", "sim", "store")


def git(folder: Path, *arguments: str) -> str:
    """Output of a git command."""
    run = subprocess.run([*GIT, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return run.stdout.strip()


def commit_all(folder: Path) -> str:
    """Make a folder a repository and commit everything in it that is not ignored."""
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "all")
    return git(folder, "rev-parse", "HEAD")


def copied(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for file in source.glob("*.py"):
        shutil.copy(file, target)


def install(site: Path) -> Path:
    """The modules of the package that provenance needs, laid out as a wheel installs them."""
    copied(ROOT / "meanmode", site / "meanmode")
    copied(ROOT / "sim", site / "meanmode" / "sim")
    copied(ROOT / "sim" / "store", site / INSTALLED)
    return site


def describe(site: Path, commit: str) -> None:
    """The metadata that pip writes for `pip install git+...`."""
    folder = site / "mean_mode_screaming-9.9.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: mean-mode-screaming\nVersion: 9.9\n")
    origin = {"url": "https://example.org/x.git", "vcs_info": {"vcs": "git", "commit_id": commit}}
    (folder / "direct_url.json").write_text(json.dumps(origin))


def recorded(site: Path, *others: Path, code: str = "", **environment: str) -> dict[str, str]:
    """Provenance according to the package under `site`."""
    code += "\nprint(json.dumps(provenance.provenance()))"
    run = subprocess.run(
        [sys.executable, "-c", f"import json\nfrom meanmode.sim.store import provenance\n{code}"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (site, *others))), **environment},
        cwd=site,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(run.stdout)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small checkout of the project: rooms at the top, reached through links, an environment ignored."""
    folder = tmp_path / "checkout"
    copied(ROOT / "meanmode", folder / "meanmode")
    copied(ROOT / "sim", folder / "sim")
    copied(ROOT / "sim" / "store", folder / "sim" / "store")
    (folder / "meanmode" / "sim").symlink_to("../sim")
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / ".gitignore").write_text(".venv/\n__pycache__/\n")
    commit_all(folder)
    return folder


def test_a_checkout_records_its_commit(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    assert recorded(checkout) == {"version": version("mean-mode-screaming"), "commit": commit}
    (checkout / "sim" / "store" / "files.py").write_text("changed = True\n")
    assert recorded(checkout)["commit"] == f"{commit}-dirty"


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="these files are not in a git checkout")
def test_this_checkout_records_its_commit() -> None:
    assert recorded(ROOT)["commit"].removesuffix("-dirty") == git(ROOT, "rev-parse", "HEAD")


@pytest.mark.parametrize("inside", [".venv/site-packages", "vendor"])
def test_a_foreign_repository_around_the_package_is_not_recorded(tmp_path: Path, inside: str) -> None:
    """Whether it ignores the package or tracks it, and whatever project it is."""
    install(tmp_path / inside)
    (tmp_path / ".gitignore").write_text(".venv/\n")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "theirs"\n')
    commit_all(tmp_path)
    assert recorded(tmp_path / inside)["commit"] == "unknown"


def test_a_package_installed_inside_a_checkout_is_not_that_checkout(checkout: Path) -> None:
    assert recorded(install(checkout / ".venv" / "site"))["commit"] == "unknown"


@pytest.mark.parametrize("pyproject", [None, "[project\n", "project = 3\n", "\xff\n"])
def test_a_repository_whose_project_is_unclear_is_not_recorded(checkout: Path, pyproject: str | None) -> None:
    file = checkout / "pyproject.toml"
    file.unlink() if pyproject is None else file.write_bytes(pyproject.encode("latin-1"))
    assert recorded(checkout)["commit"] == "unknown"


def test_no_repository_at_all(tmp_path: Path) -> None:
    assert recorded(install(tmp_path / "site"))["commit"] == "unknown"


def test_a_repository_of_the_caller_is_not_asked(checkout: Path, tmp_path: Path) -> None:
    """Git hooks name theirs in the environment."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "file").touch()
    commit_all(theirs)
    commit = git(checkout, "rev-parse", "HEAD")
    assert recorded(checkout, GIT_DIR=str(theirs / ".git"), GIT_WORK_TREE=str(checkout))["commit"] == commit


def test_without_git_a_run_goes_through(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert recorded(checkout, PATH=str(tmp_path / "empty"))["commit"] == "unknown"


@pytest.mark.parametrize("script", ["exit 1", "sleep 60", "kill -9 $$"], ids=["fails", "hangs", "dies"])
def test_a_broken_git_does_no_harm(checkout: Path, tmp_path: Path, script: str) -> None:
    program = tmp_path / "bin" / "git"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    assert recorded(checkout, code="provenance.GIT_SECONDS = 0.5", PATH=path)["commit"] == "unknown"


def test_an_installation_from_git_records_its_commit(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    site, other = install(tmp_path / "site"), install(tmp_path / "other")
    describe(site, commit)
    assert recorded(site) == {"version": "9.9", "commit": commit}
    assert recorded(other, site)["commit"] == "unknown", "the metadata of another copy of the package"


def test_git_is_asked_once_per_process(checkout: Path) -> None:
    first = "provenance.provenance()\nprovenance.subprocess.run = None"
    assert recorded(checkout, code=first)["commit"] == git(checkout, "rev-parse", "HEAD")
