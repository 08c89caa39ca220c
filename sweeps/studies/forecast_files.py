"""Forecast files: written once, with hashes of the data they were made from."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from meanmode.sim.store.files import StoreExistsError
from meanmode.sim.store.sweep_store import open_cells
from meanmode.sweeps.engine.study import Study
from meanmode.sweeps.engine.sweep import Sweep


def store_hash(path: Path) -> str:
    """Hash of all measured numbers of a study, whatever files hold them."""
    data = open_cells(path)
    hashed = hashlib.sha256()
    for name in ("onset_step", "onset_kind", "critical_rate", "loss"):
        hashed.update(np.ascontiguousarray(data[name].values).tobytes())
    return hashed.hexdigest()


def write_forecast(document: Mapping[str, Any], path: Path) -> None:
    """Write a forecast down, once.

    Raises:
        StoreExistsError: there is one already.
    """
    if path.exists():
        raise StoreExistsError(
            f"{path} already exists: a forecast is never overwritten, choose another --out"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")


def with_forecast(study: Sweep | Study, path: Path) -> Study:
    """The study with the forecast of a file.

    Raises:
        ValueError: a file that is none, of another study or of waiting times, or without a case; or no study.
    """
    if not isinstance(study, Study):
        raise ValueError(f"{study.name} has a forecast of its own: a file is for studies of training runs")
    try:
        document = json.loads(path.read_text())
        rows = {row["case"]: row for row in document["rows"]}
        name = document["study"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no forecast of a study ({error})") from error
    if "half_rates" in document:
        raise ValueError(f"{path} is of waiting times: it is read by mms waiting, no run takes it along")
    if name != study.name:
        raise ValueError(f"{path} is a forecast of {name}, not of {study.name}")
    missing = [case.label for case in study.cases if case.label not in rows]
    if missing:
        raise ValueError(f"{path} says nothing about {', '.join(missing)}")
    return dataclasses.replace(study, forecast=tuple(rows[case.label] for case in study.cases))
