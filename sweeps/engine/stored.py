"""Which kind of plan a store holds, rebuilt from its attributes."""

import json
from collections.abc import Mapping
from typing import Any

import xarray as xr

from meanmode.sim.store.files import StoreError
from meanmode.sweeps.engine.committor_study import Committor, stored_committor
from meanmode.sweeps.engine.study import Study, stored_study
from meanmode.sweeps.engine.sweep import Sweep
from meanmode.theory.setting import Setting


def holds_study(attributes: Mapping[str, Any]) -> bool:
    """Whether the store of these attributes is one of training runs, not of simulated stacks."""
    return "model" in json.loads(attributes["configuration"])["base"] and not holds_committor(attributes)


def holds_committor(attributes: Mapping[str, Any]) -> bool:
    """Whether the store of these attributes is one of forks."""
    return "forks" in json.loads(attributes["configuration"])


def stored_sweep(data: xr.Dataset) -> Sweep | Study | Committor:
    """The sweep, study or committor that a store holds.

    Raises:
        StoreError: fields that this version does not know.
    """
    if holds_study(data.attrs):
        return stored_study(data.attrs)
    if holds_committor(data.attrs):
        return stored_committor(data.attrs)
    configuration = json.loads(data.attrs["configuration"])
    try:
        return Sweep(
            name=configuration["name"],
            claim=data.attrs["claim"],
            base=Setting(**configuration["base"]),
            axes={axis: tuple(values) for axis, values in configuration["axes"].items()},
            cases=tuple(configuration.get("cases", ())),
            seeds=configuration["seeds"],
            laws=tuple(json.loads(data.attrs["laws"])),
            backward=configuration.get("backward", False),
            ensemble=configuration.get("ensemble", 1),
            device=configuration.get("device", "cpu"),
        )
    except (TypeError, KeyError, ValueError) as error:
        raise StoreError(f"the store was written by another version: {error}") from error
