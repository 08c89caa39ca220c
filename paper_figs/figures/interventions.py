"""What moves the critical rate: interventions beside their controls, and stabilisers, over their baseline."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from meanmode.paper_figs.shared.runs import caption
from meanmode.paper_figs.shared.studies import Studies, short_sizes
from meanmode.paper_figs.shared.style import COLOURS, PAGE, plain_ticks
from meanmode.sweeps.studies.critical_rates import effects
from meanmode.sweeps.studies.run_sizes import span, study_sizes

INTERVENTIONS, STABILISERS, DEEP = "interventions", "stabilisers", "stabilisers_deep"


STUDIES = (INTERVENTIONS, STABILISERS, DEEP)


ACTING, CONTROL = COLOURS[1], "0.45"


ARROW = 1.25
"""Length of an arrow, as a ratio."""


Ratios = Mapping[str, Sequence[Mapping[str, Any]]]
"""Study -> the rows of its critical-rate ratios, one per case other than the baseline."""


def draw(studies: Studies) -> Figure:
    """Ratios of median critical rates over that of a study's baseline, with their intervals.

    Args:
        studies: some of `STUDIES`.
    """
    ratios = {
        name: [row for row in effects(data) if row["quantity"] == "critical_rate_ratio"]
        for name, data in studies.items()
    }
    left, right = ([name for name in names if name in studies] for names in (STUDIES[:1], STUDIES[1:]))
    columns = [names for names in (left, right) if names]
    figure = Figure(figsize=(PAGE, 3.6), layout="constrained")
    panels = figure.subplots(1, len(columns), squeeze=False)[0]
    for panel, names in zip(panels, columns, strict=True):
        _draw_forest(panel, names, ratios)
        _name_kinds(panel, names, studies)
    handles = [line for panel in panels for line in panel.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    caption(
        figure,
        "Measured: ratios of medians with 90 % intervals over paired seeds; arrows: no collapse, or an "
        f"open interval. {short_sizes(studies)}",
    )
    return figure


def _draw_forest(panel: Axes, names: Sequence[str], ratios: Ratios) -> None:
    labels = list(dict.fromkeys(row["case"] for name in names for row in ratios[name]))
    for name in names:
        shift = 0.15 * (2 * names.index(name) - 1) if len(names) > 1 else 0.0
        for row in ratios[name]:
            control = row["case"].startswith("control")
            _draw_ratio(
                panel,
                labels.index(row["case"]) + shift,
                row,
                colour=CONTROL if control else ACTING if name == INTERVENTIONS else COLOURS[0],
                filled=name != DEEP and not control,
            )
    panel.axvline(1.0, color="0.35", lw=0.8)
    panel.set_xscale("log")
    plain_ticks(panel.xaxis)
    panel.set_yticks(range(len(labels)), [_indented(label) for label in labels])
    panel.set_ylim(len(labels) - 0.4, -0.6)
    panel.set_xlabel("critical rate / baseline's")
    panel.set_ylabel("intervention" if INTERVENTIONS in names else "stabiliser")
    panel.grid(axis="x", alpha=0.25, which="both")


def _name_kinds(panel: Axes, names: Sequence[str], studies: Studies) -> None:
    kinds = [(ACTING, True, "intervention"), (CONTROL, False, "its norm-matched control")]
    if INTERVENTIONS not in names:
        depths = {name: span(study_sizes(studies[name])["depth"]) for name in names}
        kinds = [(COLOURS[0], name != DEEP, f"{depth} blocks") for name, depth in depths.items()]
    for colour, filled, label in kinds:
        panel.plot([], [], "o", color=colour, mfc=colour if filled else "white", label=label)


def _draw_ratio(panel: Axes, y: float, row: Mapping[str, Any], *, colour: str, filled: bool) -> None:
    """A point with its interval, as an arrow where that has no upper end; an arrow from a lower bound."""
    known = row["measured"] is not None
    start = row["measured"] if known else row["measured_at_least"]
    if not start:
        return
    low, high = row["measured_low"], row["measured_high"]
    if low is not None:
        panel.plot([low, start], [y, y], color=colour, lw=1)
    if high is not None:
        panel.plot([start, high], [y, y], color=colour, lw=1)
    elif low is not None:
        ends = {"xytext": (start, y), "xy": (start * ARROW, y)}
        panel.annotate("", **ends, arrowprops={"arrowstyle": "->", "color": colour, "lw": 1})
        panel.plot(start * ARROW, y, alpha=0)  # a panel's limits do not include annotations
    marker = "o" if known else "|"
    panel.plot(start, y, marker, color=colour, mfc=colour if filled else "white", ms=3.8, zorder=4)


def _indented(label: str) -> str:
    return f"{label}   " if label.startswith("control") else label
