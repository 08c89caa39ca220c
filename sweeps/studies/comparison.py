"""What is read out of each kind of store: onsets, forecast against measurement, and Markdown tables."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from meanmode.sim.store.files import StoreError
from meanmode.sim.store.sweep_store import open_cells
from meanmode.sweeps.engine.committor_study import Committor
from meanmode.sweeps.engine.event_study import EventStudy
from meanmode.sweeps.engine.judged.judged_study import JudgedStudy
from meanmode.sweeps.engine.spectrum_study import SpectrumStudy
from meanmode.sweeps.engine.splitting.splitting_study import SplittingStudy
from meanmode.sweeps.engine.stock.stock_study import StockStudy
from meanmode.sweeps.engine.store_kinds import STORE_KINDS, kind_of
from meanmode.sweeps.engine.study import Study
from meanmode.sweeps.engine.sweep import Sweep
from meanmode.sweeps.studies.committor import committor_rows
from meanmode.sweeps.studies.critical_rates import effects, study_onsets, study_rows
from meanmode.sweeps.studies.event_order import first_moves
from meanmode.sweeps.studies.events.event_summaries import compared_events
from meanmode.sweeps.studies.events.silence import compared_silence
from meanmode.sweeps.studies.fronts import front_cells, sweep_rows
from meanmode.sweeps.studies.markdown import front_table, study_tables
from meanmode.sweeps.studies.rows import Row
from meanmode.sweeps.studies.stock.alarm_scores import stock_rows
from meanmode.sweeps.studies.training.judgements import compared_judgements

Rows = Callable[[xr.Dataset], list[Row]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What is read out of one kind of store; None for what it does not have.

    Attributes:
        onsets: one row per finished cell with its front or onset.
        rows: predicted and measured values, one row per setting and quantity.
        tables: Markdown tables of a comparison of such stores, empty if there are none.
    """

    onsets: Rows | None = None
    rows: Rows | None = None
    tables: Callable[[dict[str, Any]], str] | None = None


def compared_study(data: xr.Dataset) -> list[Row]:
    """The cases of a study of training runs, their effects on a baseline, and the order of events."""
    return study_rows(data) + effects(data) + first_moves(data)


READINGS: Mapping[str, Reading] = {
    Sweep.kind: Reading(onsets=front_cells, rows=sweep_rows, tables=front_table),
    Study.kind: Reading(onsets=study_onsets, rows=compared_study, tables=study_tables),
    SpectrumStudy.kind: Reading(),
    Committor.kind: Reading(rows=committor_rows),
    EventStudy.kind: Reading(rows=compared_events),
    JudgedStudy.kind: Reading(onsets=study_onsets, rows=compared_judgements),
    SplittingStudy.kind: Reading(rows=compared_silence),
    StockStudy.kind: Reading(rows=stock_rows),
}
"""Kind of store (`meanmode.sweeps.engine.store_kinds`) -> what is read out of it."""


def onset_cells(data: xr.Dataset) -> list[Row]:
    """Coordinates and measured front or onset of every finished cell of an opened store.

    Raises:
        StoreError: a kind of store whose cells have no onset.
    """
    return _read(READINGS[kind_of(data.attrs)].onsets, data, "no onsets")


def compare_store(data: xr.Dataset) -> list[Row]:
    """Predicted and measured values of an opened store, one row per setting and quantity.

    Raises:
        StoreError: a kind of store for which nothing is compared.
    """
    return _read(READINGS[kind_of(data.attrs)].rows, data, "nothing to compare")


def _read(rows: Rows | None, data: xr.Dataset, lacks: str) -> list[Row]:
    if rows is None:
        raise StoreError(f"{data.attrs['name']} holds {STORE_KINDS[kind_of(data.attrs)].title}: {lacks}")
    return rows(data)


def compare(paths: Sequence[Path]) -> dict[str, Any]:
    """Rows of all stores, the kinds of these, and median and mean |relative error| of the predictions.

    Raises:
        StoreError: no readable store, or one for which nothing is compared.
    """
    rows, kinds = [], []
    for path in paths:
        data = open_cells(path)
        rows += compare_store(data)
        kinds.append(kind_of(data.attrs))
    errors = [abs(row["relative_error"]) for row in rows if row.get("relative_error") is not None]
    return {
        "rows": rows,
        "kinds": list(dict.fromkeys(kinds)),
        "median_abs_relative_error": float(np.median(errors)) if errors else None,
        "mean_abs_relative_error": float(np.mean(errors)) if errors else None,
    }


def as_tables(document: dict[str, Any]) -> str:
    """A comparison as Markdown tables.

    Raises:
        ValueError: stores of several kinds, or of one that has no tables.
    """
    if len(document["kinds"]) != 1:
        raise ValueError(f"tables are of one kind of store, got {', '.join(document['kinds'])}")
    tables = READINGS[document["kinds"][0]].tables
    text = "" if tables is None else tables(document)
    if not text:
        quantities = ", ".join(sorted({row["quantity"] for row in document["rows"]}))
        raise ValueError(f"there is no Markdown table of {quantities}: leave out --markdown")
    return text
