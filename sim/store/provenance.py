"""Provenance: the version and the commit of the code that writes a result."""

import json
import os
import subprocess
import tomllib
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

PROJECT = "mean-mode-screaming"
"""Name of the distribution, and of the project in pyproject.toml."""


UNKNOWN = "unknown"


GIT_SECONDS = 10.0
"""Time after which a git command is given up, as on a file system that does not answer."""


GIT_REPOSITORY = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
"""Environment variables that name a repository of the caller, as within a git hook."""


def provenance() -> dict[str, str]:
    """Version and commit of the running code.

    The commit is that of this project's own checkout, with `-dirty` where it has uncommitted changes, or the
    one from which pip installed the package; else `unknown`. A repository that merely surrounds an installed
    package says nothing about it. Determined once per process; no failure of git is an error.
    """
    return {"version": _version(), "commit": _commit()}


@cache
def _version() -> str:
    try:
        return version(PROJECT)
    except PackageNotFoundError:
        return UNKNOWN


@cache
def _commit() -> str:
    return _checkout_commit(Path(__file__).resolve().parent) or _installed_commit() or UNKNOWN


def _checkout_commit(package: Path) -> str | None:
    """Commit of the checkout in which a package folder is tracked; None unless it is this project's own."""
    top = _git(package, "rev-parse", "--show-toplevel")
    if not top or not _holds_project(Path(top)) or not _git(package, "ls-files", "."):
        return None
    return _git(package, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of a git command in a folder; None where it fails, takes too long, or there is no git."""
    environment = {name: value for name, value in os.environ.items() if name not in GIT_REPOSITORY}
    try:
        run = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=GIT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return os.fsdecode(run.stdout).strip()


def _holds_project(top: Path) -> bool:
    """Whether the pyproject.toml of a folder is this project's."""
    try:
        project = tomllib.loads((top / "pyproject.toml").read_text(encoding="utf-8")).get("project")
    except (OSError, ValueError):
        return False
    return isinstance(project, dict) and project.get("name") == PROJECT


def _installed_commit() -> str | None:
    """Commit from which pip installed the running code (`pip install git+...`), from direct_url.json."""
    try:
        installed = distribution(PROJECT)
        module = installed.locate_file(Path(*__name__.split(".")).with_suffix(".py"))
        if Path(str(module)).resolve() != Path(__file__).resolve():
            return None
        commit = json.loads(installed.read_text("direct_url.json") or "{}")["vcs_info"]["commit_id"]
    except (PackageNotFoundError, OSError, ValueError, KeyError, TypeError):
        return None
    return commit if isinstance(commit, str) else None
