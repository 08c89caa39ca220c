"""The early warning: probability of a collapse within 25 and 50 steps, predicted against observed."""

# B bins

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from meanmode.paper_figs.shared.runs import caption
from meanmode.paper_figs.shared.studies import Studies, bars
from meanmode.paper_figs.shared.style import COLOURS, MARKERS, PAGE
from meanmode.sweeps.studies.hazards.hazard_runs import opened
from meanmode.sweeps.studies.hazards.warning_rows import (
    FITTED,
    SAME,
    SCHEDULES,
    SETTINGS,
    grouped_rows,
    warning_rows,
)
from meanmode.sweeps.studies.hazards.warning_scores import calibration_rows

STUDIES = FITTED
"""Studies that the early warning was fitted to, at least one of which is needed."""

BESIDE = (
    *("detector_unseen", "critical_rate_settings", "interventions", "stabilisers", "critical_rate_slopes"),
    *("critical_rate_deep", "critical_rate_entry", "waiting_time_deep", "waiting_time_between"),
    *("waiting_time_400", "waiting_time_400_low", "waiting_time_1000", "stabilisers_deep"),
    *("hazard_settings", "hazard_slopes", "hazard_deep", "hazard_200"),
)
"""Studies that it was not fitted to, drawn where they exist."""

OF_FIT = "fitted"
GROUPS = (OF_FIT, SAME, SETTINGS, SCHEDULES)
STYLE = dict(zip(GROUPS, zip(("0.25", *COLOURS[:3]), MARKERS, strict=False), strict=False))
"""Group -> colour and marker."""

LEAST_RUNS = 5
"""Runs that a bin must have to be drawn."""

PANELS = (25, 50)
"""Horizon of each panel, in steps."""


def draw(studies: Studies) -> Figure:
    """Share of rows whose run collapsed within the horizon against the predicted probability, one panel each.

    Args:
        studies: some of `STUDIES`, and some of `BESIDE`.
    """
    sources = opened(studies)
    fitted = [source for source in sources if source.study.name in FITTED]
    others = [source for source in sources if source.study.name not in FITTED]
    rows = pd.concat([warning_rows(source) for source in fitted], ignore_index=True)
    groups = {OF_FIT: rows, **grouped_rows(others, fitted)}
    figure = Figure(figsize=(PAGE, 3.5), layout="constrained")
    for panel, horizon in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        _draw_panel(panel, groups, horizon)
    shown = ", ".join(f"{groups[name]['run'].nunique()} {name}" for name in GROUPS if name in groups)
    caption(
        figure,
        "Points: measured, 90 % intervals (bootstrap over runs), in bins of the predicted probability; line: "
        f"as predicted. Runs: {shown}.",
    )
    return figure


def _draw_panel(panel: Axes, groups: dict[str, pd.DataFrame], horizon: int) -> None:
    panel.plot([0, 1], [0, 1], color="0.35", lw=0.8)
    for name, (colour, marker) in STYLE.items():
        found = calibration_rows(groups[name], horizon) if name in groups else []
        shown = [row for row in found if row["runs"] >= LEAST_RUNS]
        _draw_points(panel, shown, {"color": colour, "marker": marker, "label": name})
    panel.set_xlim(-0.02, 1.02)
    panel.set_ylim(-0.02, 1.02)
    panel.set_xlabel(f"predicted P(collapse within {horizon} steps)")
    panel.set_ylabel("share that collapsed")
    panel.set_title(f"within {horizon} steps")
    panel.grid(alpha=0.25)
    panel.legend(loc="upper left")


def _draw_points(panel: Axes, rows: Sequence[dict[str, float]], style: dict[str, str]) -> None:
    label: str | None = style["label"]
    for row in rows:
        ends = bars(row["value"], row["low"], row["high"])
        panel.errorbar(
            row["predicted"],
            row["value"],
            yerr=ends,
            ls="none",
            ms=3.8,
            capsize=1.8,
            **{**style, "label": label},
        )
        label = None
