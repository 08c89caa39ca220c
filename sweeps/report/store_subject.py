"""A sweep or study as a subject of a report: what its cells show, and the forecast beside them."""

# N cells

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from meanmode.sim.onset.watched_signal import known_name
from meanmode.sim.store.sweep_store import DIVERGED, DONE, FAILED, TODO, open_cells
from meanmode.sweeps.engine.status import status_of
from meanmode.sweeps.engine.store_kinds import STORE_KINDS, kind_of
from meanmode.sweeps.report.contents import HeatMap, MapSet, Mark, Scatter, Subject, Table, rows_table, shown
from meanmode.sweeps.report.next_steps import after_store
from meanmode.sweeps.report.reduction import Grid, cosine_bounds, reduced_map
from meanmode.sweeps.report.run_subject import configuration_table
from meanmode.sweeps.studies.comparison import READINGS
from meanmode.sweeps.studies.rows import Row
from meanmode.theory.setting import Setting

MOST_ROWS, MOST_MAPS = 400, 24
"""Rows of a table and maps of a store that are shown."""

MOST_PIXELS = (600, 256)
"""Most columns and rows of a map."""

SAID = (
    "One line of the map per cell that is done or diverged, at its index in the store, from 0, as "
    "in the table of cells and in mms sweep status. Every pixel shows, of all values it covers, the one "
    "furthest from the median of the map; between measurements the last one is held."
)
"""How maps of cells are made, for the page."""

FIRST = ("tcs", "tcs_image", "tcs_deep")
"""Variables that are listed first."""


def store_subject(path: Path, *, name: str, pixels: int) -> Subject:
    """What a report says of a sweep or study.

    Args:
        path: the store.
        name: what the user calls it.
        pixels: number of pixels of its maps together.

    Raises:
        StoreError: no readable store.
    """
    data = open_cells(path)
    kind = kind_of(data.attrs)
    reading = READINGS[kind]
    codes = data["status"].values
    counts = {
        word: int((codes == code).sum())
        for word, code in (("to_do", TODO), ("done", DONE), ("failed", FAILED), ("diverged", DIVERGED))
    }
    cells = reading.onsets(data) if reading.onsets is not None and counts["done"] else []
    rows = reading.rows(data) if reading.rows is not None and counts["done"] else []
    return Subject(
        name=shown(name, 200),
        kind=f"{STORE_KINDS[kind].title}: {shown(data.attrs.get('name', ''))}",
        verdict=" ".join([_progress(counts, len(codes)), *_outcomes(cells), *_agreement(rows)]),
        tone="open",
        facts=tuple(_facts(data, cells, rows)),
        notes=tuple(_failures(path) if counts["failed"] else ()),
        maps=_maps(data, pixels),
        scatters=tuple(_scatters(rows)),
        tables=tuple([*_tables(rows), *_cell_tables(data, cells), configuration_table(data.attrs)]),
        next_steps=tuple(after_store(name, str(data.attrs.get("name", "NAME")), counts, compared=bool(rows))),
        unfinished=bool(counts["to_do"]),
    )


def _progress(counts: dict[str, int], total: int) -> str:
    others = [f"{counts[word]} {word.replace('_', ' ')}" for word in ("to_do", "failed", "diverged")]
    more = [text for text in others if not text.startswith("0 ")]
    return f"{counts['done']} of {total} cells are done{''.join(f', {text}' for text in more)}."


def _outcomes(cells: list[Row]) -> list[str]:
    """How many cells collapsed, and how."""
    if not cells:
        return []
    if "front" in cells[0]:
        fronts = [row["front"] for row in cells if row["front"] is not None]
        if not fronts:
            return ["None collapses within its depth."]
        span = f"at blocks {min(fronts):.3g} to {max(fronts):.3g}"
        return [
            f"{len(fronts)} of them collapse within their depth ({span}), {len(cells) - len(fronts)} do not."
        ]
    kinds = Counter(row["onset_kind"] for row in cells)
    steps = [row["onset_step"] for row in cells if row["onset_kind"] == "mean_mode"]
    span = f" (steps {min(steps)} to {max(steps)}, median {np.median(steps):.4g})" if steps else ""
    return [
        f"{kinds['mean_mode']} runs collapsed{span}, {kinds['plain_divergence']} diverged, {kinds['none']} "
        "did neither."
    ]


