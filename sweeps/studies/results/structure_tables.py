"""Generated tables of stacks whose inputs have structure: fronts, amplification, the chain of law E4."""

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from meanmode.sweeps.studies.comparison import compare
from meanmode.sweeps.studies.markdown import pipe_table
from meanmode.sweeps.studies.results.sizes import captioned, document, stacks_caption, store
from meanmode.sweeps.studies.rows import Row
from meanmode.theory.setting import INPUTS

WORDS: dict[str, Callable[[Any], str]] = {
    "width": "width {}".format,
    "tokens": "T = {}".format,
    "text_tokens": "{} text tokens".format,
    "heads": "{} heads".format,
    "ffn_ratio": "FFN ratio {:g}".format,
    "weight_std": "std {:g}".format,
    "merge": str,
    "residual_gain": "gain {:g}".format,
    "alpha": "alpha {:g}".format,
    "mixer": str,
    "mixer_share": "l = {:g}".format,
    "rope": lambda on: "RoPE" if on else "no RoPE",
}
"""How a field of a setting is said in the name of a row."""


def _tuple(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in WORDS if name in row)


def _words(row: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    """The fields in which a setting differs from the first one, or that one's size."""
    varied = [name for name in WORDS if name in row and row[name] != first[name]]
    return ", ".join(WORDS[name](row[name]) for name in varied or ("width", "tokens", "weight_std"))


def _by_setting(rows: Iterable[Row], cell: Callable[[list[Row]], str]) -> str:
    """A table of settings by inputs, each cell made from its rows."""
    settings: dict[tuple[Any, ...], dict[str, list[Row]]] = {}
    for row in rows:
        settings.setdefault(_tuple(row), {}).setdefault(row["input"], []).append(row)
    groups = list(settings.values())
    first = next(iter(groups[0].values()))[0]
    body = [
        [
            _words(next(iter(group.values()))[0], first),
            *(cell(group[name]) if name in group else "-" for name in INPUTS),
        ]
        for group in groups
    ]
    return pipe_table(["setting", *INPUTS], body)


def _fronts(data: Path, name: str) -> list[Row]:
    return [row for row in compare([store(data, name)])["rows"] if "spread_ratio" in row]


def structured_fronts(data: Path, name: str) -> str:
    """Fronts predicted from all pairs of tokens against measured ones."""

    def cell(rows: list[Row]) -> str:
        (row,) = rows
        if row["measured"] is None or row["predicted"] is None:
            return f"{row['n_collapsed']} of {row['n']} collapsed"
        return (
            f"{row['predicted']:.1f} / {row['measured']:.1f} ({row['relative_error']:+.1%}, "
            f"z {row['z']:+.1f}, {row['spread_ratio']:.2f})"
        )

    rows = _fronts(data, name)
    errors = np.abs([row["relative_error"] for row in rows if row["relative_error"] is not None])
    statistics = (
        "Predicted / measured front (error = (predicted - measured) / measured; z in standard errors of "
        f"the measurement; predicted over measured standard deviation). Mean |error| {errors.mean():.1%}, "
        f"largest {errors.max():.1%}."
    )
    return captioned(_by_setting(rows, cell), stacks_caption(data, [name]), statistics)


def structured_gradients(data: Path, name: str) -> str:
    """Amplification of both writers against the Gram matrix of the adjoints."""

    def cell(rows: list[Row]) -> str:
        found = {row["quantity"]: row for row in rows}
        attn, ffn = (found[f"amplification_{writer}"]["median_log_error"] for writer in ("attn", "ffn"))
        return f"{attn:.3f}, {ffn:.3f} (TCS {found['tcs_profile']['rms_error']:.3f})"

    rows = [row for row in compare([store(data, name)])["rows"] if "spread_ratio" not in row]
    logs = [row["median_log_error"] for row in rows if "median_log_error" in row]
    statistics = (
        "Median over the blocks before the front of |ln(predicted / measured A)|, W_O and W_2 (root mean "
        f"square error of TCS over blocks). Median of all {np.median(logs):.3f}, largest {max(logs):.3f}."
    )
    return captioned(_by_setting(rows, cell), stacks_caption(data, [name]), statistics)


def gram_exact(data: Path, name: str, sweep: str) -> str:
    """The front of the chain of law E4 against the network's, for every setting of a sweep."""
    chain = document(data, name)["exact"]
    scores: list[float] = []

    def cell(rows: list[Row]) -> str:
        measured, exact = rows
        difference = exact["front"] - measured["measured"]
        error = math.hypot(measured["measured_sem"], exact["front_std"] / math.sqrt(exact["n"]))
        scores.append(difference / error)
        return f"{exact['front']:.1f} ({difference / measured['measured']:+.1%}, z {scores[-1]:+.1f})"

    measured = [row for row in _fronts(data, sweep) if row["measured"] is not None]
    by_key = {(_tuple(row), row["input"]): row for row in measured}
    base = measured[0]
    full = [{**{key: base[key] for key in WORDS}, **row} for row in chain if row["front"] is not None]
    pairs = [row for row in full if (_tuple(row), row["input"]) in by_key]
    table = _by_setting([by_key[_tuple(row), row["input"]] for row in pairs] + pairs, cell)
    largest = max(np.abs(scores))
    statistics = (
        f"Front of {pairs[0]['n']} realisations of the chain (error against the measured front; z in "
        f"standard errors of the difference). Largest |z| {largest:.1f} of {len(scores)}."
    )
    return captioned(table, stacks_caption(data, [sweep]), statistics)


def gram_cases(data: Path, name: str) -> str:
    """Profiles of segments, positions, causal masks and other mixers, by the walk, against the network."""
    body = []
    for case, sides in document(data, name)["cases"].items():
        theory, network = (np.array(sides[side]["tcs"]) for side in ("predicted", "measured"))
        rms = np.sqrt(np.mean((theory - network) ** 2, axis=0))
        fronts, front = np.array(sides["measured"]["fronts"]), sides["predicted"]["front"]
        reached = fronts[np.isfinite(fronts)]
        seen = "none"
        if len(reached) > 1:
            seen = f"{reached.mean():.1f} +- {reached.std(ddof=1) / math.sqrt(len(reached)):.1f}"
            seen += "" if len(reached) == len(fronts) else f" ({len(reached)} of {len(fronts)})"
        shown = "none" if front is None else f"{front:.1f}"
        body.append([case, ", ".join(f"{value:.3f}" for value in rms), shown, seen])
    table = pipe_table(["case", "rms of TCS by segment", "predicted front", "measured front"], body)
    return captioned(
        table,
        "Walk of the Gram recursion against 64 networks of their own seeds; rms over blocks of seed means. "
        "Fronts: mean over those within the depth.",
    )
