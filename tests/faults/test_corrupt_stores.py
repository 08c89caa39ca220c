"""Stores damaged in ten ways: every reader answers or refuses in one sentence; nothing hangs or grows."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Damage = Callable[[Path, random.Random], None]


def _files(folder: Path, name: str = "*") -> list[Path]:
    return sorted(file for file in folder.rglob(name) if file.is_file())


def _edited(file: Path, change: Callable[[Any], Any]) -> None:
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


def truncate(folder: Path, chance: random.Random) -> None:
    """Cut a file anywhere."""
    file = chance.choice([file for file in _files(folder) if file.stat().st_size > 1])
    content = file.read_bytes()
    file.write_bytes(content[: chance.randrange(len(content))])


def flip(folder: Path, chance: random.Random) -> None:
    """Flip a bit of a file."""
    file = chance.choice([file for file in _files(folder) if file.stat().st_size])
    content = bytearray(file.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(content)


def drop(folder: Path, chance: random.Random) -> None:
    """Delete a file."""
    chance.choice(_files(folder)).unlink()


def empty(folder: Path, chance: random.Random) -> None:
    """Empty a file."""
    chance.choice(_files(folder)).write_bytes(b"")


def retype(folder: Path, chance: random.Random) -> None:
    """Give an attribute of a group or an array a value of another type."""
    file = chance.choice(_files(folder, "zarr.json"))

    def change(document: Any) -> Any:
        if isinstance(document, dict) and document.get("attributes"):
            name = chance.choice(sorted(document["attributes"]))
            document["attributes"][name] = chance.choice([None, 7, [1], {"a": 1}, "x", True, 1e300, ""])
        return document

    _edited(file, change)


def misshape(folder: Path, chance: random.Random) -> None:
    """Give an array a shape, chunks or a type that it does not have."""
    file = chance.choice([file for file in _files(folder, "zarr.json") if file.parent != folder])

    def change(document: Any) -> Any:
        for name, values in (
            ("shape", [[10**12], [0], [-1], "x", [2, 2, 2, 2, 2]]),
            ("data_type", ["float64", "int8", "nonsense", None]),
            ("fill_value", ["x", 10**400, None]),
        ):
            if chance.random() < 0.5:
                document[name] = chance.choice(values)
        return document

    _edited(file, change)


def nest(folder: Path, chance: random.Random) -> None:
    """Replace metadata by JSON nested 100,000 deep."""
    chance.choice(_files(folder, "*.json")).write_text('{"a":' * 100_000 + "1" + "}" * 100_000)


def grow(folder: Path, chance: random.Random) -> None:
    """Declare an array a million times as long as it is."""
    file = chance.choice([file for file in _files(folder, "zarr.json") if file.parent != folder])

    def change(document: Any) -> Any:
        if document.get("shape"):
            document["shape"][0] = 10**12
        return document

    _edited(file, change)


def block(folder: Path, chance: random.Random) -> None:
    """Put a named pipe where a file was."""
    file = chance.choice(_files(folder))
    file.unlink()
    os.mkfifo(file)


def loop(folder: Path, chance: random.Random) -> None:
    """Add a link that leads back to the folder."""
    place = chance.choice([file.parent for file in _files(folder)])
    (place / "loop").symlink_to(folder, target_is_directory=True)


DAMAGES: tuple[Damage, ...] = (truncate, flip, drop, empty, retype, misshape, nest, grow, block, loop)


READERS = {
    "sweep.zarr": (
        ("sweep", "status"),
        ("compare",),
        ("onset",),
        ("compare", "--json"),
        ("sweep", "compact"),
    ),
    "run": (("onset",), ("onset", "--json"), ("compare",), ("sweep", "compact")),
}
"""What is damaged -> the commands that read it."""

FAST, SLOW = 2, 25
"""Trials of every kind of damage to every store; the slow ones find what the fast ones miss by chance."""


def trials(first: int, last: int) -> list[Any]:
    """Store, kind of damage and seed of every trial."""
    return [
        pytest.param(store, damage, seed, id=f"{store}-{damage.__name__}-{seed}")
        for store in READERS
        for damage in DAMAGES
        for seed in range(first, last)
    ]


def check(
    attempt: Callable[..., Any], copy: Path, damage: Damage, seed: int, commands: tuple[Any, ...]
) -> None:
    """Damage a copy and read it with every command."""
    damage(copy / "telemetry.zarr" if (copy / "telemetry.zarr").exists() else copy, random.Random(seed))
    for command in commands:
        ended = attempt(*command, copy.name, folder=copy.parent)
        if ended.code not in (0, 1):
            ended.refusal()
        assert "Traceback" not in ended.err and "unexpected" not in ended.err, ended.err


@pytest.mark.parametrize(("store", "damage", "seed"), trials(0, FAST))
def test_a_damaged_store_is_read_or_refused(
    attempt: Callable[..., Any], whole: Path, tmp_path: Path, store: str, damage: Damage, seed: int
) -> None:
    copy = Path(shutil.copytree(whole / store, tmp_path / store))
    check(attempt, copy, damage, seed, READERS[store][seed % len(READERS[store]) :][:1])


@pytest.mark.slow
@pytest.mark.parametrize(("store", "damage", "seed"), trials(FAST, SLOW))
def test_many_damaged_stores_are_read_or_refused(
    attempt: Callable[..., Any], whole: Path, tmp_path: Path, store: str, damage: Damage, seed: int
) -> None:
    copy = Path(shutil.copytree(whole / store, tmp_path / store))
    check(attempt, copy, damage, seed, READERS[store])
