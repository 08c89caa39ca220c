"""The README is short and true: its commands run, its tree is the tree, its claims have files."""

import re
from pathlib import Path

import pytest

from meanmode.theory.laws.all_laws import LAWS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
HIDDEN = {"build", "demo", "figures", "site", "features"}
"""Folders that commands make and git ignores."""


def section(title: str) -> str:
    return README.split(f"## {title}\n")[1].split("\n## ")[0]


def commands() -> list[str]:
    """The commands of `mms` that the README proposes."""
    (text,) = re.findall(r"```sh\n(.*?)```", section("Five things to do next"), re.DOTALL)
    return [line.split("#")[0].strip() for line in text.splitlines()]


def tree() -> dict[str, list[str]]:
    """Room -> its storeys, as the README prints them."""
    (text,) = re.findall(r"```\n(.*?)```", section("Where things are"), re.DOTALL)
    rooms: dict[str, list[str]] = {}
    for line in text.splitlines():
        name = line.split()[0].rstrip("/")
        if line.startswith(" "):
            rooms[list(rooms)[-1]].append(name)
        else:
            rooms[name] = []
    return rooms


def folders(path: Path) -> list[str]:
    """Folders with something of ours in them."""
    return sorted(
        child.name
        for child in path.iterdir()
        if child.is_dir() and not child.is_symlink() and not child.name.startswith((".", "__"))
    )


def test_the_readme_is_read_in_three_minutes() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 10_000
    assert len(re.findall(r"!\[", README)) == 1


def test_the_tree_is_the_tree() -> None:
    printed = tree()
    found = {name for name in folders(ROOT) if not name.endswith((".egg-info", ".zarr"))} - HIDDEN
    committed = {name for name in found if list((ROOT / name).glob("**/*.py")) or name == "docs"}
    assert set(printed) == committed
    for room, storeys in printed.items():
        if room not in ("tests", "meanmode"):
            assert sorted(storeys) == folders(ROOT / room), room


@pytest.mark.parametrize("number", range(1, 6))
def test_one_claim_is_followed_from_law_to_page(number: int) -> None:
    """Law A2, its observable, its tests, its figure and its page are in the files that the README names."""
    (step,) = re.findall(rf"^{number}\. (.*?)(?=^\d\. |\Z|^$)", section("Where things are"), re.M | re.S)
    holds = {
        1: ['tag="A2"'],
        2: ["writer_amplification"],
        3: ['LAWS["A2"]', "predict_profile"],
        4: ["predicted_amplification", "PNG"],
        5: ["token_law.png"],
    }
    files = [ROOT / path for path in re.findall(r"`([\w/]+\.\w+)`", step)]
    assert len(files) == len(holds[number])
    for file, text in zip(files, holds[number], strict=True):
        assert text in file.read_bytes().decode(errors="ignore"), file
    assert "A2" in LAWS


@pytest.mark.parametrize("command", commands())
def test_the_commands_are_among_those_that_are_run(command: str) -> None:
    """`tests/docs/test_pages.py` runs every command of the page."""
    page = (ROOT / "docs" / "command_line.md").read_text()
    assert command in [line.split("#")[0].strip() for line in page.splitlines()]


def test_five_things_are_proposed() -> None:
    assert len(commands()) == 8 and re.findall(r"# (\d)\. ", README) == ["1", "2", "3", "4", "5"]


def test_the_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake (\w+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
