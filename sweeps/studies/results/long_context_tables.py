"""Generated tables of long contexts: fronts with their limit, exponents of A between token counts, frames."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from meanmode.sim.store.sweep_store import open_cells
from meanmode.sweeps.engine.sweep import stored_stacks
from meanmode.sweeps.studies.fronts import sweep_rows
from meanmode.sweeps.studies.markdown import pipe_table
from meanmode.sweeps.studies.results.sizes import captioned, stacks_caption, store
from meanmode.sweeps.studies.rows import Row
from meanmode.sweeps.studies.token_exponents import local_exponents
from meanmode.theory.meanfield.token_limit import TokenLimit, token_limit

MILLION = 10**6

LONG = 8
"""Tokens per feature of a token from which on the front depends on T to first order in 1 / T."""

DISTANCES = (2, 3, 4, 5, 6, 8, 12)
"""Blocks from the last block, which is 1, at which exponents are shown."""


def _opened(data: Path, names: tuple[str, ...]) -> list[xr.Dataset]:
    return [open_cells(store(data, name)) for name in names]


def long_fronts(data: Path, *names: str) -> str:
    """Fronts against the number of tokens, to a million, with their limit and its bound."""
    rows = [row for sweep in _opened(data, names) for row in sweep_rows(sweep) if "n_collapsed" in row]
    rows = sorted((row for row in rows if not row["adjoint_cosine"]), key=lambda row: row["tokens"])
    base = stored_stacks(open_cells(store(data, names[0])).attrs).base
    limits = {
        count: token_limit(dataclasses.replace(base, tokens=count))
        for count in [*(row["tokens"] for row in rows), MILLION]
    }
    body = [_front_line(row, limits[row["tokens"]]) for row in rows]
    far = limits[MILLION]
    if far is None:
        raise ValueError(f"{names[0]} has no front in the limit of many tokens")
    body.append([f"{MILLION:,}", f"{far.front:.2f}", f"{far.limit - far.slope / MILLION:.2f}", *["-"] * 5])
    heads = ["tokens", "mean recursion", "limit - K / T", "forecast", "measured", "seeds", "error", "z"]
    text = (
        f"Mean recursion: limit {far.limit:.2f} blocks, K = {far.slope:.0f} blocks x tokens. Forecast: mean "
        "+- standard deviation over seeds. Measured: mean +- standard error. error = (forecast - measured) / "
        "measured."
    )
    return captioned(pipe_table(heads, body), text, _bound(rows, far), stacks_caption(data, names))


def _front_line(row: Row, limit: TokenLimit | None) -> list[str]:
    if limit is None:
        raise ValueError(f"no front is predicted at {row['tokens']} tokens")
    error = "" if row["measured_sem"] is None else f" +- {row['measured_sem']:.2f}"
    return [
        f"{row['tokens']:,}",
        f"{limit.front:.2f}",
        f"{limit.limit - limit.slope / row['tokens']:.2f}",
        f"{row['predicted']:.1f} +- {row['predicted_std']:.1f}",
        f"{row['measured']:.2f}{error}",
        str(row["n"]),
        f"{row['relative_error']:+.1%}",
        "-" if row["z"] is None else f"{row['z']:+.1f}",
    ]


def _bound(rows: list[Row], far: TokenLimit) -> str:
    """How far off the forecast at a million tokens can be, from all sizes at which 1 / T is small."""
    long = [row for row in rows if row["tokens"] >= LONG * row["width"] and row["measured_sem"]]
    weights = [1 / row["measured_sem"] ** 2 for row in long]
    shift = sum(
        weight * (row["measured"] - row["predicted"]) for weight, row in zip(weights, long, strict=True)
    )
    shift, error = shift / sum(weights), sum(weights) ** -0.5
    fewest = min(row["tokens"] for row in long)
    moved = far.between(fewest, MILLION)
    bound = abs(shift) + 2 * error + moved
    sums = f"{abs(shift):.2f} + 2 x {error:.2f} + {moved:.2f} = {bound:.1f} blocks ({bound / far.front:.0%})"
    return (
        f"Measured minus forecast from {fewest:,} tokens on: {shift:+.2f} +- {error:.2f} blocks. Bound on "
        f"the error at a million tokens: {sums}; the last term covers a front that stays where it is from "
        f"{fewest:,} tokens on, or moves twice as far as predicted."
    )


def long_exponents(data: Path, *names: str) -> str:
    """Exponents of A - 1 in T between neighbouring token counts, by distance from the loss."""
    sweeps = _opened(data, names)
    body: list[list[str]] = []
    spans: list[str] = []
    for cosine in sorted({float(value) for sweep in sweeps for value in sweep["adjoint_cosine"].values}):
        for distance in DISTANCES:
            rows = [row for row in local_exponents(sweeps, distance) if row["adjoint_cosine"] == cosine]
            spans = max(spans, [f"{row['fewer']:,} to {row['more']:,}" for row in rows], key=len)
            cells = [
                f"{row['predicted']:.2f} / {row['measured']:.2f} +- {row['measured_sem']:.2f}" for row in rows
            ]
            body.append([f"{cosine:g}", str(distance), *cells])
    body = [[*line, *["-"] * (2 + len(spans) - len(line))] for line in body]
    text = (
        "Exponent of A - 1 of the attention writer in T, predicted / measured, between neighbouring token "
        "counts; distance in blocks from the last one, which is 1."
    )
    table = pipe_table(["adjoint cosine", "distance", *spans], body)
    return captioned(table, text, stacks_caption(data, names))


def frame_means(data: Path, *names: str) -> str:
    """Fronts, TCS and amplification of videos by merge and by the means it takes."""
    body = [line for sweep in _opened(data, names) for line in _frame_lines(sweep)]
    heads = ["tokens", "merge", "forecast", "measured", "collapsed", "z", "TCS", "within frames"]
    text = (
        "Front within the depth: mean +- standard deviation over seeds (forecast) and +- standard error "
        "(measured), with the depth where a seed has none. TCS of all tokens and within frames: mean over "
        "seeds, at the input / after 2 blocks / at the end. A: largest seed mean before the front, writers "
        "attention / FFN."
    )
    return captioned(pipe_table([*heads, "A"], body), text, stacks_caption(data, names))


def _frame_lines(data: xr.Dataset) -> list[list[str]]:
    sweep = stored_stacks(data.attrs)
    fronts = [row for row in sweep_rows(data) if "n_collapsed" in row]
    lines = []
    for index, (setting, row) in enumerate(zip(sweep.settings, fronts, strict=True)):
        cells = data.isel(cell=slice(index * sweep.seeds, (index + 1) * sweep.seeds))
        merge = "plain"
        if setting.merge != "plain":
            means = "frames" if setting.frame_means else "global"
            merge = f"MV-Split {setting.alpha:g}, {setting.beta:g}, {means}"
        at = (0, 2, setting.depth)
        cosines = [
            " / ".join(f"{cells[name].values[:, block].mean():.2f}" for block in at)
            for name in ("tcs", "tcs_frame")
        ]
        lines.append(
            [
                f"{setting.tokens}",
                merge,
                *_sides(row, setting.depth),
                f"{row['n_collapsed']} of {row['n']}",
                "-" if row["z"] is None else f"{row['z']:+.1f}",
                *cosines,
                _largest(cells, setting.depth),
            ]
        )
    return lines


def _sides(row: Row, depth: int) -> tuple[str, str]:
    if row["quantity"] == "no_front":
        return ("none" if row["predicted_fraction"] is not None else "no theory"), f"none in {depth}"
    forecast = "no theory"
    if row["predicted"] is not None:
        forecast = f"{row['predicted']:.1f} +- {row['predicted_std']:.1f}"
    return forecast, f"{row['measured']:.1f} +- {row['measured_sem'] or math.nan:.1f}"


def _largest(cells: xr.Dataset, depth: int) -> str:
    """Largest seed mean of A over the blocks that see a TCS below 0.9, of both writers."""
    before = np.flatnonzero(cells["tcs"].values[:, :depth].mean(0) < 0.9) + 1
    measured: Any = cells["amplification"].values[:, before].mean(0).max(0)
    return " / ".join(f"{value:.1f}" for value in measured)
