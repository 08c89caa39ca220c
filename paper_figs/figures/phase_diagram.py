"""The phase diagram of untrained stacks: where all inputs collapse, where some, where none."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from meanmode.paper_figs.shared.runs import caption
from meanmode.paper_figs.shared.studies import Studies
from meanmode.paper_figs.shared.style import COLOURS, PAGE
from meanmode.sweeps.studies.fronts import sweep_rows
from meanmode.theory.meanfield.phase_diagram import BlockMap
from meanmode.theory.setting import Setting

STUDIES, BESIDE = ("front_settings", "front_settings_large"), ("collapse_front",)


SCALES = np.linspace(0.3, 1.6, 40)
"""Weight std times sqrt(width) at which the theory is evaluated."""


RATIOS = np.arange(1, 10.1, 0.25)
"""FFN ratios at which it is evaluated."""


WIDE = 8.0
"""FFN ratio of the second panel."""


Rows = Sequence[Mapping[str, Any]]


def draw(studies: Studies) -> Figure:
    """Phases over weight scale and FFN ratio, and the threshold of the input cosine, with measured stacks.

    Args:
        studies: some of `STUDIES` and `BESIDE`; only stacks with the plain merge are drawn.
    """
    rows = [
        {**row, "scale": row["weight_std"] * row["width"] ** 0.5}
        for data in studies.values()
        for row in sweep_rows(data)
        if row["merge"] == "plain" and "n_collapsed" in row
    ]
    figure = Figure(figsize=(PAGE, 3.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    thresholds = np.array([[_threshold(scale, ratio) for scale in SCALES] for ratio in RATIOS])
    _draw_phases(left, thresholds)
    line = np.array([_threshold(scale, WIDE) for scale in SCALES])
    right.plot(SCALES, np.where(np.isfinite(line), line, np.nan), color="black", label="threshold, theory")
    right.fill_between(SCALES, np.minimum(line, 1), 1, color="0.85", lw=0, label="collapse predicted")
    right.set(ylabel="input cosine", ylim=(-0.05, 1), title=f"FFN ratio {WIDE:g}")
    _draw_stacks(left, rows, "ffn_ratio")
    _draw_stacks(right, [row for row in rows if row["ffn_ratio"] == WIDE], "input_cosine")
    for panel in (left, right):
        panel.set_xlabel("weight std times sqrt(width)")
        panel.set_xlim(SCALES[0], SCALES[-1])
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    stacks = sum(row["n"] for row in rows)
    caption(
        figure,
        "Untrained stacks, plain merge. Lines and areas: the block map for infinitely many tokens and "
        f"features. Points: {len(rows)} measured settings, {stacks} stacks, 16 to 1024 tokens.",
    )
    return figure


def _threshold(scale: float, ratio: float) -> float:
    return BlockMap(Setting(weight_std=float(scale) / 16, ffn_ratio=float(ratio))).threshold()


def _draw_phases(panel: Axes, thresholds: np.ndarray) -> None:
    """Areas of the phases: every input collapses, only inputs above a threshold, none."""
    phase = np.where(np.isinf(thresholds), 2, np.where(thresholds > 0, 1, 0))
    levels = (-0.5, 0.5, 1.5, 2.5)
    panel.contourf(SCALES, RATIOS, phase, levels=levels, colors=("0.85", "0.93", "white"))
    panel.contour(SCALES, RATIOS, phase, levels=levels[1:3], colors="black", linewidths=0.8)
    for words, place in (("every input collapses", (0.85, 2)), ("none", (0.72, 9.2)), ("some", (1.2, 8.8))):
        panel.annotate(words, place, ha="center", va="center")
    panel.set(ylabel="FFN ratio", title="all input cosines")


def _draw_stacks(panel: Axes, rows: Rows, name: str) -> None:
    """Measured settings: filled where most stacks collapsed, open where most did not."""
    styles = ((False, "white", 5.5, "most did not"), (True, COLOURS[1], 3, "most stacks collapsed"))
    for fell, face, size, label in styles:
        of = [row for row in rows if (2 * row["n_collapsed"] > row["n"]) is fell]
        x, y = [row["scale"] for row in of], [row[name] for row in of]
        panel.plot(x, y, "o", color=COLOURS[1], mfc=face, ms=size, label=label, zorder=4)
