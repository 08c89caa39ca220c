"""What was stated before the runs of a stored study, also where an older version did not store it."""

import dataclasses
from pathlib import Path

from meanmode.sweeps.engine.store_kinds import OpenedStudy
from meanmode.sweeps.engine.study import Study
from meanmode.sweeps.named.all_sweeps import SWEEPS


def open_stated(path: Path) -> OpenedStudy:
    """Open a study; if its store holds no statement, take that of the named study of the same name.

    Raises:
        StoreError: no readable study of labelled runs.
    """
    opened = OpenedStudy.open(path)
    named = SWEEPS.get(opened.study.name)
    if not isinstance(named, Study) or opened.study.statement():
        return opened
    stated = named.with_options({}, opened.study.seeds).statement()
    return dataclasses.replace(opened, study=dataclasses.replace(opened.study, **stated))
