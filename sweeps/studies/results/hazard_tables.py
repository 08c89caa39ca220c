"""Generated tables of the hazard (law O3): its fit, its forecasts beside new runs, and experiments on it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from meanmode.dit.config.run_config import RunConfig
from meanmode.sweeps.engine.store_kinds import OpenedStudy
from meanmode.sweeps.statistics.scores import drawn_counts, with_interval
from meanmode.sweeps.studies.forecast_files import read_forecast
from meanmode.sweeps.studies.half_rates import fits_of
from meanmode.sweeps.studies.hazards.hazard_candidates import FOLDS, candidate_rows, random_folds
from meanmode.sweeps.studies.hazards.hazard_experiments import (
    CLEAR,
    FEWEST,
    factor_rows,
    gain_rows,
    history_rows,
)
from meanmode.sweeps.studies.hazards.hazard_forecast import half_rate
from meanmode.sweeps.studies.hazards.hazard_runs import constant_rate_runs, differences, waiting_runs
from meanmode.sweeps.studies.hazards.hazard_scores import (
    log_score_rows,
    ramp_rows,
    ramp_summary,
    schedule_rows,
    slope_rows,
)
from meanmode.sweeps.studies.markdown import pipe_table, with_ends
from meanmode.sweeps.studies.results.sizes import captioned, opened_studies, store, studies_caption
from meanmode.sweeps.studies.rows import Row
from meanmode.sweeps.studies.waiting_times import waiting_times
from meanmode.theory.onset.hazard import Hazard
from meanmode.theory.onset.hazard_likelihood import PARAMETERS

DEEP = 64
"""Depth from which single runs are counted apart."""

WINDOWS = ((0, 50), (50, 100), (100, 200), (200, 600))
"""Windows of steps since a rate was reached."""

GAIN_WINDOWS = ((30, 60), (60, 100), (100, 150), (150, 200), (250, 300), (400, 500))
"""Windows of steps in which gains are compared between runs."""

OBSERVED = (
    "Expected: the cumulated hazard of the forecast over the steps at which each run was at risk; 90 % "
    "Poisson intervals."
)

FORMS: tuple[dict[str, float], ...] = (
    {"spread": 0.0},
    {"spread": 0.1},
    {"spread": 0.4},
    {"delay": 10.0, "spread": 0.4},
    {"ageing": -1.5},
    {"spread": 0.4, "ageing": -1.5},
)
"""Other delays, spreads and exponents of the age, looked at after the new runs; the rest is as forecast."""

NOTES = {
    "level": "ln of the hazard per step at 16 blocks, rate 0.0116 and 100 steps",
    "steepness": "b at 16 blocks: exponent of the rate",
    "ageing": "c: exponent of the age",
    "softening": "b falls with the depth to this power",
    "youth": "protection of young runs",
}


def _hazard(data: Path, name: str) -> Hazard:
    """The hazard of a forecast."""
    return Hazard.of_document(read_forecast(data / f"{name}.forecast.json")["hazard"])


def hazard_fit(data: Path, name: str) -> str:
    """The fitted parameters of the hazard of a forecast, with their bootstrap errors."""
    hazard = _hazard(data, name)
    errors = dict(zip(PARAMETERS, hazard.samples.std(0), strict=True))
    lines = [[key, note, f"{getattr(hazard, key):.3g} +- {errors[key]:.2g}"] for key, note in NOTES.items()]
    lines += [
        ["delay", "steps from cause to onset, there", f"{hazard.delay:g}, chosen"],
        ["spread", "variance between runs, there", f"{hazard.spread:g}, chosen"],
    ]
    sources = ", ".join(
        f"`{Path(path).stem}`" for path in read_forecast(data / f"{name}.forecast.json")["made_from"]
    )
    return captioned(
        pipe_table(("parameter", "meaning", "value"), lines),
        f"`{name}`: made from {sources}; r = {hazard.coherence:.4g} of law O2 from the ramps, all else from "
        f"the runs at constant rates. Errors: bootstrap over runs, {len(hazard.samples)} samples.",
    )


def hazard_candidates(data: Path, *names: str) -> str:
    """Forms of the hazard by their log score on held-out seeds of the fitted runs."""
    runs = constant_rate_runs(opened_studies(data, names))
    # r hardly matters for a ranking: that of law O2 as fitted on the ramps of 8 to 32 blocks
    rows = candidate_rows(runs, random_folds(runs), coherence=0.006766)
    lines = [
        [
            f"{row['delay']:g}",
            f"{row['spread']:g}",
            *("yes" if row[name] else "no" for name in ("ageing", "softening", "youth")),
            str(row["parameters"]),
            f"{row['log_score']:.0f}",
            f"{row['behind']:.0f} +- {row['behind_error']:.0f}",
        ]
        for row in rows
    ]
    heads = ("delay", "spread", "ageing", "softening", "youth", "parameters", "log score", "below the best")
    return captioned(
        pipe_table(heads, lines),
        studies_caption(data, names),
        f"Sum of the log scores of all runs in nats, each by a fit to other seeds ({FOLDS} folds).",
    )


def hazard_ramps(data: Path, *names: str, law: str) -> str:
    """Median critical rates by the hazard of a forecast beside measured ones and the rivals' errors."""
    hazard, sources = _hazard(data, law), opened_studies(data, names)
    base = _base(data, law)
    rows = [row for source in sources for row in ramp_rows(hazard, base, source)]
    lines = [
        [
            row["case"],
            with_ends(row["hazard"], row["hazard_low"], row["hazard_high"]),
            with_ends(row["measured"], row["measured_low"], row["measured_high"])
            if row["measured"]
            else "above the last rate",
            *(_percent(row[name]) for name in ("error", "error_functional_law", "error_power_law")),
            {True: "yes", False: "no", None: "-"}[row["covered"]],
            f"{row['inside']} of {row['runs']}",
            f"{row['collapsed']} of {row['runs']}",
        ]
        for row in rows
    ]
    heads = (
        *("case", "hazard (90 %)", "measured (90 %)", "error", "of law O2", "of L^(-1/2)"),
        *("covered", "runs inside", "collapsed"),
    )
    return captioned(
        pipe_table(heads, lines),
        _ramp_text(rows),
        _score_text(hazard, rows, sources),
        studies_caption(data, names),
    )


