"""Comparisons as the Markdown tables of the README."""

from typing import Any

from meanmode.sweeps.engine.setting_fields import SETTING_FIELDS

Row = dict[str, Any]


def as_tables(document: dict[str, Any]) -> str:
    """The tables of whatever was compared."""
    kinds = {row["quantity"] for row in document["rows"]}
    if "critical_rate_ratio" in kinds:
        order = order_table(document["rows"]) if "first_move" in kinds else ""
        return "\n\n".join(filter(None, (effect_table(document["rows"]), order)))
    if "critical_rate" in kinds:
        return critical_rate_table(document["rows"])
    if not any("predicted_fraction" in row for row in document["rows"]):
        raise ValueError(f"there is no Markdown table of {', '.join(sorted(kinds))}: leave out --markdown")
    return front_table(document)


def front_table(document: dict[str, Any]) -> str:
    """Fronts: the fields that vary, then predicted against measured."""
    rows = [row for row in document["rows"] if "n_collapsed" in row]
    body = []
    for row in rows:
        sides = [_place(row["predicted"], row["predicted_std"]), _place(row["measured"], row["measured_sem"])]
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
    """Profiles: rms of TCS, and A of both writers at its largest with the worst error before the front."""
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
            cells += [f"{row['predicted']:.1f}", _place(row["measured"], row["measured_sem"])]
            cells.append(_ratio(row["worst_relative_error"], "+.1%"))
        body.append(cells)
    heads = ["TCS rms, seed mean", "TCS rms, a seed"]
    for writer in ("attn", "ffn"):
        heads += [f"A {writer} predicted", f"A {writer} measured", "worst block"]
    return _table([group["tcs_profile"] for group in groups], heads, body)


def exponent_text(document: dict[str, Any], distance: int) -> str:
    """Token exponents some blocks above the loss, predicted against measured, for every adjoint cosine."""
    rows = [row for row in document["rows"] if row.get("blocks_from_loss") == distance]
    return "; ".join(
        f"{row['predicted']:.2f} against {row['measured']:.2f} +- {row['measured_sem']:.2f} "
        f"at adjoint cosine {row['adjoint_cosine']:g}"
        for row in rows
    )


def _table(rows: list[Row], heads: list[str], body: list[list[str]]) -> str:
    varied = [name for name in SETTING_FIELDS if name in rows[0] and len({row[name] for row in rows}) > 1]
    varied = [name for name in varied if name != "depth"]
    lines = ["| " + " | ".join([*varied, *heads]) + " |", "|" + " --- |" * (len(varied) + len(heads))]
    for row, cells in zip(rows, body, strict=True):
        lines.append("| " + " | ".join([*(_field(row[name]) for name in varied), *cells]) + " |")
    return "\n".join(lines)


def _field(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _place(value: float | None, error: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if error is None else f"{value:.1f} +- {error:.1f}"


def _ratio(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def critical_rate_table(rows: list[Row]) -> str:
    """Studies of ramps: critical rates, forecast before and measured, and what rate sqrt(L) alone says."""
    lines = [
        "| case | forecast (90 %) | measured (90 %) | collapsed | error | of rate ~ L^(-1/2) alone |",
        "|" + " --- |" * 6,
    ]
    for row in rows:
        measured = _interval(row["measured"], row["measured_low"], row["measured_high"])
        if row["measured"] is None and row["measured_at_least"] is not None:
            measured = f"above {row['measured_at_least']:.3g}"
        cells = [
            row["case"],
            _interval(row["predicted"], row["predicted_low"], row["predicted_high"]),
            measured,
            f"{row['n_collapsed']} of {row['n']}",
            _ratio(row["relative_error"], "+.0%"),
            _ratio(row.get("error_power_law"), "+.0%"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def effect_table(rows: list[Row]) -> str:
    """Interventions and stabilisers: the critical rate over the baseline's, and the loss at equal steps."""
    ratios = {row["case"]: row for row in rows if row["quantity"] == "critical_rate_ratio"}
    losses = {row["case"]: row for row in rows if row["quantity"] == "loss"}
    collapsed = {row["case"]: row for row in rows if row["quantity"] == "critical_rate"}
    lines = [
        "| case | collapsed | critical rate over the baseline's (90 %) | loss less the baseline's (90 %) |",
        "|" + " --- |" * 4,
    ]
    for case, row in ratios.items():
        ratio = _interval(row["measured"], row["measured_low"], row["measured_high"])
        if row["measured"] is None and row["measured_at_least"] is not None:
            ratio = f"above {row['measured_at_least']:.2f}"
        loss = losses.get(case, {})
        ends = ("difference", "difference_low", "difference_high")
        runs = f"{collapsed[case]['n_collapsed']} of {collapsed[case]['n']}"
        cells = [case, runs, ratio, _interval(*(loss.get(end) for end in ends), form="+.2f")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def order_table(rows: list[Row]) -> str:
    """First lasting moves of every signal, in steps behind the onset, with their factors; a line a case."""
    moves = [row for row in rows if row["quantity"] == "first_move"]
    signals = list(dict.fromkeys(row["signal"] for row in moves))
    lines = ["| " + " | ".join(["case", "collapsed", *signals]) + " |", "|" + " --- |" * (2 + len(signals))]
    for case in dict.fromkeys(row["case"] for row in moves):
        own = {row["signal"]: row for row in moves if row["case"] == case}
        cells = [
            case,
            str(max(row["n"] for row in own.values())),
            *(_move(own.get(name)) for name in signals),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _move(row: Row | None) -> str:
    """The median of the first moves, how many runs they are of where not of all, and the factor."""
    if row is None or row["measured"] is None:
        return "-"
    some = "" if row["n_moved"] == row["n"] else f" ({row['n_moved']})"
    factor = "" if row["factor"] is None else f", x{row['factor']:.2g}"
    return f"{round(row['measured']):+d}{some}{factor}"


def _interval(value: float | None, low: float | None, high: float | None, form: str = ".3g") -> str:
    """A number with its interval; an end that is not known is left open."""
    if value is None:
        return "-"
    ends = ["..." if end is None else format(end, form) for end in (low, high)]
    return f"{value:{form}} ({ends[0]} to {ends[1]})" if ends != ["...", "..."] else format(value, form)
