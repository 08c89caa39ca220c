"""The amplification of a writer's gradient against tokens: prediction as lines, measurement as points."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from meanmode.paper_figs.shared.style import COLOURS, MARKERS, check_axes, run_caption

REGIMES = ((2, "1 block above the loss"), (24, "23 blocks above the loss"))


def draw(data: xr.Dataset) -> Figure:
    """A - 1 of the attention writer against T, near and far from the loss, and A through depth.

    Args:
        data: an unstacked `token_law` sweep.

    Raises:
        ValueError: a sweep over other axes.
    """
    check_axes(data, "tokens", "adjoint_cosine", "seed")
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    panels = figure.subplots(1, 3)
    for panel, (distance, label) in zip(panels, REGIMES, strict=False):
        block = max(1, data.sizes["block"] - distance)
        _draw_tokens(panel, data.sel(writer="attn").isel(block=block))
        panel.set_title(f"attention writer, {label}", fontsize=9)
    _draw_depth(panels[2], data.isel(tokens=-1).sel(writer="attn"))
    panels[2].set_title(f"attention writer, T = {int(data['tokens'][-1])}", fontsize=9)
    panels[0].legend(fontsize=8, frameon=False)
    figure.suptitle(
        f"Amplification A of the writer gradient at initialisation ({run_caption(data)})\n"
        "lines: backward mean-field recursion; points: measured mean and its standard error",
        fontsize=9,
    )
    return figure


def _draw_tokens(panel: Axes, here: xr.Dataset) -> None:
    tokens = here["tokens"].values
    for style, cosine in enumerate(here["adjoint_cosine"].values):
        part = here.sel(adjoint_cosine=cosine)
        label = f"adjoint cosine {cosine:g}"
        panel.plot(
            tokens, part["predicted_amplification"].isel(seed=0) - 1, color=COLOURS[style], label=label
        )
        _points(panel, tokens, part["amplification"] - 1, style)
    panel.set_xscale("log", base=2)
    panel.set_xticks(tokens, [str(value) for value in tokens])
    panel.set_yscale("log")
    panel.set_xlabel("tokens T")
    panel.set_ylabel("A - 1")
    panel.grid(alpha=0.25)


def _draw_depth(panel: Axes, here: xr.Dataset) -> None:
    blocks = here["block"].values
    for style, cosine in enumerate(here["adjoint_cosine"].values):
        part = here.sel(adjoint_cosine=cosine)
        panel.plot(blocks, part["predicted_amplification"].isel(seed=0), color=COLOURS[style])
        some = slice(1, None, max(1, len(blocks) // 12))
        _points(panel, blocks[some], part["amplification"].isel(block=some), style)
    panel.set_yscale("log")
    panel.set_xlabel("block")
    panel.set_ylabel("A")
    panel.grid(alpha=0.25)


def _points(panel: Axes, x: np.ndarray, samples: xr.DataArray, style: int) -> None:
    mean = samples.mean("seed").values
    error = samples.std("seed", ddof=1).values / np.sqrt(samples.sizes["seed"])
    panel.errorbar(x, mean, yerr=error, fmt=MARKERS[style], color=COLOURS[style], ms=5, capsize=2, ls="none")
