"""Comparisons of forecast and measurement as Markdown tables."""

from collections.abc import Iterable, Sequence
from typing import Any

from meanmode.sweeps.engine.setting_fields import SETTING_FIELDS
from meanmode.sweeps.studies.rows import Row

SIDES = (("predicted", "predicted_std"), ("measured", "measured_sem"))
"""Columns of a front and of its error."""


def study_tables(document: dict[str, Any]) -> str:
    """Studies of training runs: effects on a baseline and the order of events, or else critical rates."""
    rows = document["rows"]
    quantities = {row["quantity"] for row in rows}
    if "critical_rate_ratio" in quantities:
        return "\n\n".join([effect_table(rows), *([order_table(rows)] if "first_move" in quantities else [])])
    return critical_rate_table(rows) if "critical_rate" in quantities else ""


def front_table(document: dict[str, Any]) -> str:
    """Fronts: the fields that vary, then predicted and measured values; one line per setting."""
    rows = [row for row in document["rows"] if "n_collapsed" in row]
    body = []
    for row in rows:
        sides = [_with_error(row[of], row[error]) for of, error in SIDES]
        if row["quantity"] == "no_front":
            sides = ["none", f"none in {row['depth']} blocks"]
        if row["predicted_fraction"] is None:
            sides[0] = "no theory"
        ratios = [
            _ratio(row["z"], "+.1f"),
            _ratio(row["relative_error"], "+.1%"),
            _ratio(row["spread_ratio"], ".2f"),
        ]
        body.append([*sides, f"{row['n_collapsed']} of {row['n']}", *ratios])
    return _table(
        rows, ["predicted front", "measured front", "collapsed", "z", "error", "spread ratio"], body
    )


def profile_table(document: dict[str, Any]) -> str:
    """Profiles: rms error of TCS; for both writers the largest A, and its worst error before the front."""
    settings: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in document["rows"]:
        key = tuple(row[name] for name in SETTING_FIELDS if name in row)
        settings.setdefault(key, {})[row["quantity"]] = row
    groups = [group for group in settings.values() if "tcs_profile" in group]
    body = []
    for group in groups:
        cells = [f"{group['tcs_profile']['rms_error']:.3f}", f"{group['tcs_profile']['rms_seed_error']:.3f}"]
        for writer in ("attn", "ffn"):
            row = group[f"amplification_{writer}"]
            cells += [f"{row['predicted']:.1f}", _with_error(row["measured"], row["measured_sem"])]
            cells.append(_ratio(row["worst_relative_error"], "+.1%"))
        body.append(cells)
    heads = ["TCS rms, seed mean", "TCS rms, a seed"]
    for writer in ("attn", "ffn"):
        heads += [f"A {writer} predicted", f"A {writer} measured", "worst block"]
    return _table([group["tcs_profile"] for group in groups], heads, body)


def exponent_text(document: dict[str, Any], distance: int) -> str:
    """Predicted and measured token exponents at a distance (blocks) from the loss, by adjoint cosine."""
    rows = [row for row in document["rows"] if row.get("blocks_from_loss") == distance]
    return "; ".join(
        f"{row['predicted']:.2f} against {row['measured']:.2f} +- {row['measured_sem']:.2f} "
        f"at adjoint cosine {row['adjoint_cosine']:g}"
        for row in rows
    )


def _table(rows: list[Row], heads: list[str], body: list[list[str]]) -> str:
    varied = [name for name in SETTING_FIELDS if name in rows[0] and len({row[name] for row in rows}) > 1]
    varied = [name for name in varied if name != "depth"]
    lines = zip(rows, body, strict=True)
    return pipe_table(
        [*varied, *heads], [[*(_field(row[name]) for name in varied), *cells] for row, cells in lines]
    )


def pipe_table(heads: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A Markdown table, one line per row of the body."""
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    return "\n".join([*lines, *("| " + " | ".join(cells) + " |" for cells in body)])


def _field(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _with_error(value: float | None, error: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if error is None else f"{value:.1f} +- {error:.1f}"


def _ratio(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def critical_rate_table(rows: list[Row]) -> str:
    """Critical rates under ramps, forecast and measured, and the error of the power law in depth alone."""
    heads = ("case", "forecast (90 %)", "measured (90 %)", "collapsed", "error", "of rate ~ L^(-1/2) alone")
    body = []
    for row in rows:
        measured = with_ends(row["measured"], row["measured_low"], row["measured_high"])
        if row["measured"] is None and row["measured_at_least"] is not None:
            measured = f"above {row['measured_at_least']:.3g}"
        cells = [
            row["case"],
            with_ends(row["predicted"], row["predicted_low"], row["predicted_high"]),
            measured,
            f"{row['n_collapsed']} of {row['n']}",
            _ratio(row["relative_error"], "+.0%"),
            _ratio(row.get("error_power_law"), "+.0%"),
        ]
        body.append(cells)
    return pipe_table(heads, body)


def effect_table(rows: list[Row]) -> str:
    """Interventions and stabilisers: critical rate relative to the baseline, and loss at the same step."""
    ratios = {row["case"]: row for row in rows if row["quantity"] == "critical_rate_ratio"}
    losses = {row["case"]: row for row in rows if row["quantity"] == "loss"}
    collapsed = {row["case"]: row for row in rows if row["quantity"] == "critical_rate"}
    heads = (
        *("case", "collapsed"),
        *("critical rate over the baseline's (90 %)", "loss less the baseline's (90 %)"),
    )
    body = []
    for case, row in ratios.items():
        ratio = with_ends(row["measured"], row["measured_low"], row["measured_high"])
        if row["measured"] is None and row["measured_at_least"] is not None:
            ratio = f"above {row['measured_at_least']:.2f}"
        loss = losses.get(case, {})
        ends = ("difference", "difference_low", "difference_high")
        runs = f"{collapsed[case]['n_collapsed']} of {collapsed[case]['n']}"
        body.append([case, runs, ratio, with_ends(*(loss.get(end) for end in ends), form="+.2f")])
    return pipe_table(heads, body)


def order_table(rows: list[Row]) -> str:
    """First lasting move of every signal (steps after the onset) with its factor; one line per case."""
    moves = [row for row in rows if row["quantity"] == "first_move"]
    signals = list(dict.fromkeys(row["signal"] for row in moves))
    body = []
    for case in dict.fromkeys(row["case"] for row in moves):
        own = {row["signal"]: row for row in moves if row["case"] == case}
        cells = [
            case,
            str(max(row["n"] for row in own.values())),
            *(_move(own.get(name)) for name in signals),
        ]
        body.append(cells)
    return pipe_table(["case", "collapsed", *signals], body)


def _move(row: Row | None) -> str:
    """Median first move, the number of runs that moved if not all did, and the factor."""
    if row is None or row["measured"] is None:
        return "-"
    some = "" if row["n_moved"] == row["n"] else f" ({row['n_moved']})"
    factor = "" if row["factor"] is None else f", x{row['factor']:.2g}"
    return f"{round(row['measured']):+d}{some}{factor}"


def with_ends(value: float | None, low: float | None, high: float | None, form: str = ".3g") -> str:
    """A number with its interval; an unknown end is shown as open."""
    if value is None:
        return "-"
    ends = ["..." if end is None else format(end, form) for end in (low, high)]
    return f"{value:{form}} ({ends[0]} to {ends[1]})" if ends != ["...", "..."] else format(value, form)
