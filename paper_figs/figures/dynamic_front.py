"""The front along training: measured, and predicted from what the current weights share."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from meanmode.paper_figs.shared.runs import caption
from meanmode.paper_figs.shared.style import COLOURS, PAGE


def draw(document: Mapping[str, Any]) -> Figure:
    """Front against step, one panel per run; where there is none within the network, no mark.

    Args:
        document: the JSON document of docs/results/front.md.

    Raises:
        ValueError: another document.
    """
    if "runs" not in document:
        raise ValueError("this figure draws the document that docs/results/front.md makes; it has no runs")
    runs = document["runs"]
    figure = Figure(figsize=(PAGE, 2.6), layout="constrained")
    panels = figure.subplots(1, len(runs), squeeze=False)[0]
    for panel, run in zip(panels, runs, strict=True):
        _draw_run(panel, run)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    said = "; ".join(
        f"{run['title']}: width {run['width']}, {run['depth']} blocks, {run['image_tokens']} + "
        f"{run['text_tokens']} tokens, batch {run['batch']}, {run['schedule']}"
        for run in runs
    )
    shown = "Points: measured on 128 fresh samples; line: predicted, std of what it leaves open. 1 seed each."
    caption(figure, f"{shown} {said}.")
    return figure


def _draw_run(panel: Axes, run: Mapping[str, Any]) -> None:
    measured = np.array([(row["step"], row["front"]) for row in run["measured"] if row["front"] is not None])
    panel.plot(*measured.T, "o", ms=2, color=COLOURS[1], mew=0, label="measured")
    found = [row for row in run["predicted"] if row["front"] is not None]
    steps, front, std = (np.array([row[name] for row in found]) for name in ("step", "front", "front_std"))
    panel.plot(steps, front, color=COLOURS[0], label="predicted from current weights")
    panel.fill_between(steps, front - std, front + std, color=COLOURS[0], alpha=0.2, lw=0)
    if not found:
        words = f"no front is predicted\nwithin {run['depth']} blocks"
        panel.text(0.5, 0.5, words, transform=panel.transAxes, ha="center")
    panel.set(xlabel="optimiser step", ylabel="front (block)", title=run["title"])
    panel.set_xlim(0, run["steps"])
    panel.set_ylim(run["depth"], 0)
    panel.grid(alpha=0.25)
