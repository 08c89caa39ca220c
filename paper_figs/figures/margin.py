"""The functional step before a collapse in every configuration, and critical rates predicted from pilots."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from meanmode.paper_figs.shared.runs import caption
from meanmode.paper_figs.shared.studies import DOT, Studies, bars, forecast_of, short_sizes
from meanmode.paper_figs.shared.style import COLOURS, PAGE, plain_ticks
from meanmode.sweeps.studies.critical_rates import study_rows
from meanmode.sweeps.studies.stability_margin import BEFORE_ONSET, steps_before_onset

SETTINGS = "critical_rate_settings"


STUDIES = ("critical_rate_depth", "critical_rate_slopes", "critical_rate_deep", SETTINGS)


COLOUR = dict(zip(STUDIES, ("black", COLOURS[2], COLOURS[1], COLOURS[0]), strict=True))


FORECASTS = {
    "predicted": ("law O2, from a pilot", COLOURS[0]),
    "predicted_power_law": ("rate sqrt(L) alone", "none"),
}
"""Forecast -> its name and the face colour of its points."""


NAMED = 0.5
"""Cases whose forecast is off by more than this are labelled."""


WITHIN = 0.2
"""Relative error of the band around the diagonal."""


Rows = Sequence[Mapping[str, Any]]


def draw(studies: Studies) -> Figure:
    """Delta in the steps before each onset by case, and predicted against measured critical rates.

    Args:
        studies: some of `STUDIES`; the second panel shows `critical_rate_settings`.
    """
    rows = study_rows(studies[SETTINGS]) if SETTINGS in studies else []
    predicted = any(row["predicted"] is not None for row in rows)
    figure = Figure(figsize=(PAGE, 3.9), layout="constrained")
    panels = figure.subplots(
        1, 1 + predicted, squeeze=False, width_ratios=(1.35, 1) if predicted else None
    ).flat
    before = {name: steps_before_onset(data) for name, data in studies.items()}
    forecast = forecast_of(studies)
    _draw_steps(panels[0], before, forecast)
    if predicted:
        _draw_predicted(panels[1], rows)
    first, last = BEFORE_ONSET
    right = ""
    if predicted:
        right = f" Right: named where off by more than {100 * NAMED:g} %."
    caption(
        figure,
        f"Left: functional step Delta, median of the steps {first} to {last} before an onset; dots: "
        f"runs, bars: medians.{right} {short_sizes(studies)}",
    )
    return figure


def _draw_steps(panel: Axes, before: Mapping[str, Rows], forecast: Mapping[str, Any]) -> None:
    """Every case in a column of its own."""
    if forecast:
        label = "Delta_c of law O2, fitted to ramps"
        panel.axhline(forecast["law"]["threshold"], color="0.35", lw=0.8, label=label)
    labels: list[str] = []
    for study, rows in before.items():
        name: str | None = study
        for row in rows:
            sizes, place = row["values"], len(labels)
            labels.append(row["case"])
            if not sizes:
                continue
            spots = place + np.linspace(-0.25, 0.25, len(sizes)) if len(sizes) > 1 else [place]
            panel.plot(spots, sizes, color=COLOUR[study], label=name, **{**DOT, "ms": 2.2})
            panel.plot([place - 0.35, place + 0.35], [row["median"]] * 2, color=COLOUR[study], lw=1.5)
            name = None
    panel.set_xticks(range(len(labels)), labels, rotation=60, ha="right", rotation_mode="anchor")
    panel.set_xlim(-0.7, len(labels) - 0.3)
    panel.set_yscale("log")
    plain_ticks(panel.yaxis)
    panel.set_ylabel("Delta before the onset")
    panel.set_xlabel("case")
    panel.grid(axis="y", alpha=0.25, which="both")
    panel.legend()


def _draw_predicted(panel: Axes, rows: Rows) -> None:
    """Predicted against measured critical rates, with the diagonal and its band."""
    ends = []
    for name, (words, face) in FORECASTS.items():
        label: str | None = words
        for row in rows:
            known, predicted = row["measured"] is not None, row.get(name)
            measured = row["measured"] if known else row["measured_at_least"]
            if predicted is None or not measured:
                continue
            marker = "o" if known else r"$\rightarrow$"
            style = {"mfc": face, "mec": COLOURS[0], "ls": "none"}
            panel.plot(measured, predicted, marker=marker, label=label, **style)
            label = None
            ends += [measured, predicted]
            if known:
                interval = bars(measured, row["measured_low"], row["measured_high"])
                panel.errorbar(measured, predicted, xerr=interval, color=COLOURS[0], lw=0.6, alpha=0.5)
            if name == "predicted" and not (known and abs(row["relative_error"]) <= NAMED):
                place = {"xytext": (0, 4 if known else -8), "textcoords": "offset points", "ha": "center"}
                panel.annotate(row["case"], (measured, predicted), **place)
    if ends:
        line = np.array([min(ends) / 1.3, max(ends) * 1.3])
        panel.plot(line, line, color="0.35", lw=0.8)
        band = {"color": "0.35", "alpha": 0.12, "lw": 0, "label": f"within {100 * WITHIN:g} %"}
        panel.fill_between(line, line * (1 - WITHIN), line * (1 + WITHIN), **band)
        panel.legend(loc="upper left")
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlabel("measured critical rate (arrow: none below)")
    panel.set_ylabel("predicted critical rate")
    panel.grid(alpha=0.25)
