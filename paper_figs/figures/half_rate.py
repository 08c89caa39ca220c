"""The half rate: shares of runs that collapse at constant rates, and where they are a half, by depth."""

# R runs

import dataclasses
from collections.abc import Mapping
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import binomtest

from meanmode.paper_figs.shared.runs import caption
from meanmode.paper_figs.shared.studies import Studies, bars, forecast_of, forecasts_of, sizes_of
from meanmode.paper_figs.shared.style import COLOURS, MARKERS
from meanmode.sweeps.statistics.censoring import INTERVAL
from meanmode.sweeps.statistics.half_rate import HalfRate, probabilities
from meanmode.theory.laws.all_laws import LAWS
from meanmode.theory.laws.rivals import sub_layer_sum

STUDIES = (
    *("waiting_time", "waiting_time_low", "waiting_time_between"),
    *("waiting_time_deep", "waiting_time_400", "waiting_time_400_low", "waiting_time_1000"),
)


RATES = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032)
"""Named on the axis."""


COLLAPSED = 1
"""Code of a mean-mode collapse."""


Runs = Mapping[int, tuple[NDArray[np.float64], NDArray[np.bool_]]]
"""Depth -> rates [R] and which runs collapsed [R]."""


def draw(studies: Studies) -> Figure:
    """Shares with Wilson intervals and the logistic of every depth; half rates with law O2 and the rivals.

    Args:
        studies: some of `STUDIES`, with the texts of their forecasts.
    """
    runs = _by_depth(studies)
    fits = {depth: HalfRate.fit(*of) for depth, of in runs.items() if len(set(of[0])) > 1}
    if not fits:
        raise ValueError("a half rate lies between rates: no depth of these studies has runs at two rates")
    foretold = {row["depth"]: row for of in forecasts_of(studies) for row in of.get("half_rates", ())}
    figure = Figure(figsize=(13.5, 6.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_shares(left, runs, fits)
    _draw_half_rates(right, runs, fits, foretold, forecast_of(studies))
    steps = max(int(data["last_step"].max()) for data in studies.values())
    figure.suptitle(
        f"Collapse within {steps} steps at a constant learning rate: points, measured; lines, see legends",
        fontsize=10,
    )
    caption(figure, *_said(studies, runs, fits, foretold))
    return figure


def _by_depth(studies: Studies) -> Runs:
    """The runs of all studies."""
    depths, rates, collapsed = (
        np.concatenate([data[name].values for data in studies.values()])
        for name in ("depth", "rate", "onset_kind")
    )
    return {
        int(depth): (rates[depths == depth].astype(float), collapsed[depths == depth] == COLLAPSED)
        for depth in np.unique(depths)
    }


def _draw_shares(panel: Axes, runs: Runs, fits: Mapping[int, HalfRate]) -> None:
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(runs)))
    for (depth, (rates, collapsed)), colour, marker in zip(runs.items(), colours, cycle(MARKERS)):
        for rate in np.unique(rates):
            at = rates == rate
            share = collapsed[at].mean()
            interval = binomtest(int(collapsed[at].sum()), int(at.sum())).proportion_ci(INTERVAL, "wilson")
            ends = np.maximum([[share - interval.low], [interval.high - share]], 0)
            panel.errorbar(rate, share, yerr=ends, fmt=marker, color=colour, ms=5, lw=1, capsize=2)
        panel.plot([], [], color=colour, marker=marker, label=f"{depth} blocks")
        if depth in fits and np.isfinite(fits[depth].half.value):
            x = np.geomspace(rates.min() / 1.1, rates.max() * 1.1, 200)
            panel.plot(x, probabilities(x, fits[depth].half.value, fits[depth].spread), color=colour, lw=1)
    panel.axhline(0.5, color="0.6", lw=1, zorder=0)
    panel.set_xscale("log")
    panel.set_xticks(RATES, [f"{rate:g}" for rate in RATES])
    # room for the legend
    panel.set_xlim(left=min(rates.min() for rates, _ in runs.values()) / 3)
    panel.set_xticks([], minor=True)
    panel.set_xlabel("learning rate")
    panel.set_ylabel("share of runs that collapse")
    panel.set_title("logistic curves are fits, no forecasts", fontsize=9.5)
    panel.grid(alpha=0.25, which="both")
    panel.legend(fontsize=8, frameon=False, loc="lower left")


