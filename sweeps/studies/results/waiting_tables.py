"""Generated tables of waiting times at constant rates: shares, half rates, predictors, the committor."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from meanmode.sim.store.sweep_store import open_cells
from meanmode.sweeps.studies.committor import committor_rows
from meanmode.sweeps.studies.forecast_files import read_forecast
from meanmode.sweeps.studies.half_rates import forecasts_outside, half_rates, share_rows
from meanmode.sweeps.studies.markdown import pipe_table, with_ends
from meanmode.sweeps.studies.results.sizes import captioned, document, store, studies_caption
from meanmode.sweeps.studies.run_sizes import committor_sizes, rate_of, span
from meanmode.sweeps.studies.waiting_times import BASELINES, waiting_times
from meanmode.theory.onset.functional_law import FunctionalLaw

SHARE_COLUMNS = ("blocks", "rate", "forecast", "measured [90 %]", "collapsed")


def scored_shares(data: Path, scores: str, study: str) -> str:
    """Shares of runs that collapsed in one study of a document of `mms waiting`, with waiting times."""
    held = document(data, f"{scores}.scores")
    lines = [
        [
            *_share_cells(row, f"{row['rate']:.4g} ({row['share']:g})", row["measured"]),
            "-" if row["median_time"] is None else f"{row['median_time']:.0f}",
        ]
        for row in held["cases"]
        if row["study"] == study
    ]
    heads = (
        "blocks",
        "rate (share of the reference rate)",
        *SHARE_COLUMNS[2:],
        "median waiting time (steps)",
    )
    statistics = (
        f"Share of runs that collapsed before step {held['sizes']['steps']}, with Wilson intervals; "
        f"medians by "
        f"Kaplan-Meier. The reference rate is {held['thresholds'][study]:g} sqrt(16 / blocks)."
    )
    return captioned(pipe_table(heads, lines), studies_caption(data, [study]), statistics)


def forecast_shares(data: Path, *names: str) -> str:
    """Shares of runs that collapsed at each rate of studies whose forecasts name rates."""
    lines = []
    for name in names:
        shares = share_rows(waiting_times(open_cells(store(data, name))))
        for forecast in read_forecast(data / f"{name}.forecast.json")["rows"]:
            (row,) = (
                row
                for row in shares
                if row["depth"] == forecast["depth"] and math.isclose(row["rate"], forecast["rate"])
            )
            lines.append(_share_cells({**row, **forecast}, f"{row['rate']:.4g}", row["share"]))
    statistics = "Shares of runs that collapsed, with Wilson intervals."
    return captioned(pipe_table(SHARE_COLUMNS, lines), studies_caption(data, names), statistics)


def _share_cells(row: Mapping[str, Any], rate: str, measured: float) -> list[str]:
    interval = f"{measured:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
    collapsed = f"{row['collapsed']} of {row['runs']}"
    return [str(row["depth"]), rate, f"{row['predicted']:.2f}", interval, collapsed]


def shown_half_rates(data: Path, *names: str, law: str) -> str:
    """Half rates by depth over all studies, beside law O2 and the line through the shallow depths.

    Args:
        data: folder of the stores.
        names: studies of waiting times.
        law: study whose forecast holds law O2.
    """
    forecasts = {name: read_forecast(data / f"{name}.forecast.json") for name in names}
    runs = pd.concat([waiting_times(open_cells(store(data, name))) for name in names])
    fitted = FunctionalLaw.of_document(read_forecast(data / f"{law}.forecast.json")["law"])
    exponents = {of["power_law"]["exponent"] for of in forecasts.values() if "power_law" in of}
    lines = []
    for row in half_rates(runs, forecasts):
        predicted = f"{fitted.constant_rate(row['depth']):.3g}"
        if row["predicted_high"]:
            predicted += f" ({row['predicted_low']:.3g} to {row['predicted_high']:.3g})"
        line = f"{row['predicted_power_law']:.3g}" if row["predicted_power_law"] else "-"
        measured = with_ends(row["value"], row["low"], row["high"])
        collapsed = f"{row['collapsed']} of {row['runs']}"
        covered = {None: "-", True: "yes", False: "no"}[row["covered"]]
        lines.append([str(row["depth"]), predicted, line, measured, collapsed, covered])
    line = ", ".join(f"L^{exponent:.2f}" for exponent in sorted(exponents))
    heads = ("blocks", "law O2 (90 %)", f"line {line}", "measured (90 %)", "collapsed", "covered")
    statistics = (
        "Measured: the middle of a logistic in ln rate, maximum likelihood, bootstrap over runs; an end "
        "outside "
        "of the rates tried is shown as `...`, a half rate outside of them as `-`."
    )
    return captioned(pipe_table(heads, lines), studies_caption(data, names), statistics)


def predictors(data: Path, scores: str) -> str:
    """Scores of the predictors in a document of `mms waiting`, on held-out runs."""
    held = document(data, f"{scores}.scores")
    sizes = held["sizes"]
    bases = BASELINES[::-1]
    lines = []
    for row in held["scores"]:
        cells = [_scored(row[name], ".3f") for name in ("brier", "auroc")]
        for base in bases:
            differences = row["against"].get(base)
            cells += [
                _scored(differences[name], "+.3f") if differences else "-" for name in ("brier", "auroc")
            ]
        lines.append([row["predictor"], "yes" if row["stated"] else "no", *cells])
    heads = ["predictor", "stated before", "Brier", "AUROC"]
    for base in bases:
        heads += [f"Brier less that of {base}", f"AUROC less that of {base}"]
    sources = ", ".join(f"`{Path(name).stem}`" for name in held["made_from"])
    caption = (
        f"{sources}: {sizes['runs']} runs, {sizes['held_out']} of them held out, {sizes['collapsed']} "
        f"collapsed; "
        f"width {sizes['width']}, {sizes['image_tokens']} image + {sizes['text_tokens']} text tokens, batch "
        f"{sizes['batch']}, {sizes['steps']} steps. 90 % bootstrap intervals over held-out runs, the fit "
        f"kept. Of {len(held['cases'])} forecast shares, {forecasts_outside(held['cases'])} lie outside the "
        f"measured interval; {sizes['collapsed_early']} runs had collapsed by step {held['landmark']}."
    )
    return captioned(pipe_table(heads, lines), caption)


def _scored(found: Mapping[str, float | None], form: str) -> str:
    """A score with its interval, or a dash."""
    value, low, high = (found[name] for name in ("value", "low", "high"))
    return "-" if value is None else f"{value:{form}} [{low:{form}}, {high:{form}}]"


def committor(data: Path, name: str) -> str:
    """Share of forks that collapse by distance to the onset, and how well each signal ranks the states."""
    cells = open_cells(store(data, name))
    rows, sizes = committor_rows(cells), committor_sizes(cells)
    soon, late = sorted({row["within"] for row in rows})
    shares = {
        (row["within"], row["offset"]): f"{row['measured']:.2f} +- {row['measured_sem']:.2f}"
        for row in rows
        if row["quantity"] == "committor"
    }
    offsets = sorted({offset for _, offset in shares})
    by_offset = pipe_table(
        ("steps before the onset", f"collapse within {soon} steps", f"within {late} steps"),
        [[str(offset), shares[soon, offset], shares[late, offset]] for offset in offsets],
    )
    ranks = {
        (row["within"], row["observable"]): with_ends(
            row["measured"], row["measured_low"], row["measured_high"], ".2f"
        )
        for row in rows
        if row["quantity"] == "rank_correlation"
    }
    names = list(dict.fromkeys(observable for _, observable in ranks))
    by_signal = pipe_table(
        ("signal", f"Spearman, within {soon} steps (90 %)", f"within {late} steps (90 %)"),
        [[f"`{signal}`", ranks[soon, signal], ranks[late, signal]] for signal in names],
    )
    caption = (
        f"`{name}`: {len(sizes['seed'])} parents of {span(sizes['depth'])} blocks, width "
        f"{span(sizes['width'])}, "
        f"{span(sizes['image_tokens'])} image + {span(sizes['text_tokens'])} text tokens, batch "
        f"{span(sizes['batch'])}, {rate_of(sizes)}; {span(sizes['forks'])} forks per state. Shares: mean "
        f"over "
        "parents +- standard error; intervals: bootstrap over parents."
    )
    return captioned(by_offset, by_signal, caption)
