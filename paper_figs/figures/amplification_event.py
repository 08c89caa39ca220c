"""Amplification of writer gradients against the coherence of tokens, before and at a collapse (Fig. 4)."""

# L blocks, W writers

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from meanmode.paper_figs.shared.runs import WRITERS, caption, needs
from meanmode.paper_figs.shared.style import COLOURS
from meanmode.sweeps.studies.around_onset import (
    ACTIVE,
    EVENT_WITHIN,
    FAR,
    NEAR,
    Regression,
    coherence,
    moments,
    onset_of,
    regressions,
)
from meanmode.sweeps.studies.run_sizes import run_config, run_sizes, schedule_of
from meanmode.theory.laws.all_laws import LAWS

OBSERVABLES = ("loss", "grad_norm", "amplification", "kappa", "kappa_abs", "g_mean", "g_ctr")
"""What the store holds."""


TIMES = {"before": (COLOURS[0], "o"), "event": (COLOURS[1], "^")}


PAPER = (
    "The paper's regressions (400 blocks, T = 256, image tokens, another network and rate): at the spike "
    "slope 0.961, R^2 0.808 (W_O) and 0.985, 0.829 (W_2); before it 0.169, 0.306 and 0.126, 0.499."
)


Fits = dict[tuple[str, str], Regression | None]
"""(moment, writer) -> the regression over active blocks."""


def draw(run: xr.Dataset) -> Figure:
    """One row per writer: A - 1 against absolute and signed coherence; signed coherence and modes in depth.

    One point per block, the mean over the batch and all tokens, at the two steps of `moments`.

    Args:
        run: an excerpt of `OBSERVABLES` with every step measured around an onset.

    Raises:
        ValueError: a run without an onset, with too few steps around it, or with other observables.
    """
    needs(run, *OBSERVABLES)
    figure = Figure(figsize=(15, 8.2), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1)
    panels = figure.subplots(2, 4)
    steps, fits, config = moments(run), regressions(run), run_config(run)
    for row, writer in zip(panels, WRITERS, strict=True):
        for moment, step in steps.items():
            _draw_moment(row, coherence(run, step, writer), fits[moment, writer], moment)
        _finish(row, writer)
    _name_points(panels, steps)
    figure.suptitle(
        f"Amplification of writer gradients around a collapse, onset at step {onset_of(run)['step']}; "
        f"merge {config.model.merge}; {schedule_of(config)}\n({run_sizes([run])})",
        fontsize=10,
    )
    tokens = config.model.image_tokens + config.model.text_tokens
    caption(figure, *_captions(tokens, steps, fits))
    return figure


def _draw_moment(row: np.ndarray, here: xr.Dataset, fit: Regression | None, moment: str) -> None:
    """The blocks of one step in all panels of a writer."""
    colour, marker = TIMES[moment]
    active = (here["excess"] > ACTIVE).values
    for panel, name in zip(row, ("absolute", "signed"), strict=False):
        for chosen, face in ((active, colour), (~active, "none")):
            style = {"ms": 5, "mfc": face, "mec": colour, "mew": 0.8, "alpha": 0.8}
            panel.plot(here[name][chosen], here["excess"][chosen], marker, **style)
    _draw_fit(row[0], here["absolute"][active], fit, moment)
    row[2].plot(here["block"], here["signed"], marker, ms=4, color=colour, mew=0)
    row[3].plot(here["block"], here["mode_ratio"], marker, ms=4, color=colour, mew=0)


def _draw_fit(panel: Axes, x: xr.DataArray, fit: Regression | None, moment: str) -> None:
    if fit is not None:
        ends, (colour, _) = np.array([float(x.min()), float(x.max())]), TIMES[moment]
        line = fit.intercept + fit.slope * ends
        panel.plot(ends, line, ls="--", color=colour, lw=1.2, label=f"{moment}: {fit}")


def _finish(row: np.ndarray, writer: str) -> None:
    """Laws, labels, and room for the legends."""
    for panel, tag, label in zip(row, ("A5", "A4"), ("kappa_abs", "kappa, signed"), strict=False):
        panel.axline((0, 0), slope=1, color="0.2", lw=1, label=f"law {tag} at equal magnitudes, y = x")
        low, high = panel.get_ylim()
        panel.set_ylim(low, high + 0.3 * (high - low))
        panel.set_xlabel(f"(T - 1) {label}")
        panel.set_ylabel("A - 1")
        panel.legend(fontsize=7.5, framealpha=0.85, edgecolor="none", loc="upper left")
    row[2].axhline(0, color="0.2", lw=0.8)
    row[2].set_ylabel("(T - 1) kappa, signed")
    row[3].axhline(1, color="0.2", lw=0.8)
    row[3].set_ylabel("G_mean / G_ctr")
    row[3].set_yscale("log")
    low, high = row[3].get_ylim()
    row[3].set_ylim(min(low, 0.05), max(high, 20))
    for panel in row:
        panel.set_title(WRITERS[writer], fontsize=9)
        panel.grid(alpha=0.25)
    for panel in row[2:]:
        panel.set_xlabel("block")


def _name_points(panels: np.ndarray, steps: dict[str, int]) -> None:
    first = panels[0, 0]
    handles = [
        first.plot([], [], marker, color=colour, label=f"{moment}, step {steps[moment]}")[0]
        for moment, (colour, marker) in TIMES.items()
    ]
    hollow = first.plot([], [], "o", mfc="none", color="0.4", label=f"inactive, A - 1 <= {ACTIVE:g}")[0]
    panels[0, 3].legend(handles=[*handles, hollow], fontsize=8, framealpha=0.85, edgecolor="none")


def _captions(tokens: int, steps: dict[str, int], fits: Fits) -> tuple[str, ...]:
    said = "; ".join(
        f"{writer} {moment} {fit if fit is not None else 'too few active blocks'}"
        for (moment, writer), fit in fits.items()
    )
    return (
        f"Points: one per block, all {tokens} tokens (image and text), mean over the batch. "
        f"Event: the largest gradient norm within {EVENT_WITHIN} steps of the onset (step {steps['event']}); "
        f"before: the median gradient norm {NEAR} to {FAR} steps earlier (step {steps['before']}). Lines: "
        f"A4, {LAWS['A4'].statement.split(';')[0]}, and A5, {LAWS['A5'].statement}; points off them have "
        "unequal magnitudes.",
        f"Dashed: least squares with intercept over active blocks (A - 1 > {ACTIVE:g} at that step): {said}.",
        PAPER,
    )
