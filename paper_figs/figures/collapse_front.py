"""The collapse front against tokens: the recursion as lines with a band, the simulation as points."""

import dataclasses

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from meanmode.paper_figs.shared.style import (
    COLOURS,
    FRONT_AXES,
    MARKERS,
    base_setting,
    check_axes,
    run_caption,
)
from meanmode.theory.meanfield.predicted_front import predict_front
from meanmode.theory.setting import Setting

CURVE_POINTS = 7


def draw(data: xr.Dataset) -> Figure:
    """One panel per merge; a line, its band of one standard deviation between seeds, and the measured means.

    Args:
        data: an unstacked `collapse_front` sweep.

    Raises:
        ValueError: a sweep over other axes.
    """
    check_axes(data, *FRONT_AXES)
    deepest = data.isel(depth=-1)
    merges = [str(merge) for merge in deepest["merge"].values]
    figure = Figure(figsize=(5.2 * len(merges), 5.2), layout="constrained")
    panels = figure.subplots(1, len(merges), sharey=True, squeeze=False)[0]
    for panel, merge in zip(panels, merges, strict=True):
        _draw_merge(panel, data, deepest.sel(merge=merge), merge)
    panels[0].set_ylabel("collapse front: block where TCS reaches 0.9")
    panels[0].set_ylim(bottom=0)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    figure.suptitle(
        f"Collapse front of untrained stacks ({run_caption(data)})\n"
        "line and band: mean-field recursion, mean and std between seeds; "
        "points: measured mean and its standard error",
        fontsize=9,
    )
    return figure


def _draw_merge(panel: Axes, data: xr.Dataset, selected: xr.Dataset, merge: str) -> None:
    depth = int(selected["depth"])
    combinations = [(w, c) for w in selected["weight_std"].values for c in selected["input_cosine"].values]
    censored = 0
    for style, (weight_std, cosine) in enumerate(combinations):
        fronts = selected["front"].sel(weight_std=weight_std, input_cosine=cosine)
        colour, marker = COLOURS[style % len(COLOURS)], MARKERS[style % len(MARKERS)]
        label = f"weight std {weight_std:g}, input cosine {cosine:g}"
        base = base_setting(
            data, merge=merge, weight_std=float(weight_std), input_cosine=float(cosine), depth=depth
        )
        _draw_curve(panel, base, fronts["tokens"].values, colour, f"theory, {label}")
        whole = fronts.notnull().all("seed")
        mean = fronts.mean("seed", skipna=False)
        error = fronts.std("seed", ddof=1, skipna=False) / np.sqrt(fronts.sizes["seed"])
        panel.errorbar(
            fronts["tokens"].values,
            mean,
            yerr=error,
            fmt=marker,
            color=colour,
            capsize=3,
            ms=6,
            label=f"measured, {label}",
        )
        for tokens in fronts["tokens"].values[~whole.values]:
            censored += int(fronts.sel(tokens=tokens).isnull().sum())
            panel.plot(tokens * 1.12**style, depth, marker=r"$\uparrow$", color=colour, ms=11, ls="none")
    panel.set_title(f"merge {merge}", fontsize=9)
    if censored:
        predicted = "a front" if selected["predicted_front"].notnull().any() else "no front"
        runs = f"{censored} of {selected['front'].size} runs have none"
        text = f"{predicted} is predicted;\n{runs}\nwithin {depth} blocks (arrows)"
        panel.text(0.5, 0.5, text, transform=panel.transAxes, ha="center", va="center", fontsize=9)
    panel.set_xscale("log", base=2)
    tokens = selected["tokens"].values
    panel.set_xticks(tokens, [str(value) for value in tokens])
    panel.set_xlabel("tokens T")
    panel.grid(alpha=0.25)


def _draw_curve(panel: Axes, base: Setting, tokens: np.ndarray, colour: str, label: str) -> None:
    """The predicted front through the token counts between the least and the largest."""
    base = dataclasses.replace(base, rope=False)  # the theory knows no positions, and the grid no squares
    grid = np.unique(np.geomspace(tokens.min(), tokens.max(), CURVE_POINTS).round().astype(int))
    predictions = [predict_front(dataclasses.replace(base, tokens=int(count))) for count in grid]
    shown = [(t, p.front, p.front_std) for t, p in zip(grid, predictions, strict=True) if p.front is not None]
    if not shown:
        panel.plot([], [], color=colour, label=label)
        return
    x, front, std = (np.array(column, float) for column in zip(*shown, strict=True))
    panel.plot(x, front, color=colour, label=label)
    panel.fill_between(x, front - std, front + std, color=colour, alpha=0.15, lw=0)
