"""Make a report once, or again whenever what it shows has grown."""

import os
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from meanmode.sim.imported.log_folder import LOGS, MOST_FILES
from meanmode.sim.store.files import METADATA
from meanmode.sim.store.regular_files import files_under
from meanmode.sim.store.run_reader import TELEMETRY

if TYPE_CHECKING:
    from meanmode.sweeps.report.contents import Subject

EXTRA = ("bokeh", "jinja2")
"""Packages that the extra `report` brings."""

POLL_SECONDS, RELOAD_SECONDS = 2.0, 10
"""Seconds between two looks at what is watched, and after which a watched page loads itself anew."""

Say = Callable[[str], None]


def check_extra() -> None:
    """Refuse to start without the packages that draw and write the page.

    Raises:
        ValueError: they are not installed.
    """
    missing = [name for name in EXTRA if find_spec(name) is None]
    if missing:
        raise ValueError(f"a report needs {' and '.join(missing)}: pip install 'mean-mode-screaming[report]'")


def default_out(paths: Sequence[Path]) -> Path:
    """The file of a report in the current folder: NAME.report.html, or report.html for several subjects."""
    if len(paths) > 1:
        return Path("report.html")
    path = paths[0].resolve()
    path = path.parent if path.name == TELEMETRY else path
    name = path.name
    for suffix in (".zarr", ".gz", *LOGS):
        name = name.removesuffix(suffix) or name
    return Path(f"{name or 'root'}.report.html")


def make_report(paths: Sequence[Path], out: Path) -> "list[Subject]":
    """Write the report of runs, stores and logs, and return what it shows.

    Raises:
        StoreError: a path that cannot be read, or a file that cannot be written; nothing is then written.
        ValueError: a log that cannot be read, or missing packages.
    """
    check_extra()
    from meanmode.sweeps.report.writing import check_destination

    check_destination(out)
    return _write(paths, out, 0)


def watch_report(paths: Sequence[Path], out: Path, say: Say) -> None:
    """Write the report, and again whenever a path has grown, until all runs and stores are complete.

    An interruption ends the watch; that of a log has no other end. If a path cannot be read at some later
    time, for example because it is being written, the page stays as it is until it can.

    Args:
        paths: runs, stores and logs.
        out: the file.
        say: is told of the beginning and the end of the watch, and of each failure.

    Raises:
        StoreError: as `make_report`, at the first time.
        ValueError: as `make_report`, at the first time.
    """
    check_extra()
    from meanmode.sweeps.report.writing import check_destination

    check_destination(out)
    seen, failed = _traces(paths, out), ""
    grows = _grows(_write(paths, out, RELOAD_SECONDS))
    if grows:
        say(f"{out} is written, and again whenever there is more: ctrl-c ends the watch")
    try:
        while grows:
            while (now := _traces(paths, out)) == seen:
                time.sleep(POLL_SECONDS)
            seen = now
            try:
                grows = _grows(_write(paths, out, RELOAD_SECONDS))
                failed = ""
            except (ValueError, OSError) as error:
                if str(error) != failed:
                    say(f"{error}; the page is left as it was")
                failed = str(error)
    except KeyboardInterrupt:
        say("watching ended")
    # the last page does not load itself anew
    _write(paths, out, 0)


def _write(paths: Sequence[Path], out: Path, reload: int) -> "list[Subject]":
    from meanmode.sweeps.report.subjects import read_subjects
    from meanmode.sweeps.report.writing import write_report

    subjects = read_subjects(paths)
    write_report(subjects, out, reload=reload)
    return subjects


def _grows(subjects: "Sequence[Subject]") -> bool:
    return any(subject.unfinished for subject in subjects)


def _traces(paths: Sequence[Path], out: Path) -> list[tuple[int, ...]]:
    """Sizes and times of what changes when a path grows, of every path.

    Of a store these are its metadata and chunks of status, of any other folder all files that a log is looked
    for in, without the page itself; otherwise the path itself.
    """
    found = []
    for path in paths:
        folders = [path, path / TELEMETRY]
        metadata = [folder / METADATA for folder in folders]
        files = [*metadata, *(folder / "status" / "c" for folder in folders)]
        if not path.is_dir():
            files = [path]
        elif not any(file.exists() for file in metadata):
            try:
                files += (file for file in islice(files_under(path), MOST_FILES) if file.name != out.name)
            except OSError:
                # it changes while it is searched: what was found so far is compared with the next look
                pass
        stats = [of for file in files if (of := _stat(file)) is not None]
        found.append(tuple(number for stat in stats for number in (stat.st_size, stat.st_mtime_ns)))
    return found


def _stat(file: Path) -> os.stat_result | None:
    """Size and times of a file; None if it is not there, or no longer."""
    try:
        return file.stat()
    except OSError:
        return None
