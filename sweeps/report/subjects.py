"""What a path holds: a run, a store of many, or a log; each becomes a subject of the report."""

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

from meanmode.sim.imported.import_plan import plan_import
from meanmode.sim.imported.imported_run import import_run
from meanmode.sim.imported.log_files import read_log
from meanmode.sim.store.files import METADATA, StoreError
from meanmode.sim.store.run_reader import is_run
from meanmode.sweeps.report.contents import Subject
from meanmode.sweeps.report.run_subject import run_subject
from meanmode.sweeps.report.store_subject import store_subject
from meanmode.sweeps.report.timelines import chosen

MOST_SUBJECTS = 12
"""Runs and stores on one page."""

MOST_NOTES = 12
"""Notes on a log that are shown."""

PIXELS = 1_500_000
"""Pixels, a byte each, of all maps of a page: with the rest of it they stay below 5 MB."""

GROUPS = 1200
"""Groups of points of all curves of a panel, over the subjects of a page; at most a third for one subject."""


def read_subjects(paths: Sequence[Path]) -> list[Subject]:
    """The subjects of a report, in the order given.

    Raises:
        StoreError: too many paths, or one that is neither a run nor a store nor a log.
        ValueError: a log that cannot be read.
    """
    if len(paths) > MOST_SUBJECTS:
        raise StoreError(f"a report shows at most {MOST_SUBJECTS} runs side by side, got {len(paths)}")
    pixels, groups = PIXELS // len(paths), min(GROUPS // len(paths), GROUPS // 3)
    return [_read(path, pixels, groups) for path in paths]


def _read(path: Path, pixels: int, groups: int) -> Subject:
    if not path.exists():
        raise StoreError(f"{path} does not exist: give a run, a store or a log")
    if is_run(path):
        return run_subject(path, name=str(path), pixels=pixels, groups=groups)
    if (path / METADATA).exists():
        return store_subject(path, name=str(path), pixels=pixels)
    plan = plan_import(read_log(path), renamed={})
    notes, names = list(plan.notes[:MOST_NOTES]), [column.name for column in plan.columns]
    read = chosen(names)
    if len(read) < len(names):
        plan = dataclasses.replace(plan, columns=tuple(of for of in plan.columns if of.name in set(read)))
        notes.append(f"{len(read)} of {len(names):,} quantities were read, those with known names first.")
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        import_run(plan, run)
        subject = run_subject(
            run,
            name=str(path),
            pixels=pixels,
            groups=groups,
            kind=f"a log ({plan.log.form})",
            notes=tuple(notes),
        )
    return dataclasses.replace(subject, unfinished=True)
