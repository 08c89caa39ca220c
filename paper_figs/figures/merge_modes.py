"""Modes of the writer gradients over training, by merge (Fig. 6), and how far the merges differ."""

# S seeds, N steps, L blocks, W writers

from collections.abc import Mapping

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from meanmode.paper_figs.shared.runs import WRITERS, caption, needs
from meanmode.paper_figs.shared.style import COLOURS, MARKERS, PAGE
from meanmode.sweeps.studies.merge_ratios import (
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
    figure = Figure(figsize=(PAGE, 4.5), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.9, 1))
    for row, writer in zip(left.subplots(2, 2), WRITERS, strict=True):
        for panel, (name, label) in zip(row, MODES.items(), strict=True):
            for style, of in enumerate(found.values()):
                _draw_band(panel, mode_band(of, name, writer), style)
            panel.set_title(f"{label}, {WRITERS[writer]}")
            panel.set_ylabel("Frobenius norm")
            panel.set_yscale("log")
            panel.set_xlabel("optimiser step")
            panel.grid(alpha=0.25)
    upper, lower = right.subplots(2, 1)
    _draw_losses(upper, found)
    figure.legend(*upper.get_legend_handles_labels(), loc="outside upper center", ncols=len(found))
    _draw_ratios(lower, ratios)
    config = run_config(runs[0])
    caption(
        figure,
        "Measured. Points: medians over blocks, then seeds; bands: quartiles over blocks; grey: the "
        f"paper's ratio to LayerScale (400 blocks). Per arm: {run_sizes(runs)}; {schedule_of(config)}.",
    )
    return figure


def _draw_band(panel: Axes, band: xr.DataArray, style: int) -> None:
    low, middle, high = band
    colour = COLOURS[style]
    panel.fill_between(band["step"], low, high, color=colour, alpha=0.18, lw=0)
    panel.plot(band["step"], middle, MARKERS[style], ls=":", lw=0.6, ms=2.2, color=colour)


def _draw_losses(panel: Axes, found: Mapping[str, Arm]) -> None:
    for style, (label, of) in enumerate(found.items()):
        shown = smoothed_loss(of).isel(step=slice(LOSS_WINDOW // 2, -(LOSS_WINDOW // 2), LOSS_EVERY))
        line = {"ms": 2.2, "ls": ":", "lw": 0.6, "color": COLOURS[style], "label": label}
        panel.plot(shown["step"], shown, MARKERS[style], **line)
    panel.set_title("loss")
    panel.set_ylabel("loss")
    panel.set_xlabel("optimiser step")
    panel.grid(alpha=0.25)


def _draw_ratios(panel: Axes, ratios: Mapping[tuple[str, str], Ratio]) -> None:
    rows = range(len(ratios))
    panel.axvspan(*PAPER_RATIO, color="0.85", lw=0)
    panel.axvline(1, color="0.2", lw=0.6)
    for row, ((_, under), ratio) in zip(rows, ratios.items(), strict=True):
        style = MERGES.index(under)
        panel.plot([ratio.low, ratio.high], [row, row], color=COLOURS[style], lw=1.2)
        panel.plot(ratio.value, row, MARKERS[style], color=COLOURS[style], ms=3.8)
    panel.set_yticks(rows, [WRITERS[writer].split()[-1] for writer, _ in ratios])
    panel.set_ylim(len(ratios) - 0.5, -0.5)
    panel.set_xlim(left=0)
    panel.set_xlabel("MV-Split / other merge, 90 % interval")
    panel.set_title("ratio of G_ctr")
    panel.grid(alpha=0.25, axis="x")