def _errors(rows: list[Row]) -> list[float]:
    return [abs(row["relative_error"]) for row in rows if row.get("relative_error") is not None]


def _agreement(rows: list[Row]) -> list[str]:
    errors = _errors(rows)
    if not errors:
        return []
    return [
        f"The forecast is off by {np.median(errors):.1%} in the median and {max(errors):.1%} at most, over "
        f"{len(errors)} predicted values."
    ]


def _facts(data: xr.Dataset, cells: list[Row], rows: list[Row]) -> list[tuple[str, str]]:
    axes = json.loads(data.attrs["axes"])
    said = []
    for axis in axes[:12]:
        values = pd.unique(data[axis].values)
        few = ", ".join(shown(value, 24) for value in values[:6])
        said.append(f"{shown(axis)}: {few}{f' and {len(values) - 6} more' if len(values) > 6 else ''}")
    found = [("Varied", "; ".join(said) or "nothing")]
    if rows and not _errors(rows):
        found.append(("Forecast", "Nothing in this store was predicted as a number."))
    return found


def _failures(path: Path) -> list[str]:
    failures = status_of(path)["failures"]
    return [f"cell {of['cell']} failed: {shown(of['error'] or 'no message', 200)}" for of in failures[:5]]


def _setting_fields() -> set[str]:
    return {field.name for field in dataclasses.fields(Setting)}


def _varied(rows: list[Row]) -> list[Row]:
    """Rows without the fields of the setting that all of them share, as far as they say something."""
    fixed = {
        name
        for name in _setting_fields()
        if len({json.dumps(row.get(name), default=str) for row in rows}) == 1
    }
    return [{key: value for key, value in row.items() if key not in fixed} for row in rows]


def _tables(rows: list[Row]) -> list[Table]:
    """Forecast against measured, one table per quantity."""
    quantities: dict[str, list[Row]] = {}
    for row in rows:
        quantities.setdefault(str(row["quantity"]), []).append(row)
    # rows that are a quantity of their own each, as of a study of alarms, are one table
    if len(quantities) > 1 and all(len(of) == 1 for of in quantities.values()):
        quantities = {"measured": rows}
    tables = []
    for quantity, of in quantities.items():
        held = [{k: v for k, v in row.items() if k != "quantity" or quantity == "measured"} for row in of]
        compared = any(row.get("predicted") is not None for row in of)
        title = f"Forecast against measured: {quantity}" if compared else f"Measured: {quantity}"
        tables.append(
            rows_table(
                shown(title.replace("_", " ")),
                [{k: _cell(v) for k, v in row.items()} for row in _varied(held)],
                most=MOST_ROWS,
                folded=not compared and len(quantities) > 1,
            )
        )
    return tables


def _finished(data: xr.Dataset) -> np.ndarray:
    """Indices of the cells that are shown in the table of cells and in the maps: done or diverged."""
    return np.flatnonzero(np.isin(data["status"].values, (DONE, DIVERGED)))


def _cell_tables(data: xr.Dataset, cells: list[Row]) -> list[Table]:
    """The finished cells with their front or onset; of diverged ones only their place is known.

    Args:
        data: the store.
        cells: one row per cell that is done, in order.
    """
    if not cells:
        return []
    status, axes = data["status"].values, json.loads(data.attrs["axes"])
    done = iter(_varied(cells))
    rows: list[Row] = []
    for index in _finished(data):
        of = (
            next(done)
            if status[index] == DONE
            else {**{axis: data[axis][index].item() for axis in axes}, "status": "diverged"}
        )
        rows.append({"cell": int(index), **{key: _cell(value) for key, value in of.items()}})
    return [rows_table("Cells", rows, most=MOST_ROWS, folded=True)]


