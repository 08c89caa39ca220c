"""TCS and amplification of inputs with structure, block by block: theory as lines, measurement as points."""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from meanmode.paper_figs.shared.runs import caption
from meanmode.paper_figs.shared.style import (
    COLOURS,
    DASHES,
    MARKERS,
    PAGE,
    base_setting,
    plain_ticks,
    run_caption,
)
from meanmode.theory.setting import INPUTS


def draw(data: xr.Dataset) -> Figure:
    """TCS of the tokens, and A of both writers, of the sweep's first setting with every input.

    Args:
        data: a `structured_gradients` sweep, a list of cases along `cell`.

    Raises:
        ValueError: a sweep that does not vary its input, or without a backward pass.
    """
    if data.attrs.get("grid", True) or "input" not in data.coords or "amplification" not in data:
        raise ValueError(
            "this figure draws `structured_gradients`, a list of cases that differ in their input"
        )
    figure = Figure(figsize=(PAGE, 2.5), layout="constrained")
    panels = figure.subplots(1, 3)
    for style, name in enumerate(INPUTS):
        first = int(np.flatnonzero(data["input"].values == name)[0])
        seeds = len(np.unique(data["seed"].values))
        cells = data.isel(cell=slice(first, first + seeds))
        depth = int(cells["depth"].values[0])
        sides = [("tcs", "predicted_tcs", 0, cells)]
        for writer in range(2):
            sides.append(("amplification", "predicted_amplification", 1, cells.isel(writer=writer)))
        for panel, (measured, predicted, start, of) in zip(panels, sides, strict=True):
            blocks = np.arange(start, depth + 1)
            panel.plot(
                blocks, of[predicted].values[0, start : depth + 1], color=COLOURS[style], ls=DASHES[style]
            )
            some = blocks[:: max(1, depth // 9)]
            values = of[measured].values[:, some]
            panel.errorbar(
                some,
                values.mean(0),
                yerr=values.std(0, ddof=1) / seeds**0.5,
                fmt=MARKERS[style],
                color=COLOURS[style],
                label=name,
            )
    for panel, words in zip(panels, ("TCS", "A of the attention writer", "A of the FFN writer"), strict=True):
        panel.set(xlabel="block", ylabel=words)
        panel.grid(alpha=0.25)
    for panel in panels[1:]:
        panel.set_yscale("log")
        plain_ticks(panel.yaxis)
    panels[0].legend(loc="lower right")
    base = base_setting(data)
    caption(
        figure,
        f"Untrained stacks, {base.tokens} tokens, adjoint cosine {base.adjoint_cosine:g}. Lines: Gram "
        f"recursion (one cosine for gaussian); points: mean and standard error. {run_caption(data)}.",
    )
    return figure
