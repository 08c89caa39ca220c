"""What was stated with stored studies and forecasts, also where an older version did not store it."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from meanmode.dit.config.run_config import RunConfig
from meanmode.sim.store.regular_files import read_json
from meanmode.sweeps.engine.store_kinds import OpenedStudy
from meanmode.sweeps.engine.study import Study
from meanmode.sweeps.named.all_sweeps import SWEEPS
from meanmode.sweeps.studies.hazards.hazard_forecast import fitted_hazard
from meanmode.theory.onset.hazard import Hazard


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


def open_hazard(paths: Sequence[Path]) -> tuple[Hazard, RunConfig]:
    """A hazard, and a run of those that it was fitted to.

    Args:
        paths: one forecast by a hazard; or stores of ramps and of waiting times, to which one is fitted.

    Raises:
        StoreError: a store that cannot be read.
        ValueError: no such file, a forecast without a hazard, a forecast beside other sources, or stores that
            lack ramps or waiting times.
    """
    files = [path for path in paths if not path.is_dir()]
    if files and len(paths) > 1:
        raise ValueError(
            f"{files[0]} is not a store: give stores of ramps and of waiting times, or one forecast alone"
        )
    if files:
        return _forecast_hazard(files[0])
    sources = [open_stated(path) for path in paths]
    waiting = [source for source in sources if source.study.constant_rate]
    ramps = [source for source in sources if source not in waiting]
    if not waiting or not ramps:
        raise ValueError("a hazard is fitted to ramps and to waiting times: give stores of both with --from")
    return fitted_hazard(waiting, ramps), waiting[0].study.base


def _forecast_hazard(path: Path) -> tuple[Hazard, RunConfig]:
    """The hazard of a forecast file."""
    document = read_json(path)
    if not isinstance(document, dict) or "hazard" not in document:
        raise ValueError(
            f"{path} is no forecast by a hazard: write one with mms predict onset --law hazard --out"
        )
    return Hazard.of_document(document["hazard"]), _setting(document, path)


def _setting(document: Mapping[str, Any], path: Path) -> RunConfig:
    """A run of those that the hazard of a forecast was fitted to; an older one names only its stores."""
    if "setting" in document:
        return RunConfig.of_document(document["setting"])
    for store in document.get("made_from", ()):
        study = SWEEPS.get(Path(store).stem)
        if isinstance(study, Study) and study.constant_rate:
            return study.base
    raise ValueError(f"{path} does not say to which runs its hazard was fitted: write the forecast again")
