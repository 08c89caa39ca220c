"""Modes of the writer gradients over training, by merge (Fig. 6), and how far the merges differ."""

# S seeds, N steps, L blocks, W writers

from collections.abc import Mapping

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from meanmode.paper_figs.shared.runs import WRITERS, caption, needs
from meanmode.paper_figs.shared.style import COLOURS, MARKERS
from meanmode.sweeps.studies.merge_ratios import (
    CONFIDENCE,
    LAYERSCALE,
    LAYERSCALE_ZERO,
    LOSS_WINDOW,
    MERGES,
    MV_SPLIT,
    PLAIN,
    Arm,
    Ratio,
    arms,
    band_ratio,
    mode_band,
    smoothed_loss,
)
from meanmode.sweeps.studies.run_sizes import run_config, run_sizes, schedule_of

OBSERVABLES = ("loss", "g_mean", "g_ctr", "tcs", "tcs_image")
"""What the stores hold; the label is read from `tcs_image` and the loss."""


MODES = {"g_mean": "G_mean", "g_ctr": "G_ctr"}


PAPER_RATIO = (2.0, 3.0)
"""How many times higher MV-Split keeps G_ctr than LayerScale in the paper (400 blocks, Fig. 6)."""


LOSS_EVERY = 5
"""Steps between the points of a loss curve."""


def draw(*runs: xr.Dataset) -> Figure:
    """G_mean and G_ctr of both writers over steps, the loss, and MV-Split's G_ctr over that of the others.

    Points: the median over seeds of the depth median; bands: of the depth quartiles.

    Args:
        runs: excerpts of `OBSERVABLES`, of every arm and seed, with equal steps and rates.

    Raises:
        ValueError: runs of another merge, or arms that cannot be compared.
    """
    for run in runs:
        needs(run, *OBSERVABLES)
    found = arms(runs)
    ratios = {
        (writer, under): band_ratio(found[MV_SPLIT], found[under], "g_ctr", writer)
        for writer in WRITERS
        for under in (LAYERSCALE, LAYERSCALE_ZERO, PLAIN)
    }
    figure = Figure(figsize=(13.5, 8.0), layout="constrained")
    panels = figure.subplots(2, 3)
    for row, writer in zip(panels, WRITERS, strict=True):
        for panel, (name, label) in zip(row, MODES.items(), strict=False):
            for style, of in enumerate(found.values()):
                _draw_band(panel, mode_band(of, name, writer), style)
            panel.set_title(f"{label}, {WRITERS[writer]}", fontsize=9.5)
            panel.set_ylabel("Frobenius norm")
            panel.set_yscale("log")
            panel.set_xlabel("optimiser step")
            panel.grid(alpha=0.25)
    _draw_losses(panels[0, 2], found)
    _draw_ratios(panels[1, 2], ratios)
    config = run_config(runs[0])
    figure.suptitle(
        f"Modes of the writer gradients by merge, {schedule_of(config)}\n({run_sizes(runs)} per arm)",
        fontsize=10,
    )
    caption(figure, *_captions(config.training.telemetry_every, ratios))
    return figure


def _captions(every: int, ratios: Mapping[tuple[str, str], Ratio]) -> tuple[str, ...]:
    said = "; ".join(f"{writer} over {under} {ratio}" for (writer, under), ratio in ratios.items())
    return (
        f"All measured, every {every} steps: points, medians over blocks, then over seeds; bands, quartiles "
        f"over blocks, median over seeds. Loss: running median of {LOSS_WINDOW} steps, median over seeds.",
        "G_ctr of MV-Split over that of another merge, by the median over blocks and the second half of the "
        f"steps, geometric means over seeds, {CONFIDENCE:.0%} bootstrap over seeds: {said}.",
        f"Shaded: the paper's {PAPER_RATIO[0]:g} to {PAPER_RATIO[1]:g} over LayerScale (400 blocks, width "
        "1024, batch 1024; its statistic is not stated).",
    )


def _draw_band(panel: Axes, band: xr.DataArray, style: int) -> None:
    low, middle, high = band
    colour = COLOURS[style]
    panel.fill_between(band["step"], low, high, color=colour, alpha=0.18, lw=0)
    panel.plot(band["step"], middle, MARKERS[style], ls=":", lw=0.8, ms=3.5, color=colour)


def _draw_losses(panel: Axes, found: Mapping[str, Arm]) -> None:
    for style, (label, of) in enumerate(found.items()):
        shown = smoothed_loss(of).isel(step=slice(LOSS_WINDOW // 2, -(LOSS_WINDOW // 2), LOSS_EVERY))
        line = {"ms": 3.5, "ls": ":", "lw": 0.8, "color": COLOURS[style], "label": label}
        panel.plot(shown["step"], shown, MARKERS[style], **line)
    panel.set_title("loss", fontsize=9.5)
    panel.set_ylabel("loss (mean square of a velocity)")
    panel.set_xlabel("optimiser step")
    panel.legend(fontsize=8, framealpha=0.85, edgecolor="none")
    panel.grid(alpha=0.25)


def _draw_ratios(panel: Axes, ratios: Mapping[tuple[str, str], Ratio]) -> None:
    rows = range(len(ratios))
    panel.axvspan(*PAPER_RATIO, color="0.85", lw=0)
    panel.axvline(1, color="0.2", lw=0.8)
    for row, ((_, under), ratio) in zip(rows, ratios.items(), strict=True):
        style = MERGES.index(under)
        panel.plot([ratio.low, ratio.high], [row, row], color=COLOURS[style], lw=1.6)
        panel.plot(ratio.value, row, MARKERS[style], color=COLOURS[style], ms=6)
    panel.set_yticks(rows, [f"{writer},\n{under}" for writer, under in ratios], fontsize=7.5)
    panel.set_ylim(len(ratios) - 0.5, -0.5)
    panel.set_xlim(left=0)
    panel.set_xlabel("G_ctr of MV-Split over that of the merge")
    panel.set_title("ratio of G_ctr; shaded: the paper's, over LayerScale", fontsize=9.5)
    panel.grid(alpha=0.25, axis="x")
