"""What moves the critical rate: interventions beside their controls, and stabilisers, over their baseline."""

import json
from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from meanmode.paper_figs.shared.runs import caption
from meanmode.paper_figs.shared.studies import Studies, cases, sizes_of
from meanmode.paper_figs.shared.style import COLOURS
from meanmode.sweeps.statistics.censoring import Estimate, estimated, estimated_ratio

INTERVENTIONS, STABILISERS, DEEP = "interventions", "stabilisers", "stabilisers_deep"


STUDIES = (INTERVENTIONS, STABILISERS, DEEP)


ACTING, CONTROL = COLOURS[1], "0.45"


ARROW = 1.25
"""Length of an arrow, as a ratio."""


def draw(studies: Studies) -> Figure:
    """Ratios of median critical rates over that of the first case of a study, with their intervals.

    Args:
        studies: some of `STUDIES`.
    """
    left, right = ([name for name in names if name in studies] for names in (STUDIES[:1], STUDIES[1:]))
    columns = [names for names in (left, right) if names]
    figure = Figure(figsize=(7.2 * max(len(columns), 1.4), 6.6), layout="constrained")
    panels = figure.subplots(1, len(columns), squeeze=False)[0]
    for panel, names in zip(panels, columns, strict=True):
        _draw_forest(panel, names, studies)
    figure.suptitle(
        "Critical rate over that of the baseline: ratio of medians, 90 % interval over paired seeds\n"
        "arrows: no collapse, or an interval that is open above",
        fontsize=10,
    )
    caption(figure, *(_said(name, studies) for name in studies))
    return figure


def _draw_forest(panel: Axes, names: Sequence[str], studies: Studies) -> None:
    labels = list(dict.fromkeys(case.label for name in names for case in cases(studies[name])[1:]))
    for name in names:
        baseline, *others = cases(studies[name])
        shift = 0.15 * (2 * names.index(name) - 1) if len(names) > 1 else 0.0
        for case in others:
            control = case.label.startswith("control")
            _draw_ratio(
                panel,
                labels.index(case.label) + shift,
                estimated_ratio(case.rates, baseline.rates),
                colour=CONTROL if control else ACTING if name == INTERVENTIONS else COLOURS[0],
                filled=name != DEEP and not control,
            )
    panel.axvline(1.0, color="0.35", lw=1)
    panel.set_xscale("log")
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_formatter("{x:g}")
    panel.tick_params(axis="x", which="both", labelsize=8)
    panel.set_yticks(range(len(labels)), [_indented(label) for label in labels], fontsize=8)
    panel.set_ylim(len(labels) - 0.4, -0.6)
    panel.set_xlabel("critical rate / critical rate of the baseline")
    panel.set_ylabel("intervention" if INTERVENTIONS in names else "stabiliser")
    panel.grid(axis="x", alpha=0.25, which="both")
    kinds = [(ACTING, True, "intervention"), (CONTROL, False, "its norm-matched control")]
    if INTERVENTIONS not in names:
        kinds = [(COLOURS[0], name != DEEP, f"{_depth(studies[name])} blocks") for name in names]
    for colour, filled, label in kinds:
        panel.plot([], [], "o", color=colour, mfc=colour if filled else "white", label=label)
    panel.legend(fontsize=8, frameon=False)


def _draw_ratio(panel: Axes, y: float, found: Estimate, *, colour: str, filled: bool) -> None:
    """A point with its interval, which is an arrow where it is open; an arrow from the bound of a ratio."""
    face = colour if filled else "white"
    known = np.isfinite(found.value)
    start = found.value if known else found.at_least
    if not start > 0:
        return
    if np.isfinite(found.low):
        panel.plot([found.low, start], [y, y], color=colour, lw=1.4)
    if np.isfinite(found.high):
        panel.plot([start, found.high], [y, y], color=colour, lw=1.4)
    elif np.isfinite(found.low):
        ends = {"xytext": (start, y), "xy": (start * ARROW, y)}
        panel.annotate("", **ends, arrowprops={"arrowstyle": "->", "color": colour, "lw": 1.4})
        panel.plot(start * ARROW, y, alpha=0)  # an annotation is not in the limits of a panel
    panel.plot(start, y, "o" if known else "|", color=colour, mfc=face, ms=6, zorder=4)


def _indented(label: str) -> str:
    return f"{label}   " if label.startswith("control") else label


def _depth(data: xr.Dataset) -> int:
    """Blocks of a study's baseline."""
    if "depth" in data.coords:
        return int(data["depth"].values[0])
    return int(json.loads(data.attrs["configuration"])["base"]["model"]["depth"])


def _said(name: str, studies: Studies) -> str:
    """Sizes of a study, its baseline, and how many runs of other cases collapsed."""
    data = studies[name]
    baseline = cases(data)[0]
    found = estimated(baseline.rates)
    middle = f"{found.value:.4g} ({found.low:.4g} to {found.high:.4g})"
    rate = middle if np.isfinite(found.value) else f"above {found.at_least:.4g}"
    collapsed = int(data["critical_rate"].notnull().sum())
    return (
        f"{name}: {sizes_of(data)}; baseline '{baseline.label}', median critical rate {rate}; {collapsed} of "
        f"{data.sizes['cell']} runs collapsed. Measured here; nothing is fitted or predicted."
    )
