"""Where a network without a time embedding encodes the time (Fig. 11): linear probes of every block."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from meanmode.paper_figs.shared.runs import caption
from meanmode.paper_figs.shared.style import COLOURS, MARKERS, PAGE

FEATURES = {
    "image_mean": "mean of image tokens",
    "image_centered_rms": "rms of centered image tokens",
    "text_mean": "mean of text tokens",
}


STATISTICS = {
    "input_statistics": "mean and std of the noisy latent",
    "input_channel_statistics": "mean and std of its channels",
}


BESIDE = 0.15
"""Horizontal distance between the marks of one block, in blocks."""


PAPER_R2 = 0.998
"""R^2 of the image-token mean in the published run (arXiv:2605.06169 App. H)."""


def draw(document: Mapping[str, Any]) -> Figure:
    """R^2 of t against the block, for a trained network, an untrained one, and shuffled times.

    Args:
        document: the output of `mms evaluate --probe timestep --json`.
    """
    rows = pd.DataFrame(document["rows"])
    figure = Figure(figsize=(PAGE, 2.9), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, network in zip(panels, ("trained", "untrained"), strict=True):
        _panel(panel, rows[rows["network"] == network])
        panel.set(xlabel="block (0: input state)", title=network)
    panels[0].axhline(PAPER_R2, color="0.5", lw=0.8, ls=":")
    panels[0].annotate(
        f"the paper's image-token mean: {PAPER_R2}",
        (0.98, PAPER_R2),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
        va="bottom",
        color="0.3",
    )
    panels[0].set(ylabel="$R^2$ of t on held-out images", ylim=(-0.12, 1.1))
    panels[1].legend(loc="center right")
    probe, sizes, training = document["probe"], document["run"]["model"], document["run"]["training"]
    tokens = (sizes["side"] // sizes["patch"]) ** 2
    caption(
        figure,
        f"Measured: ridge regression of t on {probe['images']} images, {probe['held_out']} held out; "
        f"open marks: shuffled times. Width {sizes['width']}, {sizes['depth']} blocks, "
        f"{sizes['merge']}, {tokens} + {sizes['text_tokens']} tokens, batch {training['batch']}, step "
        f"{document['step']}, 1 seed.",
    )
    return figure


def _panel(panel: Axes, rows: pd.DataFrame) -> None:
    for style, (feature, label) in enumerate(FEATURES.items()):
        of, colour, marker = rows[rows["feature"] == feature], COLOURS[style], MARKERS[style]
        blocks = of["block"] + BESIDE * (style - 1)
        panel.plot(blocks, of["r2"], marker, color=colour, label=label)
        panel.plot(blocks, of["shuffled_r2"], marker, mfc="none", color=colour, ms=3.2)
    for colour, (feature, label) in zip(COLOURS[4:], STATISTICS.items(), strict=True):
        of = rows[rows["feature"] == feature]
        if len(of):
            panel.plot(of["block"], of["r2"], "*", color=colour, ms=7, label=label)
