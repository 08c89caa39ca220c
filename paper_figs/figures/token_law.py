"""The amplification of a writer's gradient against tokens: prediction as lines, measurement as points."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from meanmode.paper_figs.shared.runs import caption
from meanmode.paper_figs.shared.style import (
    COLOURS,
    DASHES,
    MARKERS,
    PAGE,
    check_axes,
    plain_ticks,
    run_caption,
)
from meanmode.sim.store.sweep_store import unstacked
from meanmode.sweeps.studies.profiles import seed_statistics
from meanmode.sweeps.studies.token_exponents import BLOCKS_FROM_LOSS

SHOWN_POINTS = 12
"""Measured blocks that are drawn, at least."""


def draw(data: xr.Dataset) -> Figure:
    """A - 1 of the attention writer against T, near and far from the loss, and A through depth.

    Args:
        data: a `token_law` sweep, along `cell`.

    Raises:
        ValueError: a sweep over other axes.
    """
    check_axes(data, "tokens", "adjoint_cosine", "seed")
    grid = unstacked(data)
    figure = Figure(figsize=(PAGE, 2.6), layout="constrained")
    panels = figure.subplots(1, 3)
    for panel, distance in zip(panels, BLOCKS_FROM_LOSS, strict=False):
        block = max(1, grid.sizes["block"] - distance)
        _draw_tokens(panel, grid.sel(writer="attn").isel(block=block))
        above = distance - 1
        panel.set_title(f"{above} block{'s' * (above > 1)} above the loss")
    _draw_depth(panels[2], grid.isel(tokens=-1).sel(writer="attn"))
    panels[2].set_title(f"T = {int(grid['tokens'][-1])}")
    panels[0].legend()
    caption(
        figure,
        "At initialisation. Lines: backward mean-field recursion; points: measured mean and its "
        f"standard error. {run_caption(data)}.",
    )
    return figure


def _draw_tokens(panel: Axes, here: xr.Dataset) -> None:
    tokens = here["tokens"].values
    for style, cosine in enumerate(here["adjoint_cosine"].values):
        part = here.sel(adjoint_cosine=cosine)
        label = f"adjoint cosine {cosine:g}"
        panel.plot(
            tokens, part["predicted_amplification"].isel(seed=0) - 1, color=COLOURS[style], ls=DASHES[style]
        )
        _points(panel, tokens, part["amplification"] - 1, style, label)
    panel.set_xscale("log", base=2)
    panel.set_xticks(tokens, [str(value) for value in tokens])
    panel.set_yscale("log")
    plain_ticks(panel.yaxis)
    panel.set_xlabel("tokens T")
    panel.set_ylabel("A - 1 of the attention writer")
    panel.grid(alpha=0.25)


def _draw_depth(panel: Axes, here: xr.Dataset) -> None:
    blocks = here["block"].values
    for style, cosine in enumerate(here["adjoint_cosine"].values):
        part = here.sel(adjoint_cosine=cosine)
        panel.plot(
            blocks, part["predicted_amplification"].isel(seed=0), color=COLOURS[style], ls=DASHES[style]
        )
        some = slice(1, None, max(1, len(blocks) // SHOWN_POINTS))
        _points(panel, blocks[some], part["amplification"].isel(block=some), style)
    panel.set_yscale("log")
    panel.set_xlabel("block")
    panel.set_ylabel("A of the attention writer")
    panel.grid(alpha=0.25)


def _points(panel: Axes, x: np.ndarray, samples: xr.DataArray, style: int, label: str | None = None) -> None:
    found = seed_statistics(samples)
    line = {"fmt": MARKERS[style], "color": COLOURS[style], "ms": 3.2, "capsize": 1.2, "ls": "none"}
    panel.errorbar(x, found["mean"].values, yerr=found["error"].values, label=label, **line)
