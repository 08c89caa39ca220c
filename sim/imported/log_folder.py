"""Which run of a folder is read: event files, or a single log; several are named and one is asked for."""

from collections import defaultdict
from itertools import islice
from pathlib import Path

from meanmode.sim.imported.file_kinds import EXPECTED
from meanmode.sim.imported.log_forms import form_of
from meanmode.sim.imported.log_text import LogText
from meanmode.sim.store.files import StoreError, reason
from meanmode.sim.store.regular_files import files_under

MOST_FILES = 20_000
"""Files of a folder that are looked at."""


LOGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".txt", ".log")
"""Suffixes of files in which a log is looked for, also with .gz."""


MOST_LOGS = 50
"""Files with such suffixes that are opened."""


EVENTS = "tfevents"
"""Part of the name of every event file."""


def run_in(folder: Path) -> tuple[list[Path], list[str]]:
    """Files of the only run in a folder, and notes: its event files in order of time, or one other log.

    Event files of one folder are one run. What lies at the top goes before what lies deeper.

    Raises:
        ValueError: no log, several runs, or too many files; the sentence names what was found.
    """
    try:
        files = list(islice(files_under(folder), MOST_FILES + 1))
    except OSError as error:
        raise StoreError(
            f"{folder} cannot be read ({reason(error)}): give the file or folder of one run"
        ) from error
    if len(files) > MOST_FILES:
        raise StoreError(f"{folder} holds more than {MOST_FILES:,} files: give the file or folder of one run")
    events: defaultdict[Path, list[Path]] = defaultdict(list)
    for file in files:
        if EVENTS in file.name:
            events[file.parent].append(file)
    if folder in events:
        below = len(events) - 1
        notes = [f"event files in {below} folders below {folder} were not read"] if below else []
        return sorted(events[folder], key=lambda file: file.name), notes
    if events:
        return _only(folder, {str(where): sorted(found) for where, found in events.items()})
    logs = [file for file in files if _suffix(file) in LOGS]
    top = [file for file in logs if file.parent == folder] or logs
    found = {str(file): [file] for file in top[:MOST_LOGS] if _is_log(file)}
    if not found:
        raise StoreError(f"{folder} holds no training log: {EXPECTED}")
    return _only(folder, found)


def _only(folder: Path, found: dict[str, list[Path]]) -> tuple[list[Path], list[str]]:
    """The only run found.

    Raises:
        ValueError: there are several.
    """
    if len(found) > 1:
        shown = ", ".join(list(found)[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")
        raise StoreError(f"{folder} holds {len(found)} runs or logs ({shown}): give the path of one")
    where, files = next(iter(found.items()))
    return files, [f"read {where}"]


def _suffix(file: Path) -> str:
    name = file.name.lower().removesuffix(".gz")
    return Path(name).suffix


def _is_log(file: Path) -> bool:
    try:
        return form_of(LogText(file)) is not None
    except (OSError, ValueError):
        return False
