"""Amplification of writer gradients against the coherence of tokens, before and at a collapse (Fig. 4)."""

# N steps, L blocks, W writers

from dataclasses import dataclass

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from meanmode.paper_figs.shared.runs import (
    EVENT_WITHIN,
    FAR,
    NEAR,
    WRITERS,
    caption,
    event_step,
    needs,
    onset_of,
    rate_of,
    run_sizes,
    step_before,
    tokens_of,
)
from meanmode.paper_figs.shared.style import COLOURS
from meanmode.theory.laws.all_laws import LAWS

OBSERVABLES = ("loss", "grad_norm", "amplification", "kappa", "kappa_abs", "g_mean", "g_ctr")
"""What the store holds."""


ACTIVE = 0.5
"""A - 1 above which a block counts as active (Fig. 4)."""


TIMES = {"before": (COLOURS[0], "o"), "event": (COLOURS[1], "^")}


PAPER = (
    "The paper's regressions (400 blocks, T = 256, image tokens, another network and rate): at the spike "
    "slope 0.961, R^2 0.808 (W_O) and 0.985, 0.829 (W_2); before it 0.169, 0.306 and 0.126, 0.499."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Regression:
    """An ordinary least-squares line with intercept.

    Attributes:
        slope: of it.
        intercept: of it.
        r_squared: share of the variance that the line explains.
        points: how many it was drawn through.
    """

    slope: float
    intercept: float
    r_squared: float
    points: int

    def __str__(self) -> str:
        return f"slope {self.slope:.3f}, R^2 {self.r_squared:.3f}, n {self.points}"


def regression(x: ArrayLike, y: ArrayLike) -> Regression | None:
    """The least-squares line of y on x; None with fewer than three points, or all at one x."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    if len(x) < 3 or np.ptp(x) == 0:
        return None
    slope, intercept = np.polyfit(x, y, 1)
    rest = np.square(y - slope * x - intercept).sum()
    total = np.square(y - y.mean()).sum()
    return Regression(
        slope=float(slope),
        intercept=float(intercept),
        r_squared=float(1 - rest / total) if total else 1.0,
        points=len(x),
    )


def moments(run: xr.Dataset) -> dict[str, int]:
    """The two steps that are compared, by rules that were fixed before any run was looked at.

    `event`: the largest gradient norm at most `EVENT_WITHIN` steps from the onset. `before`: the median
    gradient norm among the steps `NEAR` to `FAR` before the event.
    """
    return {"before": step_before(run), "event": event_step(run)}


def regressions(run: xr.Dataset) -> dict[tuple[str, str], Regression | None]:
    """A - 1 on (T - 1) kappa_abs over the blocks that are active at the step itself, by (moment, writer)."""
    found = {}
    for moment, step in moments(run).items():
        for writer in WRITERS:
            here = coherence(run, step, writer)
            active = here["excess"] > ACTIVE
            found[moment, writer] = regression(here["absolute"][active], here["excess"][active])
    return found


def coherence(run: xr.Dataset, step: int, writer: str) -> xr.Dataset:
    """A - 1 (`excess`), (T - 1) kappa (`signed`) and (T - 1) kappa_abs (`absolute`) of measured blocks."""
    here = run.sel(step=step, writer=writer)
    others = sum(tokens_of(run)) - 1
    return xr.Dataset(
        {
            "excess": here["amplification"] - 1,
            "signed": others * here["kappa"],
            "absolute": others * here["kappa_abs"],
            "mode_ratio": here["g_mean"] / here["g_ctr"],
        }
    ).dropna("block", subset=["excess"])


def draw(run: xr.Dataset) -> Figure:
    """A row a writer: A - 1 against absolute and signed coherence, and signed coherence and modes in depth.

    One point a block, the mean over the batch, over all tokens, at the two steps of `moments`.

    Args:
        run: an excerpt of `OBSERVABLES` with every step measured around an onset.

    Raises:
        ValueError: a run without an onset, with too few steps around it, or with another set of observables.
    """
    needs(run, *OBSERVABLES)
    figure = Figure(figsize=(15, 8.2), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1)
    panels = figure.subplots(2, 4)
    steps, fits = moments(run), regressions(run)
    for row, writer in zip(panels, WRITERS, strict=True):
        for moment, step in steps.items():
            here = coherence(run, step, writer)
            colour, marker = TIMES[moment]
            active = (here["excess"] > ACTIVE).values
            for panel, name in zip(row, ("absolute", "signed"), strict=False):
                for chosen, face in ((active, colour), (~active, "none")):
                    panel.plot(
                        here[name][chosen],
                        here["excess"][chosen],
                        marker,
                        ms=5,
                        mfc=face,
                        mec=colour,
                        mew=0.8,
                        alpha=0.8,
                    )
            _draw_fit(row[0], here["absolute"][active], fits[moment, writer], moment)
            row[2].plot(here["block"], here["signed"], marker, ms=4, color=colour, mew=0)
            row[3].plot(here["block"], here["mode_ratio"], marker, ms=4, color=colour, mew=0)
        _finish(row, writer)
    handles = [
        panels[0, 0].plot([], [], marker, color=colour, label=f"{moment}, step {steps[moment]}")[0]
        for moment, (colour, marker) in TIMES.items()
    ]
    hollow = panels[0, 0].plot([], [], "o", mfc="none", color="0.4", label=f"inactive, A - 1 <= {ACTIVE:g}")[
        0
    ]
    panels[0, 3].legend(handles=[*handles, hollow], fontsize=8, framealpha=0.85, edgecolor="none")
    figure.suptitle(
        f"Amplification of writer gradients around a collapse, onset at step {onset_of(run)['step']}; "
        f"merge plain; {rate_of(run)}\n({run_sizes([run])})",
        fontsize=10,
    )
    caption(figure, *_captions(run, steps, fits))
    return figure


def _draw_fit(panel: Axes, x: xr.DataArray, fit: Regression | None, moment: str) -> None:
    if fit is not None:
        ends = np.array([float(x.min()), float(x.max())])
        colour, _ = TIMES[moment]
        panel.plot(
            ends, fit.intercept + fit.slope * ends, ls="--", color=colour, lw=1.2, label=f"{moment}: {fit}"
        )


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


def _captions(
    run: xr.Dataset, steps: dict[str, int], fits: dict[tuple[str, str], Regression | None]
) -> tuple[str, ...]:
    said = "; ".join(
        f"{writer} {moment} {fit if fit is not None else 'too few active blocks'}"
        for (moment, writer), fit in fits.items()
    )
    return (
        f"Points: one a block, all {sum(tokens_of(run))} tokens (image and text), mean over the batch. "
        f"Event: the largest gradient norm within {EVENT_WITHIN} steps of the onset (step {steps['event']}); "
        f"before: the median gradient norm {NEAR} to {FAR} steps earlier (step {steps['before']}). Lines: "
        f"A4, {LAWS['A4'].statement.split(';')[0]}, and A5, {LAWS['A5'].statement}; points off them have "
        "unequal magnitudes.",
        f"Dashed: least squares with intercept over active blocks (A - 1 > {ACTIVE:g} at that step): {said}.",
        PAPER,
    )
