"""Training telemetry logged elsewhere: reads a file or a folder of any known form into series by name."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meanmode.sim.imported.branches import Series, one_branch, require_one_run
from meanmode.sim.imported.event_files import is_event_file, read_event_files
from meanmode.sim.imported.file_kinds import refusal, text_kind
from meanmode.sim.imported.log_folder import run_in
from meanmode.sim.imported.log_forms import form_of
from meanmode.sim.imported.log_text import LogText
from meanmode.sim.imported.logged_table import LoggedTable
from meanmode.sim.imported.row_steps import Reading, row_steps
from meanmode.sim.store.files import StoreError


@dataclass(frozen=True, kw_only=True, slots=True)
class Log:
    """Content of a telemetry source.

    Attributes:
        form: format of the source.
        files: the files that were read.
        series: name in the source -> its values; `NAME/LAYER` for the value of one layer.
        layerwise: names that the source itself declares to be by layer.
        config: configuration of the run, as far as the source states it.
        notes: sentences that say what was left out or replaced.
    """

    form: str
    files: tuple[Path, ...]
    series: dict[str, Series]
    layerwise: frozenset[str] = frozenset()
    config: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_log(path: str | Path, reading: Reading | None = None) -> Log:
    """Read the telemetry in a file, or that of the only run in a folder.

    A row, a tag or a last line that cannot be read is left out with a note. A step that goes back, as after a
    resume, drops what the older branch logged at it and after. NaN and infinities are kept; null in JSON is a
    logged NaN, and an empty field of a table is not logged.

    Args:
        path: file or folder.
        reading: what the user says about the log.

    Raises:
        ValueError: no log, several runs, or nothing that counts steps; the sentence says what to do.
        OSError: the file cannot be read.
    """
    path, reading = Path(path), reading or Reading()
    table = LoggedTable(reading.only)
    files, notes = run_in(path) if path.is_dir() else ([path], [])
    table.notes += notes
    if is_event_file(files[0]):
        form = "events"
        read_event_files(files, table)
    else:
        text = LogText(files[0])
        found = form_of(text)
        if found is None:
            raise StoreError(refusal(files[0], text_kind(files[0], text.head)))
        form = found.name
        found.parse(text, table)
        if text.cut:
            table.notes.append(f"{files[0]} ends before its gzip stream does: what is there was read")
    table.require_values(path)
    layerwise, config = frozenset(table.layerwise), table.config
    steps = row_steps(table, reading, path)
    require_one_run(table, steps, path)
    table.require_values(path)
    given = {name: column.arrays() for name, column in table.columns.items()}
    said = table.said()
    table.columns.clear()
    series, back = one_branch(given, steps, path)
    if not series:
        raise StoreError(f"{path} has no values at a step of 0 or later")
    return Log(
        form=form,
        files=tuple(files),
        series=series,
        layerwise=layerwise,
        config=config,
        notes=(*said, *back),
    )