def _draw_half_rates(
    panel: Axes,
    runs: Runs,
    fits: Mapping[int, HalfRate],
    foretold: Mapping[int, Mapping[str, Any]],
    forecast: Mapping[str, Any],
) -> None:
    for depth, fit in fits.items():
        colour = COLOURS[1] if depth in foretold else "black"
        if np.isfinite(fit.half.value):
            lowest = runs[depth][0].min()
            known = dataclasses.replace(fit.half, low=max(fit.half.low, lowest))
            panel.errorbar(
                depth, fit.half.value, yerr=bars(known), fmt="o", color=colour, ms=6, capsize=3, zorder=4
            )
            if fit.half.low < lowest:
                panel.plot(depth, lowest, color=colour, marker=r"$\downarrow$", ms=11, ls="none")
        elif fit.half.at_least > 0:
            panel.plot(depth, fit.half.at_least, color=colour, marker=r"$\uparrow$", ms=11, ls="none")
        elif runs[depth][1][runs[depth][0] == runs[depth][0].min()].mean() > 0.5:
            panel.plot(depth, runs[depth][0].min(), color=colour, marker=r"$\downarrow$", ms=11, ls="none")
    panel.plot([], [], "o", color="black", ms=6, label="measured before the forecast")
    if foretold:
        panel.plot([], [], "o", color=COLOURS[1], ms=6, label="measured, forecast before")
        law, line = forecast["law"], forecast["power_law"]
        x = np.geomspace(min(fits), max(foretold), 100)
        reached = law["threshold"] / max(law["gains"]) / np.sqrt(sub_layer_sum(2 * x, law["coherence"]))
        panel.plot(x, reached, color=COLOURS[0], label="law O2, fitted on ramps of 8 to 32 blocks")
        straight = np.exp(line["intercept"]) * x ** line["exponent"]
        label = f"L^{line['exponent']:.2f}, through the half rates of 8 to 32 blocks"
        panel.plot(x, straight, "--", color=COLOURS[2], label=label)
        for depth, row in foretold.items():
            if row["predicted_low"] and row["predicted_high"]:
                panel.vlines(depth, row["predicted_low"], row["predicted_high"], COLOURS[0], lw=6, alpha=0.25)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xticks(list(fits), [f"{depth}" for depth in fits])
    panel.set_xticks([], minor=True)
    panel.set_xlabel("depth L (blocks)")
    panel.set_ylabel("half rate (learning rate)")
    panel.set_title("rate at which half of the runs collapse", fontsize=9.5)
    panel.grid(alpha=0.25, which="both")
    panel.legend(fontsize=8, frameon=False)


def _end(rate: float) -> str:
    """An end of an interval, open where it is outside of the rates tried."""
    return f"{rate:.4g}" if 0 < rate < np.inf else "open"


def _said(
    studies: Studies, runs: Runs, fits: Mapping[int, HalfRate], foretold: Mapping[int, Mapping[str, Any]]
) -> list[str]:
    """Theory, then what was measured."""
    said = [f"Theory. O2: {LAWS['O2'].statement}; at a constant rate it is reached where gamma is largest."]
    for depth, fit in fits.items():
        rates, collapsed = runs[depth]
        text = f"{depth} blocks: {int(collapsed.sum())} of {len(rates)} runs collapsed, half rate "
        text += (
            f"{fit.half.value:.4g} ({_end(fit.half.low)} to {_end(fit.half.high)})"
            if np.isfinite(fit.half.value)
            else f"outside of the rates tried, {rates.min():.4g} to {rates.max():.4g}"
        )
        if depth in foretold:
            row = foretold[depth]
            text += f", forecast {row['predicted']:.4g}, by the line {row['predicted_power_law']:.4g}"
        said.append(text + ".")
    return [said[0], " ".join(said[1:]), *(f"{name}: {sizes_of(data)}." for name, data in studies.items())]
