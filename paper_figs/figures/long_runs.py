"""MV-Split for ten times as long as its plain twin lasts (the paper's App. K): loss, gradient norm, TCS."""

# N steps, L blocks

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from meanmode.paper_figs.shared.runs import MERGES, caption, needs
from meanmode.paper_figs.shared.style import COLOURS, PAGE, plain_ticks
from meanmode.sweeps.studies.around_onset import deep_series
from meanmode.sweeps.studies.merge_ratios import LOSS_WINDOW, running_median
from meanmode.sweeps.studies.run_sizes import run_config, span
from meanmode.theory.meanfield.front import FRONT_COSINE

EVERY = 10
"""Steps from one point of the loss and the gradient norm to the next."""


STYLES = {"plain": (COLOURS[1], "o"), "mv_split": (COLOURS[0], "^")}


def draw(*runs: xr.Dataset) -> Figure:
    """Running medians of loss and gradient norm, and the deep median of TCS; one row per depth.

    Args:
        runs: runs of plain and MV-Split merges.

    Raises:
        ValueError: a run of another merge, or one without these observables.
    """
    depths = sorted({run_config(run).model.depth for run in runs})
    figure = Figure(figsize=(PAGE, 0.9 + 1.6 * len(depths)), layout="constrained")
    panels = figure.subplots(len(depths), 3, squeeze=False, sharex="row")
    for run in runs:
        needs(run, "loss", "grad_norm", "tcs")
        model = run_config(run).model
        if model.merge not in STYLES:
            raise ValueError(f"this figure draws plain and MV-Split runs, got merge {model.merge!r}")
        _draw_run(panels[depths.index(model.depth)], run, model.merge)
    for row, depth in zip(panels, depths, strict=True):
        for panel, label in zip(row, ("loss", "gradient norm", "TCS, deep median"), strict=True):
            panel.set_ylabel(label)
            panel.grid(alpha=0.25)
            panel.set_xlim(left=0)
            panel.set_title(f"{depth} blocks")
        row[1].set_yscale("log")
        plain_ticks(row[1].yaxis)
        row[2].axhline(FRONT_COSINE, color="0.35", lw=0.8, ls=":")
        row[2].set_ylim(-0.08, 1.05)
    for panel in panels[-1]:
        panel.set_xlabel("optimiser step")
    found = dict(zip(*reversed(panels[0, 0].get_legend_handles_labels()), strict=True))
    figure.legend(found.values(), found.keys(), loc="outside upper center", ncols=len(found))
    model, training = run_config(runs[0]).model, run_config(runs[0]).training
    caption(
        figure,
        f"Measured, one run each, ramps that are held at the end; running medians of {LOSS_WINDOW} steps; "
        f"dotted: TCS = {FRONT_COSINE:g}. Width {model.width}, {span(depths)} blocks, "
        f"{model.image_tokens} + {model.text_tokens} tokens, batch {training.batch}, 1 seed.",
    )
    return figure


def _draw_run(row: list[Axes], run: xr.Dataset, merge: str) -> None:
    colour, marker = STYLES[merge]
    style = {"ms": 2.2, "color": colour, "ls": "none", "marker": marker, "mew": 0, "label": MERGES[merge]}
    for panel, name in zip(row, ("loss", "grad_norm"), strict=False):
        smooth = running_median(run[name]).isel(step=slice(None, None, EVERY))
        panel.plot(smooth["step"], smooth, **style)
    cosine = deep_series(run, "tcs")
    row[2].plot(cosine["step"], cosine, **style)
