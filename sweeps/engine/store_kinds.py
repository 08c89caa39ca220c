"""The kinds of store: how each is recognised, and how its plan is rebuilt from its attributes."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import xarray as xr

from meanmode.sim.store.files import StoreError
from meanmode.sim.store.sweep_store import open_cells
from meanmode.sweeps.engine.committor_study import Committor, stored_committor
from meanmode.sweeps.engine.event_study import EventStudy
from meanmode.sweeps.engine.judged.judged_study import JudgedStudy
from meanmode.sweeps.engine.spectrum_study import SCORES, SpectrumStudy
from meanmode.sweeps.engine.splitting.splitting_study import SplittingStudy, stored_splitting
from meanmode.sweeps.engine.stock.stock_study import StockStudy, stored_stock
from meanmode.sweeps.engine.study import Study, stored_study
from meanmode.sweeps.engine.sweep import Sweep, stored_stacks

StoredPlan = Sweep | Study | Committor | SplittingStudy | StockStudy


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """A kind of store.

    Attributes:
        title: what such a store holds, for messages.
        plan: rebuilds the plan from the attributes of a store.
        recognises: whether a store that does not name its kind is of this one, by its configuration and the
            names of its variables; older versions wrote no `plan` attribute.
    """

    title: str
    plan: Callable[[Mapping[str, Any]], StoredPlan]
    recognises: Callable[[Mapping[str, Any], list[str]], bool]


STORE_KINDS: Mapping[str, Kind] = {
    Committor.kind: Kind(
        title="a committor study",
        plan=stored_committor,
        recognises=lambda configuration, _: "forks" in configuration,
    ),
    SpectrumStudy.kind: Kind(
        title="spectral scores of networks",
        plan=partial(stored_study, of=SpectrumStudy),
        recognises=lambda _, variables: set(SCORES) <= set(variables),
    ),
    EventStudy.kind: Kind(
        title="jumps of the learning rate from a healthy state",
        plan=partial(stored_study, of=EventStudy),
        recognises=lambda _configuration, _variables: False,
    ),
    JudgedStudy.kind: Kind(
        title="training runs judged on held-out images and by their samples",
        plan=partial(stored_study, of=JudgedStudy),
        recognises=lambda _configuration, _variables: False,
    ),
    SplittingStudy.kind: Kind(
        title="trajectories split over levels of the mean mode",
        plan=stored_splitting,
        recognises=lambda _configuration, _variables: False,
    ),
    StockStudy.kind: Kind(
        title="watched models of other libraries",
        plan=stored_stock,
        recognises=lambda _configuration, _variables: False,
    ),
    Study.kind: Kind(
        title="a study of training runs",
        plan=stored_study,
        recognises=lambda configuration, _: "model" in configuration["base"],
    ),
    Sweep.kind: Kind(
        title="a sweep over synthetic stacks", plan=stored_stacks, recognises=lambda _configuration, _: True
    ),
}
"""Kind, as the `plan` attribute of a store names it; the first kind that recognises an older store has it."""


def kind_of(attributes: Mapping[str, Any]) -> str:
    """The kind of the store with these attributes, a key of `STORE_KINDS`.

    Raises:
        StoreError: a kind that this version does not know.
    """
    stated = attributes.get("plan")
    if stated is None:
        configuration, variables = (json.loads(attributes[name]) for name in ("configuration", "variables"))
        return next(name for name, kind in STORE_KINDS.items() if kind.recognises(configuration, variables))
    if stated not in STORE_KINDS:
        raise StoreError(f"the store is of the unknown kind {stated!r}: a newer version has written it")
    return str(stated)


def stored_plan(attributes: Mapping[str, Any]) -> StoredPlan:
    """Rebuild the plan that a store with these attributes holds.

    Raises:
        StoreError: an unknown kind, or fields that this version does not know.
    """
    return STORE_KINDS[kind_of(attributes)].plan(attributes)


def open_study(path: Path) -> xr.Dataset:
    """A study of labelled training runs as it is stored, along `cell`.

    Raises:
        StoreError: no readable store, or one of another kind.
    """
    data = open_cells(path)
    kind = kind_of(data.attrs)
    if kind != Study.kind:
        raise StoreError(
            f"{path} holds {STORE_KINDS[kind].title}: give the store of {STORE_KINDS[Study.kind].title}"
        )
    return data


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenedStudy:
    """A study of labelled training runs, opened once.

    Attributes:
        path: path of the store, which a forecast names.
        study: the study, with what was stated before its runs.
        data: the store, along `cell`.
    """

    path: Path
    study: Study
    data: xr.Dataset

    @classmethod
    def open(cls, path: Path) -> "OpenedStudy":
        """Open a store.

        Raises:
            StoreError: no readable study of labelled runs.
        """
        data = open_study(path)
        return cls(path=path, study=stored_study(data.attrs), data=data)
