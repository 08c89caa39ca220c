"""Generated tables of exponents: of untrained stacks, and of functional steps and half rates over depth."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from meanmode.sim.store.sweep_store import open_cells
from meanmode.sweeps.studies.exponents.depth_exponents import SPANS, STEPS, rate_exponents, size_exponents
from meanmode.sweeps.studies.exponents.stack_exponents import exponent_rows
from meanmode.sweeps.studies.forecast_files import read_forecast
from meanmode.sweeps.studies.half_rates import half_rates
from meanmode.sweeps.studies.markdown import pipe_table
from meanmode.sweeps.studies.results.sizes import (
    captioned,
    opened_studies,
    stacks_caption,
    store,
    studies_caption,
)
from meanmode.sweeps.studies.waiting_times import waiting_times
from meanmode.theory.onset.depth_scaling import first_step_coherence


def stack_exponents(data: Path, name: str) -> str:
    """Exponents of every setting of a sweep, beside their forecast."""
    rows = exponent_rows(open_cells(store(data, name)), read_forecast(data / f"{name}.forecast.json"))
    lines = [
        [
            f"{row['scale']:.2f}",
            f"{row['ffn_ratio']:g}",
            _merge(row),
            f"{row['input_cosine']:g}",
            row["quantity"].replace("_", " "),
            f"{row['from_block']} to {row['to_block']}",
            f"{row['formula']:+.3f}",
            f"{row['predicted']:+.3f}",
            f"{row['measured']:+.3f} +- {row['sem']:.3f}",
            f"{row['z']:+.1f}",
        ]
        for row in rows
    ]
    heads = ("std sqrt(width)", "FFN ratio", "merge", "input cosine", "exponent", "blocks")
    within = sum(abs(row["z"]) <= 3 for row in rows)
    signs = sum(row["formula"] * row["measured"] > 0 for row in rows)
    statistics = (
        "Exponents of energies per block, natural logarithms. Formula: infinitely many tokens and features; "
        "forecast: the recursion for these sizes; measured: mean over seeds +- standard error; z of the "
        f"forecast in standard errors: {within} of {len(rows)} within 3. Sign of the formula as measured: "
        f"{signs} of {len(rows)}."
    )
    table = pipe_table((*heads, "formula", "forecast", "measured", "z"), lines)
    return captioned(table, stacks_caption(data, [name]), statistics)


def _merge(row: Mapping[str, Any]) -> str:
    if row["merge"] == "mv_split":
        return f"mv_split, alpha {row['alpha']:g}, beta {row['beta']:g}"
    return row["merge"] if row["merge"] == "plain" else f"{row['merge']} {row['residual_gain']:g}"


def depth_steps(data: Path, *names: str, law: str) -> str:
    """Exponents in depth of the functional step per rate, by step."""
    coherence = read_forecast(data / f"{law}.forecast.json")["law"]["coherence"]
    rows = [row for source in opened_studies(data, names) for row in size_exponents(source, coherence)]
    lines = [
        [
            f"{row['from_depth']} to {row['to_depth']}",
            f"{row['first_step']:.2f}",
            *(f"{value:.2f}" for value in row["measured"]),
            f"{row['fitted']:.2f}",
        ]
        for row in rows
    ]
    heads = ("blocks", "theory, step 1", *(f"step {step}" for step in STEPS), "law O2")
    statistics = (
        "Exponent in depth of the functional step per rate. Theory: zero writers. Law O2 with r = "
        f"{coherence:.4f}, fitted to later steps of the shallower study."
    )
    return captioned(pipe_table(heads, lines), studies_caption(data, names), statistics)


def depth_rates(data: Path, *names: str, law: str) -> str:
    """Exponents in depth of half rates, beside those that keep the functional step."""
    coherence = read_forecast(data / f"{law}.forecast.json")["law"]["coherence"]
    runs = pd.concat([waiting_times(open_cells(store(data, name))) for name in names], ignore_index=True)
    runs = runs[runs["depth"].isin({depth for span in SPANS for depth in span})]
    first = first_step_coherence(opened_studies(data, names[:1])[0].study.base.model.setting())
    lines = [
        [
            f"{row['from_depth']} to {row['to_depth']}",
            f"{row['first_step']:.2f}",
            f"{row['fitted']:.2f}",
            f"{row['measured']:.2f} ({_end(row['low'])} to {_end(row['high'])})",
        ]
        for row in rate_exponents(half_rates(runs, {}), first, coherence)
    ]
    statistics = (
        "Exponent of the half rate in depth; the interval takes the outer ends of both 90 % intervals. The "
        "sizes are under [half rates](half_rate.md)."
    )
    return captioned(pipe_table(("blocks", "theory, step 1", "law O2", "measured"), lines), statistics)


def _end(value: float | None) -> str:
    return "..." if value is None else f"{value:.2f}"