def _ramp_text(rows: Sequence[Row]) -> str:
    summary = ramp_summary(rows)
    parts = [
        f"{label}: median |error| {100 * summary[name]['median']:.1f} %, largest "
        f"{100 * summary[name]['largest']:.0f} % ({summary[name]['n']} cases)"
        for name, label in (
            ("error", "Hazard"),
            ("error_functional_law", "law O2"),
            ("error_power_law", "L^(-1/2)"),
        )
        if name in summary
    ]
    deep = [row for row in rows if row["depth"] >= DEEP]
    inside = f"Medians covered: {summary['covered']} of {summary['cases']}; runs inside their 90 % interval: "
    inside += f"{summary['inside']} of {summary['runs']}"
    if 0 < len(deep) < len(rows):
        of = ramp_summary(deep)
        inside += f", from {DEEP} blocks on {of['inside']} of {of['runs']}"
    return f"{'; '.join(parts)}. {inside}."


def _score_text(hazard: Hazard, rows: Sequence[Row], sources: Sequence[OpenedStudy]) -> str:
    scores = log_score_rows(hazard, rows, sources)
    names = {"functional_law": "law O2", "power_law": "L^(-1/2)"}
    said = "; ".join(
        f"{names[row['rival']]}, scatter {row['spread']:.2f}: {row['value']:+.2f} ({row['low']:+.2f} "
        f"to {row['high']:+.2f}, {row['runs']} runs)"
        for row in scores
    )
    return f"Log score per run above a rival's whose scatter suits these runs best, in nats: {said}."


