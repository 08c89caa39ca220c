"""Forecast files: written once, with hashes of the data they were made from, and taken along by a study."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from meanmode.sim.store.files import StoreError, StoreExistsError
from meanmode.sim.store.regular_files import read_json
from meanmode.sweeps.engine.plan import Plan
from meanmode.sweeps.engine.study import Study


def store_hash(data: xr.Dataset) -> str:
    """Hash of all measured numbers of an opened study, independent of the files that hold them."""
    hashed = hashlib.sha256()
    for name in ("onset_step", "onset_kind", "critical_rate", "loss"):
        hashed.update(np.ascontiguousarray(data[name].values).tobytes())
    return hashed.hexdigest()


def write_forecast(document: Mapping[str, Any], path: Path) -> None:
    """Write a forecast, once.

    Raises:
        StoreExistsError: the file exists already.
    """
    if path.exists():
        raise StoreExistsError(
            f"{path} already exists: a forecast is never overwritten, choose another --out"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")


def read_forecast(path: Path) -> dict[str, Any]:
    """Read a forecast.

    Raises:
        ValueError: no such file, or one that holds no JSON object.
    """
    try:
        return dict(read_json(path))
    except (FileNotFoundError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no forecast ({error}): name its folder with --forecasts") from error


def with_forecast(study: Plan, path: Path) -> Study:
    """The study with the forecast of a file, which its store will hold.

    Raises:
        ValueError: no study of training runs, or a file that holds no forecast, one of another study or of
            waiting times, or one that lacks a case.
    """
    if not isinstance(study, Study):
        raise ValueError(f"{study.name} has a forecast of its own: a file is for studies of training runs")
    try:
        document = read_json(path)
        rows = {row["case"]: row for row in document["rows"]}
        name = document["study"]
    except (StoreError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no forecast of a study ({error})") from error
    if "half_rates" in document:
        raise ValueError(f"{path} is a forecast of waiting times: mms waiting reads it, a run takes none")
    if name != study.name:
        raise ValueError(f"{path} is a forecast of {name}, not of {study.name}")
    missing = [case.label for case in study.cases if case.label not in rows]
    if missing:
        raise ValueError(f"{path} says nothing about {', '.join(missing)}")
    return dataclasses.replace(study, forecast=tuple(rows[case.label] for case in study.cases))
