"""Generated tables of the early warning: scores, calibration, alarms, failures, and the critical rate."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from meanmode.sim.onset.early_warning import HORIZONS, RATE_STEPS
from meanmode.sim.onset.training_onset import WINDOW
from meanmode.sweeps.studies.hazards.reforecast import reforecast_rows, reforecast_summary
from meanmode.sweeps.studies.hazards.warning_rows import (
    BROKEN,
    FITTED,
    GROUPS,
    SETTINGS,
    grouped_rows,
    warning_rows,
)
from meanmode.sweeps.studies.hazards.warning_scores import (
    EDGES,
    THIS,
    alarm_rows,
    calibration_rows,
    case_rows,
    score_rows,
)
from meanmode.sweeps.studies.markdown import pipe_table
from meanmode.sweeps.studies.results.sizes import captioned, opened_studies, studies_caption
from meanmode.sweeps.studies.rows import Row

SPARSE = 5
"""Interval at which the token cosine is looked at in the row of sparser telemetry."""

WORST = 8
"""Cases with the largest differences that are shown."""

BOOTSTRAP = "90 % intervals: bootstrap over runs."


def early_warning(data: Path, *names: str) -> str:
    """Everything about the early warning on studies that it was not fitted to, in four tables."""
    fitted = opened_studies(data, FITTED)
    sources = opened_studies(data, names)
    rows = pd.concat([warning_rows(source) for source in fitted], ignore_index=True)
    groups = grouped_rows(sources, fitted)
    varied = set(groups[SETTINGS]["study"]) if SETTINGS in groups else set()
    sparse = grouped_rows([source for source in sources if source.study.name in varied], fitted, every=SPARSE)
    held = {name: groups[name] for name in GROUPS if name in groups}
    return captioned(
        _scores(held, rows, {name: sparse[name] for name in (SETTINGS,) if name in sparse}),
        f"P(collapse within {HORIZONS[0]} or {HORIZONS[1]} steps), at every fifth step before the onset. "
        "AUROC: chance that of two rows the one before a collapse has the higher probability. Skill: 1 - "
        f"Brier score / that of the constant share of these rows. {BOOTSTRAP} Rivals are fitted to the "
        "fitted runs.",
        _calibration({"fitted runs": rows, **held}),
        "Share of rows whose run collapsed within the horizon, by predicted probability.",
        _alarms(held, rows),
        f"First alarm of each run; right if the collapse follows within {WINDOW} steps. Thresholds are the "
        "best on the fitted runs (F1 score), except that of the margin.",
        _cases(groups),
        f"Mean P(collapse within {HORIZONS[1]} steps) over the rows of a case, and the share of them whose "
        f"run did: all cases with a broken premise, then the {WORST} others that are farthest off.",
        f"Fitted to {', '.join(FITTED)}.",
        studies_caption(data, (*FITTED, *names)),
    )


def _interval(of: Mapping[str, Any], digits: int = 2) -> str:
    if of["value"] is None:
        return "-"
    value, low, high = (f"{of[name]:.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _scores(
    groups: Mapping[str, pd.DataFrame], fitted: pd.DataFrame, sparse: Mapping[str, pd.DataFrame]
) -> str:
    found = score_rows(groups, fitted)
    found += [
        {**row, "model": f"{THIS}, measured every {SPARSE} steps"}
        for row in score_rows(sparse, fitted)
        if row["model"] == THIS
    ]
    lines = []
    order = list(groups)
    for first in sorted(found, key=lambda row: order.index(row["group"])):
        if first["horizon"] != HORIZONS[0]:
            continue
        second = next(
            row
            for row in found
            if row["horizon"] == HORIZONS[1] and all(row[of] == first[of] for of in ("group", "model"))
        )
        cells = [_interval(row[score], 3) for score in ("auroc", "skill") for row in (first, second)]
        lines.append([f"{first['group']} ({second['runs']} runs)", first["model"], *cells])
    heads = [f"{score}, {horizon}" for score in ("AUROC", "skill") for horizon in HORIZONS]
    return pipe_table(("runs", "forecast", *heads), lines)


def _calibration(groups: Mapping[str, pd.DataFrame]) -> str:
    lines = []
    for horizon in HORIZONS:
        found = {
            name: {row["from"]: row for row in calibration_rows(rows, horizon)}
            for name, rows in groups.items()
        }
        for low, high in pairwise(EDGES):
            cells = [_interval(of[low]) if low in of else "-" for of in found.values()]
            lines.append([str(horizon), f"{low:.2f} to {high:.2f}", *cells])
    return pipe_table(("within", "predicted", *groups), lines)


def _alarms(groups: Mapping[str, pd.DataFrame], fitted: pd.DataFrame) -> str:
    lines = [
        [
            row["group"],
            f"{row['rule']} >= {row['threshold']:.3g}",
            f"{row['right']} of {row['alarms']} ({_number(row['precision'], '.2f')})",
            f"{row['right']} of {row['collapsed']} ({_number(row['recall'], '.2f')})",
            _number(row["lead"], ".0f"),
        ]
        for row in alarm_rows(groups, fitted)
    ]
    return pipe_table(("runs", "alarm", "right (precision)", "found (recall)", "median lead (steps)"), lines)


def _cases(groups: Mapping[str, pd.DataFrame]) -> str:
    held = pd.concat([rows for name, rows in groups.items() if name != BROKEN], ignore_index=True)
    worst = sorted(case_rows(held), key=lambda row: -abs(row["difference"]))[:WORST]
    broken = case_rows(groups[BROKEN]) if BROKEN in groups else []
    lines = [
        [
            row["study"],
            row["case"],
            kind,
            f"{row['collapsed']} of {row['runs']}",
            f"{row['predicted']:.2f}",
            f"{row['observed']:.2f}",
        ]
        for kind, rows in (("premise broken", broken), ("", worst))
        for row in rows
    ]
    return pipe_table(("study", "case", "", "collapsed", "predicted", "observed"), lines)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def reforecasts(data: Path, *names: str) -> str:
    """Critical rates forecast inside the runs of studies of ramps, beside the forecasts made before them."""
    rows = [row for source in opened_studies(data, names) for row in reforecast_rows(source)]
    shown = ("error", "error_functional_law", "error_power_law")
    lines = [
        [
            row["study"],
            row["case"],
            _measured(row),
            _number(row["reforecast"], ".4f"),
            *(_number(row.get(name), "+.0%") for name in shown),
            "; ".join(row["broken"]),
        ]
        for row in rows
    ]
    heads = (
        "study",
        "case",
        "measured",
        "forecast in the run",
        "error",
        "O2's error",
        "L^(-1/2)'s error",
        "",
    )
    held = [row for row in rows if not row["broken"]]
    statistics = (
        f"Forecast from the functional steps of the steps {RATE_STEPS[0]} to {RATE_STEPS[1]}, median over "
        f"the runs that had not failed by then (- if less than half). {_errors('All cases', rows)} "
        f"{_errors('Where no premise is broken', held)}"
    )
    return captioned(pipe_table(heads, lines), studies_caption(data, names), statistics)


def _measured(row: Row) -> str:
    if row["measured"] is not None:
        return f"{row['measured']:.4f}"
    return f"> {row['measured_at_least']:.4f}" if row["measured_at_least"] else "-"


def _errors(words: str, rows: Sequence[Row]) -> str:
    found = reforecast_summary(rows)
    if not found:
        return f"{words}: none with all forecasts."
    own, law, line = (found[name] for name in ("error", "error_functional_law", "error_power_law"))
    return (
        f"{words} with all three forecasts ({own['n']}): median |error| {own['median']:.0%}, of law O2 "
        f"{law['median']:.0%}, of the line L^(-1/2) {line['median']:.0%}."
    )
