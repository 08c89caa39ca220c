"""The collapse front against tokens: the recursion as lines with a band, the simulation as points."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from meanmode.paper_figs.shared.runs import caption
from meanmode.paper_figs.shared.style import (
    COLOURS,
    DASHES,
    FRONT_AXES,
    MARKERS,
    PAGE,
    base_setting,
    check_axes,
    run_caption,
)
from meanmode.sweeps.studies.fronts import sweep_rows
from meanmode.theory.meanfield.front import FRONT_COSINE
from meanmode.theory.meanfield.predicted_front import predict_front
from meanmode.theory.setting import Setting

CURVE_POINTS = 7
"""Token counts at which the predicted curve is computed."""


Rows = Sequence[Mapping[str, Any]]
"""Predicted and measured fronts, one row per setting (`meanmode.sweeps.studies.fronts.sweep_rows`)."""


def draw(data: xr.Dataset) -> Figure:
    """One panel per merge: predicted mean and std between seeds as line and band, measured means as points.

    Args:
        data: a `collapse_front` sweep, along `cell`.

    Raises:
        ValueError: a sweep over other axes.
    """
    check_axes(data, *FRONT_AXES)
    depth = int(data["depth"].max())
    deepest = [row for row in sweep_rows(data) if row["depth"] == depth and "n_collapsed" in row]
    merges = list(dict.fromkeys(row["merge"] for row in deepest))
    figure = Figure(figsize=(PAGE, 3.1), layout="constrained")
    panels = figure.subplots(1, len(merges), sharey=True, squeeze=False)[0]
    for panel, merge in zip(panels, merges, strict=True):
        _draw_merge(panel, data, [row for row in deepest if row["merge"] == merge])
    panels[0].set_ylabel(f"front: block where TCS reaches {FRONT_COSINE:g}")
    panels[0].set_ylim(bottom=0)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4)
    caption(
        figure,
        "Untrained stacks. Lines and bands: mean-field recursion, mean and std between seeds; points: "
        f"measured mean and its standard error. {run_caption(data)}.",
    )
    return figure


def _draw_merge(panel: Axes, data: xr.Dataset, rows: Rows) -> None:
    merge, depth = rows[0]["merge"], rows[0]["depth"]
    combinations = list(dict.fromkeys((row["weight_std"], row["input_cosine"]) for row in rows))
    for style, (weight_std, cosine) in enumerate(combinations):
        here = [row for row in rows if (row["weight_std"], row["input_cosine"]) == (weight_std, cosine)]
        colour, marker = COLOURS[style % len(COLOURS)], MARKERS[style % len(MARKERS)]
        label = f"weight std {weight_std:g}, input cosine {cosine:g}"
        fields = {"merge": merge, "weight_std": weight_std, "input_cosine": cosine, "depth": depth}
        tokens = np.array([row["tokens"] for row in here])
        line = {"color": colour, "ls": DASHES[style % len(DASHES)]}
        _draw_curve(panel, base_setting(data, **fields), tokens, line)
        whole = [row for row in here if row["n_collapsed"] == row["n"]]
        panel.errorbar(
            [row["tokens"] for row in whole],
            [row["measured"] for row in whole],
            yerr=[row["measured_sem"] or 0 for row in whole],
            fmt=marker,
            color=colour,
            capsize=1.8,
            ms=3.8,
            label=label,
        )
        for row in here:
            if row["n_collapsed"] < row["n"]:
                x = row["tokens"] * 1.12**style
                panel.plot(x, depth, marker=r"$\uparrow$", color=colour, ms=7, ls="none")
    panel.set_title(f"merge {merge}")
    _say_censored(panel, rows)
    tokens = sorted({row["tokens"] for row in rows})
    panel.set_xscale("log", base=2)
    panel.set_xticks(tokens, [str(value) for value in tokens])
    panel.set_xlabel("tokens T")
    panel.grid(alpha=0.25)


def _say_censored(panel: Axes, rows: Rows) -> None:
    """How many runs have no front within the depth, if any, and whether the theory predicts one."""
    collapsed, runs = (sum(row[column] for row in rows) for column in ("n_collapsed", "n"))
    if collapsed < runs:
        predicted = "a front" if any(row["predicted"] is not None for row in rows) else "no front"
        counts = f"{runs - collapsed} of {runs} runs have none"
        text = f"{predicted} is predicted;\n{counts}\nwithin {rows[0]['depth']} blocks (arrows)"
        panel.text(0.5, 0.5, text, transform=panel.transAxes, ha="center", va="center")


def _draw_curve(panel: Axes, base: Setting, tokens: np.ndarray, line: dict[str, Any]) -> None:
    """The predicted front for token counts from the smallest to the largest."""
    base = dataclasses.replace(
        base, rope=False
    )  # the theory has no positions, and the token counts are not squares
    grid = np.unique(np.geomspace(tokens.min(), tokens.max(), CURVE_POINTS).round().astype(int))
    predictions = [predict_front(dataclasses.replace(base, tokens=int(count))) for count in grid]
    shown = [(t, p.front, p.front_std) for t, p in zip(grid, predictions, strict=True) if p.front is not None]
    if not shown:
        return
    x, front, std = (np.array(column, float) for column in zip(*shown, strict=True))
    panel.plot(x, front, **line)
    panel.fill_between(x, front - std, front + std, color=line["color"], alpha=0.15, lw=0)