def hazard_slopes(data: Path, *names: str, law: str) -> str:
    """Exponents of the slope by the hazard of a forecast beside measured ones."""
    hazard, base = _hazard(data, law), _base(data, law)
    rows = [
        row
        for source in opened_studies(data, names)
        for row in slope_rows(hazard, ramp_rows(hazard, base, source), source)
    ]
    lines = [
        [
            row["study"],
            str(row["depth"]),
            f"{row['law']:.3f}",
            f"{row['hazard']:.3f}",
            f"{row['measured']:.3f} +- {row['error']:.3f}",
            str(row["runs"]),
        ]
        for row in rows
    ]
    heads = ("study", "blocks", "law O3, (1 + c) / (1 + b + c)", "hazard", "measured", "runs")
    return captioned(
        pipe_table(heads, lines),
        studies_caption(data, names),
        "A line through ln critical rate over ln slope, of the runs that collapsed and of forecast medians.",
    )


def hazard_schedules(data: Path, *names: str, law: str) -> str:
    """Shares of collapsed runs and median steps by the hazard of a forecast beside measured ones."""
    hazard, base = _hazard(data, law), _base(data, law)
    rows = [row for source in opened_studies(data, names) for row in schedule_rows(hazard, base, source)]
    lines = [
        [
            row["case"],
            f"{row['chance']:.2f} ({row['chance_low']:.2f} to {row['chance_high']:.2f})",
            f"{row['share']:.2f} ({row['share_low']:.2f} to {row['share_high']:.2f})",
            f"{row['collapsed']} of {row['runs']}",
            "yes" if row["covered"] else "no",
            *("-" if row[name] is None else f"{row[name]:.0f}" for name in ("median", "measured")),
            f"{row['inside']} of {row['runs']}",
        ]
        for row in rows
    ]
    covered, inside, runs = (sum(row[name] for row in rows) for name in ("covered", "inside", "runs"))
    heads = (
        *("case", "P(collapse), hazard", "share (90 %)", "collapsed", "covered"),
        *("median step, hazard", "measured", "runs inside"),
    )
    return captioned(
        pipe_table(heads, lines),
        f"Shares covered: {covered} of {len(rows)}; runs inside their 90 % interval: {inside} of {runs}.",
        studies_caption(data, names),
    )


def hazard_half_rates(data: Path, *names: str, law: str) -> str:
    """Half rates by the hazard of a forecast beside measured ones."""
    hazard, sources, lines = _hazard(data, law), opened_studies(data, names), []
    runs = {run.model.depth: run for source in sources for run in source.study.runs}
    for depth, found in fits_of(pd.concat([waiting_times(source.data) for source in sources])).items():
        forecast, half = half_rate(hazard, runs[depth]), found.half
        error = _percent(forecast / half.value - 1) if np.isfinite(half.value) else "-"
        ends = [end if end and np.isfinite(end) else None for end in (half.low, half.high)]
        measured = with_ends(half.value, *ends) if np.isfinite(half.value) else "outside of the rates"
        lines.append([str(depth), f"{forecast:.3g}", measured, error])
    heads = ("blocks", "half rate, hazard", "measured (90 %)", "error")
    return captioned(pipe_table(heads, lines), studies_caption(data, names))


def hazard_history(data: Path, name: str, law: str) -> str:
    """Observed over expected collapses of cold and prepared runs, in windows since the rate was reached."""
    rows = history_rows(_hazard(data, law), *opened_studies(data, [name]), WINDOWS)
    lines = [
        [
            row["case"],
            f"{row['first'] + 1} to {row['last']}",
            *_observed(row),
        ]
        for row in rows
    ]
    heads = (
        "case",
        "steps at the rate",
        "runs at risk",
        "collapsed",
        "expected",
        "observed / expected (90 %)",
    )
    return captioned(pipe_table(heads, lines), studies_caption(data, [name]), OBSERVED)


def hazard_means(data: Path, name: str, law: str) -> str:
    """Factor of the hazard where only a part of the mean of every branch is written."""
    rows = factor_rows(_hazard(data, law), *opened_studies(data, [name]))
    heads = ("mean that is written", "runs at risk", "collapsed", "expected", "factor of the hazard (90 %)")
    lines = [[row["case"], *_observed(row)] for row in rows]
    return captioned(pipe_table(heads, lines), studies_caption(data, [name]), OBSERVED)


