"""Generated tables of studies of training runs: critical rates, effects, margins, the detector."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from meanmode.sim.onset.training_onset import WINDOW
from meanmode.sweeps.engine.store_kinds import open_study
from meanmode.sweeps.engine.study import stored_study
from meanmode.sweeps.studies.comparison import compare
from meanmode.sweeps.studies.critical_rates import exponent_over_runs, forecast_errors, study_rows
from meanmode.sweeps.studies.detection import INTERVALS, VIEWS, labelled_runs, score
from meanmode.sweeps.studies.markdown import critical_rate_table, effect_table, order_table, pipe_table
from meanmode.sweeps.studies.results.sizes import captioned, store, studies_caption
from meanmode.sweeps.studies.stability_margin import BEFORE_ONSET, margin_rows, steps_before_onset

CLOSE = 0.2
"""|Relative error| of a forecast that counts as close."""


def critical_rates(data: Path, name: str) -> str:
    """Critical rates of a study, forecast and measured."""
    rows = [row for row in compare([store(data, name)])["rows"] if row["quantity"] == "critical_rate"]
    statistics = (
        "Median over seeds with 90 % bootstrap interval; a run without a collapse counts as above its last "
        "rate, and an open end is shown as `...`; error = (forecast - measured) / measured."
    )
    statistics += _fits(open_study(store(data, name)))
    return captioned(critical_rate_table(rows), studies_caption(data, [name]), statistics)


def _fits(study: xr.Dataset) -> str:
    """The exponent in depth or slope where only that varies, and the error of the forecast."""
    said = ""
    varied = {name for case in stored_study(study.attrs).cases for name in case.options} - {"steps"}
    for axis in varied & {"depth", "slope"} if len(varied) == 1 else ():
        fit = exponent_over_runs(study, axis)
        if fit is not None:
            ends = f"{fit.exponent:.3f} +- {fit.exponent_error:.3f}"
            said += f" Exponent in {axis} over the runs that collapsed: {ends}."
    found = forecast_errors(study_rows(study), CLOSE).get("predicted")
    if found is not None:
        share = f"at most {100 * CLOSE:g} % in {found['within']} of {found['n']} cases"
        said += f" Median |error| of the forecast: {found['median']:.1%}, {share}."
    return said


def effects(data: Path, name: str) -> str:
    """Effects of the cases of a study on its baseline."""
    rows = compare([store(data, name)])["rows"]
    steps = sorted({row["at_step"] for row in rows if "at_step" in row})
    statistics = (
        "Statistics over seeds paired with the baseline, 90 % bootstrap intervals. Loss: median of 15 steps "
        f"before step {', '.join(map(str, steps))}."
    )
    return captioned(effect_table(rows), studies_caption(data, [name]), statistics)


def order_of_events(data: Path, name: str) -> str:
    """First lasting move of every signal around the collapses of a study."""
    statistics = (
        "First lasting move in steps after the onset (median over the runs that collapsed; in brackets in "
        "how "
        "many of them the signal moved, if not in all), then the factor of its median after the onset over "
        "that before."
    )
    table = order_table(compare([store(data, name)])["rows"])
    return captioned(table, studies_caption(data, [name]), statistics)


def functional_steps(data: Path, *names: str) -> str:
    """Median functional step before the collapses of every case of studies."""
    lines = []
    for name in names:
        for row in steps_before_onset(open_study(store(data, name))):
            if row["median"] is not None:
                lines.append([name, row["case"], f"{row['median']:.2f}", str(len(row["values"]))])
    first, last = BEFORE_ONSET
    statistics = (
        f"Functional step: median over the steps {first} to {last} before the onset, then over the runs that "
        "collapsed."
    )
    table = pipe_table(("study", "case", "functional step before the collapse", "runs"), lines)
    return captioned(table, studies_caption(data, names), statistics)


def margins(data: Path, *names: str) -> str:
    """How early a used-up stability margin warns of the collapses of studies."""
    lines = [
        [
            row["case"],
            str(row["collapsed"]),
            _number(row["warned"], ".0%"),
            _number(row["median_lead"], ".0f"),
            _number(row["median_share"], ".2f"),
            f"{row['healthy_crossed']} of {row['healthy']}",
        ]
        for row in margin_rows([store(data, name) for name in names])
    ]
    heads = ("case", "collapsed", "warned before", "median lead (steps)", "warning step / onset step")
    table = pipe_table((*heads, "healthy runs that crossed"), lines)
    return captioned(table, studies_caption(data, names))


def detection(data: Path, *names: str) -> str:
    """Score of the detector on the labelled runs of studies, by what it is shown."""
    runs = labelled_runs([store(data, name) for name in names])
    rows = [score(runs, view).row(name) for name, view in VIEWS.items()]
    first = rows[0]
    statistics = (
        f"{first['collapsed'] + first['healthy']} labelled runs: {first['collapsed']} collapses, "
        f"{first['healthy']} runs without. Found: an alarm from {WINDOW} steps before the onset to "
        f"{INTERVALS} "
        "logging intervals after it. False: an alarm before that or in a run without a collapse. 90 % "
        "intervals (Clopper-Pearson)."
    )
    return captioned(
        pipe_table(DETECTION_COLUMNS, map(detection_line, rows)), studies_caption(data, names), statistics
    )


DETECTION_COLUMNS = (
    *("shown to the detector", "found in time", "median lead (steps)"),
    *("false alarms per 10,000 logged", "false alarms", "logged steps"),
)


def detection_line(row: Mapping[str, Any]) -> list[str]:
    """Cells of one view in the table of `detection`, from a row of `Score.row`."""
    found, low, high = (100 * row[name] for name in ("found", "found_low", "found_high"))
    return [
        row["view"],
        f"{found:.1f} % ({low:.1f} to {high:.1f})",
        _number(row["median_lead"], ".0f"),
        f"{row['false_per_10000']:.1f}",
        f"{row['false_alarms']}",
        f"{row['logged']:,}",
    ]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
