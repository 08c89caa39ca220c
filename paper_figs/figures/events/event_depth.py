"""The event by depth: plain merges beside MV-Split, from the same healthy state."""

# N steps, W writers

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from meanmode.paper_figs.shared.runs import caption
from meanmode.paper_figs.shared.studies import short_sizes
from meanmode.paper_figs.shared.style import COLOURS, PAGE
from meanmode.sweeps.studies.events.event_curves import quartiles, since_jump, split_merges
from meanmode.sweeps.studies.events.event_rules import event_rows
from meanmode.sweeps.studies.events.event_summaries import collapsed

STUDIES = ("event_depth", "event_depth_400_slower")


MERGES = {False: ("plain", COLOURS[1], "o", True), True: ("MV-Split", COLOURS[0], "^", False)}
"""Whether merges are MV-Split -> label, colour, marker, and whether markers are filled."""


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Runs of one depth and merge.

    Attributes:
        data: the study that they are of.
        rows: the runs, with their cells as index.
    """

    data: xr.Dataset
    rows: pd.DataFrame


def draw(studies: Mapping[str, xr.Dataset]) -> Figure:
    """Growth of G_mean and loss since the jump; one column per depth.

    Args:
        studies: some of `STUDIES`.
    """
    depths: dict[int, dict[bool, Runs]] = {}
    for data in studies.values():
        rows, split = event_rows(data), split_merges(data)
        for case, of in rows.groupby("case", sort=False):
            depth = int(of["depth"].iloc[0])
            depths.setdefault(depth, {})[split[str(case)]] = Runs(data=data, rows=of)
    figure = Figure(figsize=(PAGE, 3.8), layout="constrained")
    panels = figure.subplots(2, len(depths), squeeze=False, sharex=True, sharey="row")
    for column, depth in zip(panels.T, sorted(depths), strict=True):
        for merge in sorted(depths[depth]):
            _draw_runs(*column, depths[depth][merge], merge)
        _finish(*column, depths[depth])
        column[0].set_title(f"{depth} blocks\n{_collapsed(depths[depth])}", fontsize=6.5)
    panels[0, 0].set_ylabel("factor of G_mean")
    panels[1, 0].set_ylabel("loss")
    panels[0, 0].set_yscale("log")
    panels[1, 0].set_ylim(bottom=0)
    _legend(figure)
    caption(
        figure,
        "Measured: medians over runs, bands: quartiles; titles: how many collapsed. The rate jumps at step 0 "
        f"(dashed), from one healthy state. {short_sizes(studies)}",
    )
    return figure


def _draw_runs(upper: Axes, lower: Axes, runs: Runs, split: bool) -> None:
    """Medians and quartiles of growth and loss."""
    curves = since_jump(runs.data, runs.rows.index.tolist())
    _, colour, marker, filled = MERGES[split]
    growth = np.exp(np.log(curves["g_mean_all"]).mean("writer", skipna=False))
    for panel, values in ((upper, growth), (lower, curves["loss"])):
        low, middle, high = quartiles(values).values
        x = values["since_jump"].values
        panel.fill_between(x, low, high, color=colour, alpha=0.2, lw=0)
        panel.plot(x, middle, marker, ms=2.6, color=colour, mfc=colour if filled else "none", mew=0.7)


def _finish(upper: Axes, lower: Axes, merges: Mapping[bool, Runs]) -> None:
    """The jump and the initial level of the loss."""
    for panel in (upper, lower):
        panel.axvline(0, color="0.35", ls="--", lw=0.8)
        panel.grid(alpha=0.25)
    level = np.median([runs.rows["initial_loss"].median() for runs in merges.values()])
    lower.axhline(level, color="0.35", lw=0.8)
    lower.set_xlabel("steps after the jump")


def _collapsed(merges: Mapping[bool, Runs]) -> str:
    """How many runs collapsed, by merge."""
    return ", ".join(
        f"{MERGES[split][0]} {int(collapsed(runs.rows).sum())} of {len(runs.rows)}"
        for split, runs in sorted(merges.items())
    )


def _legend(figure: Figure) -> None:
    handles = [
        Line2D([], [], ls="", marker=marker, color=colour, mfc=colour if filled else "none", label=label)
        for label, colour, marker, filled in MERGES.values()
    ]
    handles.append(Line2D([], [], color="0.35", lw=0.8, label="initial level of the loss"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