def hazard_afterwards(data: Path, *names: str, law: str) -> str:
    """Other forms of the hazard, fitted to the same runs, by their log score on runs that no form saw."""
    committed, base = _hazard(data, law), _base(data, law)
    made_from = [Path(path).stem for path in read_forecast(data / f"{law}.forecast.json")["made_from"]]
    fitted = constant_rate_runs([of for of in opened_studies(data, made_from) if of.study.constant_rate])
    groups = [
        (run.model.depth, waiting_runs(source.study, source.data)[case.label])
        for source in opened_studies(data, names)
        for case, run in zip(source.study.cases, source.study.runs, strict=True)
        if not differences(base, run)
    ]
    deep = np.repeat([depth >= DEEP for depth, _ in groups], [len(of.times) for _, of in groups])
    before = np.concatenate([committed.log_scores(of) for _, of in groups])
    lines = []
    for form in FORMS:
        fixed = {name: value for name, value in form.items() if name in PARAMETERS}
        chosen = {
            "delay": form.get("delay", committed.delay),
            "spread": form.get("spread", committed.spread),
        }
        other = Hazard.fit(fitted, coherence=committed.coherence, samples=0, fixed=fixed, **chosen)
        above = np.concatenate([other.log_scores(of) for _, of in groups]) - before
        cells = []
        for kept in (~deep, deep):
            counts = drawn_counts(int(kept.sum()))
            found = with_interval(counts @ above[kept] / counts.sum(-1))
            cells.append(f"{found['value']:+.2f} ({found['low']:+.2f} to {found['high']:+.2f})")
        ageing = f"{fixed['ageing']:g}, fixed" if fixed else f"{other.ageing:.2f}"
        lines.append([*(f"{value:g}" for value in chosen.values()), ageing, *cells])
    heads = ("delay", "spread", "ageing", f"below {DEEP} blocks", f"from {DEEP} blocks on")
    return captioned(
        pipe_table(heads, lines),
        f"Log score per run above the form of the forecast (delay {committed.delay:g}, spread "
        f"{committed.spread:g}), in nats, with 90 % bootstrap intervals over runs; {int((~deep).sum())} and "
        f"{int(deep.sum())} runs of {', '.join(f'`{name}`' for name in names)}. Looked at after the runs.",
    )


def hazard_gains(data: Path, *names: str) -> str:
    """Functional step per rate in windows of steps: mean of its logarithm, and its spread between runs."""
    lines = []
    for source in opened_studies(data, names):
        rows = gain_rows(source, GAIN_WINDOWS)
        for case in dict.fromkeys(row["case"] for row in rows):
            lines.append([source.study.name, case, *(_gain(row) for row in rows if row["case"] == case)])
    heads = ("study", "case", *(f"steps {first + 1} to {last}" for first, last in GAIN_WINDOWS))
    return captioned(
        pipe_table(heads, lines),
        "ln(functional step / rate): mean over runs +- standard deviation between them (runs), of those that "
        f"do not collapse within {CLEAR} steps after the window; - for fewer than {FEWEST}.",
        studies_caption(data, names),
    )


def _gain(row: Row) -> str:
    return "-" if row["mean"] is None else f"{row['mean']:.2f} +- {row['spread']:.2f} ({row['runs']})"


def _observed(row: Row) -> list[str]:
    ratio = f"{row['ratio']:.2g} ({row['low']:.2g} to {row['high']:.2g})"
    return [str(row["at_risk"]), str(row["observed"]), f"{row['expected']:.1f}", ratio]


def _base(data: Path, law: str) -> RunConfig:
    """A run of those that the hazard of a forecast was fitted to."""
    names = [Path(path).stem for path in read_forecast(data / f"{law}.forecast.json")["made_from"]]
    studies = (OpenedStudy.open(store(data, name)).study for name in names)
    return next(study for study in studies if study.constant_rate).base


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.0f}%"