def _cell(value: Any) -> Any:
    """A value as a cell of a table: numbers as they are, everything else as a short text."""
    if value is None or isinstance(value, int | float):
        return value
    return shown(value)


def _scatters(rows: list[Row]) -> list[Scatter]:
    """Predicted against measured, per quantity with at least two points."""
    quantities: dict[str, list[Row]] = {}
    for row in rows:
        if row.get("predicted") is not None and row.get("measured") is not None:
            quantities.setdefault(str(row["quantity"]), []).append(row)
    found = []
    for quantity, of in quantities.items():
        if len(of) < 2:
            continue
        names = [name for name in _varied(of)[0] if name in _setting_fields() or name == "case"]
        found.append(
            Scatter(
                quantity=shown(quantity.replace("_", " ")),
                predicted=np.array([row["predicted"] for row in of], np.float64),
                measured=np.array([row["measured"] for row in of], np.float64),
                settings=tuple(
                    shown(", ".join(f"{n} {row[n]}" for n in names if row.get(n) is not None), 120)
                    for row in of
                ),
            )
        )
    return found[:8]


def _maps(data: xr.Dataset, pixels: int) -> MapSet | None:
    """Every variable of a finished cell over blocks or steps, one line of the map per cell."""
    over = "block" if "front" in data and "block" in data.dims else "step"
    cells = _finished(data)
    if over not in data.dims or not len(cells):
        return None
    names = [
        str(name)
        for name in data.data_vars
        if data[name].dims[:2] == ("cell", over) and data[name].ndim <= 3 and data[name].dtype.kind == "f"
    ]
    names.sort(key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    x = data[over].values.astype(np.int64)
    first, last = int(cells[0]), int(cells[-1])
    share = pixels // min(max(len(names), 1) * 2, MOST_MAPS)
    grid = Grid.over((int(x[0]), int(x[-1])), (first, last), share, MOST_PIXELS)
    maps: list[HeatMap] = []
    for name in names:
        for label, values in _parts(data, name):
            held = values[cells].astype(np.float64)
            if over == "step":
                held = pd.DataFrame(held).ffill(axis=1).where(_until_last(held)).to_numpy()
            found = reduced_map(
                label,
                shown(data[name].attrs.get("long_name", ""), 200),
                held.T,
                x,
                cells,
                grid,
                hold=False,
                bounds=cosine_bounds(held) if known_name(name)[2] else None,
            )
            maps += [] if found is None or len(maps) >= MOST_MAPS else [found]
    if not maps:
        return None
    return MapSet(
        maps=tuple(maps),
        left=grid.first_x - 0.5,
        width=grid.last_x - grid.first_x + 1.0,
        bottom=first - 0.5,
        height=last - first + 1.0,
        x_name=over,
        y_name="cell",
        over_steps=False,
        marks=tuple(_marks(data, cells)),
        said=SAID,
    )


def _until_last(values: np.ndarray) -> np.ndarray:
    """Mask of everything up to the last measurement of each row."""
    return np.logical_or.accumulate(~np.isnan(values)[:, ::-1], axis=1)[:, ::-1]


def _parts(data: xr.Dataset, name: str) -> list[tuple[str, np.ndarray]]:
    values = data[name]
    if values.ndim == 2:
        return [(shown(name), values.values)]
    third = values.dims[2]
    labels = data[third].values if third in data.coords else range(values.sizes[third])
    return [(shown(f"{name}, {label}"), values.values[:, :, at]) for at, label in enumerate(labels)]


def _marks(data: xr.Dataset, cells: np.ndarray) -> list[Mark]:
    """Measured and predicted fronts, or onsets, of the cells."""
    marks = []
    named = {
        "front": "measured front",
        "predicted_front": "predicted front",
        "onset_step": "onset of a collapse or divergence",
    }
    for name, words in named.items():
        if name in data and data[name].dims == ("cell",):
            x = data[name].values[cells].astype(np.float64)
            if np.isfinite(x).any():
                marks.append(Mark(name=words, x=x, y=cells.astype(np.float64), joined=False))
    return marks
