"""Modes of the writer gradients over training, by merge (Fig. 6), and how far the merges differ."""

# S seeds, N steps, L blocks, W writers

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from meanmode.paper_figs.shared.runs import WRITERS, caption, configuration, needs, rate_of, run_sizes
from meanmode.paper_figs.shared.style import COLOURS, MARKERS

OBSERVABLES = ("loss", "g_mean", "g_ctr", "tcs", "tcs_image")
"""What the stores hold; the label is read off `tcs_image` and the loss."""


PLAIN, LAYERSCALE, LAYERSCALE_ZERO, MV_SPLIT = "plain", "LayerScale", "LayerScale, zero writers", "MV-Split"


MERGES = (PLAIN, LAYERSCALE, LAYERSCALE_ZERO, MV_SPLIT)
"""Arms, in the order of their colours."""


MODES = {"g_mean": "G_mean", "g_ctr": "G_ctr"}


CONFIDENCE, RESAMPLES = 0.9, 10_000


PAPER_RATIO = (2.0, 3.0)
"""How many times higher MV-Split keeps G_ctr than LayerScale (400 blocks, Fig. 6)."""


LOSS_WINDOW = 15
"""Steps of the running median of the loss."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ratio:
    """A ratio of geometric means over seeds, with a bootstrap interval.

    Attributes:
        value: of all seeds.
        low: lower end of the interval of `CONFIDENCE`.
        high: upper end.
        seeds: how many.
    """

    value: float
    low: float
    high: float
    seeds: int

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


def arm(run: xr.Dataset) -> str:
    """Which of `MERGES` a run is of.

    Raises:
        ValueError: another merge.
    """
    model, _ = configuration(run)
    names = {"plain": PLAIN, "layerscale": LAYERSCALE, "mv_split": MV_SPLIT}
    if model["merge"] not in names:
        raise ValueError(f"this figure draws {', '.join(MERGES)}, got a run of merge {model['merge']!r}")
    if model["merge"] == "layerscale" and model["writer_std"] == 0:
        return LAYERSCALE_ZERO
    return names[model["merge"]]


def arms(runs: Sequence[xr.Dataset]) -> dict[str, dict[int, xr.Dataset]]:
    """Runs by arm and seed.

    Raises:
        ValueError: arms of other seeds or steps than the rest, or an arm missing.
    """
    found: dict[str, dict[int, xr.Dataset]] = {name: {} for name in MERGES}
    for run in runs:
        needs(run, *OBSERVABLES)
        found[arm(run)][configuration(run)[1]["seed"]] = run
    if len({(frozenset(of), *sorted(run.sizes["step"] for run in of.values())) for of in found.values()}) > 1:
        seeds = "; ".join(f"{name} {sorted(of)}" for name, of in found.items())
        raise ValueError(f"this figure compares arms of the same seeds and steps, got seeds {seeds}")
    return found


def band_ratio(
    over: Mapping[int, xr.Dataset], under: Mapping[int, xr.Dataset], name: str, writer: str
) -> Ratio:
    """How many times larger a mode is in one arm than in another: a statistic stated before the runs.

    A run's level is the median over blocks and over the regular rows of the second half of its steps. The
    ratio is that of geometric means over seeds; its interval resamples the seeds, pairs of runs of one seed.
    """
    logs = np.log(
        [_level(over[seed], name, writer) / _level(under[seed], name, writer) for seed in sorted(over)]
    )
    rng = np.random.default_rng(np.random.SeedSequence(0))
    means = logs[rng.integers(len(logs), size=(RESAMPLES, len(logs)))].mean(1)
    low, high = np.exp(np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]))
    return Ratio(value=float(np.exp(logs.mean())), low=float(low), high=float(high), seeds=len(logs))


def _level(run: xr.Dataset, name: str, writer: str) -> float:
    half = run.isel(step=slice(run.sizes["step"] // 2, None))
    return float(_regular(half, name, writer).median())


def _regular(run: xr.Dataset, name: str, writer: str) -> xr.DataArray:
    """A mode at the steps that every run measures; around a gradient spike a run measures more of its own."""
    regular = run["step"] % configuration(run)[1]["telemetry_every"] == 0
    return run[name].sel(step=regular, writer=writer, block=slice(1, None))


def draw(*runs: xr.Dataset) -> Figure:
    """G_mean and G_ctr of both writers over steps, the loss, and MV-Split's G_ctr over that of the others.

    Lines of points: the median over seeds of the depth median; bands: of the depth quartiles.

    Args:
        runs: excerpts of `OBSERVABLES`, of every arm and seed, with equal steps and rates.

    Raises:
        ValueError: runs of another merge, or arms that cannot be compared.
    """
    found = arms(runs)
    figure = Figure(figsize=(13.5, 8.0), layout="constrained")
    panels = figure.subplots(2, 3)
    for row, writer in zip(panels, WRITERS, strict=True):
        for panel, (name, label) in zip(row, MODES.items(), strict=False):
            for style, of in enumerate(found.values()):
                _draw_band(panel, [_regular(run, name, writer) for run in of.values()], style)
            panel.set_title(f"{label}, {WRITERS[writer]}", fontsize=9.5)
            panel.set_ylabel("Frobenius norm")
            panel.set_yscale("log")
            panel.set_xlabel("optimiser step")
            panel.grid(alpha=0.25)
    for style, (name, of) in enumerate(found.items()):
        _draw_loss(panels[0, 2], list(of.values()), style, name)
    panels[0, 2].set_title("loss", fontsize=9.5)
    panels[0, 2].set_ylabel("loss (mean square of a velocity)")
    panels[0, 2].set_xlabel("optimiser step")
    panels[0, 2].legend(fontsize=8, framealpha=0.85, edgecolor="none")
    panels[0, 2].grid(alpha=0.25)
    ratios = {
        (writer, under): band_ratio(found[MV_SPLIT], found[under], "g_ctr", writer)
        for writer in WRITERS
        for under in (LAYERSCALE, LAYERSCALE_ZERO, PLAIN)
    }
    _draw_ratios(panels[1, 2], ratios)
    figure.suptitle(
        f"Modes of the writer gradients by merge, {rate_of(runs[0])}\n({run_sizes(runs)} an arm)", fontsize=10
    )
    said = "; ".join(f"{writer} over {under} {ratio}" for (writer, under), ratio in ratios.items())
    caption(
        figure,
        f"All measured, every {configuration(runs[0])[1]['telemetry_every']} steps: points, medians over "
        "blocks, then over seeds; bands, quartiles over blocks, median over seeds. "
        f"Loss: running median of {LOSS_WINDOW} steps, median over seeds.",
        f"G_ctr of MV-Split over that of another merge, by the median over blocks and the second half of the "
        f"steps, geometric means over seeds, {CONFIDENCE:.0%} bootstrap over seeds: {said}.",
        f"Shaded: the paper's {PAPER_RATIO[0]:g} to {PAPER_RATIO[1]:g} over LayerScale (400 blocks, width "
        "1024, batch 1024; its statistic is not stated).",
    )
    return figure


def _draw_band(panel: Axes, seeds: list[xr.DataArray], style: int) -> None:
    values = xr.concat(seeds, "seed")
    low, middle, high = values.quantile([0.25, 0.5, 0.75], "block").median("seed")
    colour = COLOURS[style]
    panel.fill_between(values["step"], low, high, color=colour, alpha=0.18, lw=0)
    panel.plot(values["step"], middle, MARKERS[style], ls=":", lw=0.8, ms=3.5, color=colour)


def _draw_loss(panel: Axes, runs: list[xr.Dataset], style: int, label: str) -> None:
    loss = xr.concat([run["loss"] for run in runs], "seed").rolling(step=LOSS_WINDOW, center=True).median()
    shown = loss.median("seed").isel(step=slice(LOSS_WINDOW // 2, -(LOSS_WINDOW // 2), 5))
    panel.plot(
        shown["step"], shown, MARKERS[style], ms=3.5, ls=":", lw=0.8, color=COLOURS[style], label=label
    )


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
