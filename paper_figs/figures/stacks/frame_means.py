"""MV-Split of a video: token cosines of all tokens and within frames, with one global mean or frame means."""

import json

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from meanmode.paper_figs.shared.runs import caption
from meanmode.paper_figs.shared.style import COLOURS, MARKERS, PAGE, base_setting
from meanmode.theory.meanfield.front import FRONT_COSINE

SHOWN_POINTS = 10
"""Blocks at which points are drawn, at least."""


def draw(data: xr.Dataset) -> Figure:
    """One panel per pair of gains: TCS through depth, predicted and measured, by the means of the merge.

    Args:
        data: a `frame_means` sweep, along `cell`.

    Raises:
        ValueError: a sweep without frame means.
    """
    if "frame_means" not in json.loads(data.attrs["axes"]) or "tcs_frame" not in data:
        raise ValueError("this figure draws sweeps over frame_means; the store does not vary it")
    split = data["merge"].values == "mv_split"
    gains = list(dict.fromkeys(zip(data["alpha"].values[split], data["beta"].values[split], strict=True)))
    figure = Figure(figsize=(PAGE, 2.6), layout="constrained")
    panels = figure.subplots(1, len(gains), sharey=True, squeeze=False)[0]
    for panel, (alpha, beta) in zip(panels, gains, strict=True):
        here = split & (data["alpha"].values == alpha) & (data["beta"].values == beta)
        for style, (framed, label) in enumerate(((False, "global mean"), (True, "frame means"))):
            _draw_merge(
                panel,
                data.isel(cell=np.flatnonzero(here & (data["frame_means"].values == framed))),
                style,
                label,
            )
        panel.axhline(FRONT_COSINE, color="0.5", ls=":", lw=0.8)
        panel.set(xlabel="block", title=f"alpha {alpha:g}, beta {beta:g}")
        panel.grid(alpha=0.25)
    panels[0].set_ylabel("TCS")
    panels[0].legend(loc="upper right")
    base = base_setting(data)
    sizes = f"Width {base.width}, {base.heads} heads, {base.tokens} tokens, {base.frames} frames, batch 1"
    caption(
        figure,
        "Video at initialisation. Lines: Gram recursion, all tokens; filled points: measured, all tokens; "
        f"open points: within frames. {sizes}, {len(np.unique(data['seed'].values))} seeds.",
    )
    return figure


def _draw_merge(panel: Axes, cells: xr.Dataset, style: int, label: str) -> None:
    depth = int(np.isfinite(cells["tcs"].values).all(0).sum()) - 1
    blocks, colour = np.arange(depth + 1), COLOURS[style]
    panel.plot(blocks, cells["predicted_tcs"].values[0, : depth + 1], color=colour)
    some = slice(style, depth + 1, max(1, depth // SHOWN_POINTS))
    mark = {"fmt": MARKERS[style], "color": colour, "capsize": 1.2}
    for name, face, said in (("tcs", colour, label), ("tcs_frame", "white", None)):
        values = cells[name].values[:, : depth + 1].astype(float)
        error = values.std(0, ddof=1) / len(values) ** 0.5
        panel.errorbar(blocks[some], values.mean(0)[some], yerr=error[some], mfc=face, label=said, **mark)
