"""The event after a jump from a healthy state (Fig. 3, a to f): low noise beside a small batch."""

# N steps, W writers

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from meanmode.paper_figs.shared.runs import MARKS, WRITERS, caption
from meanmode.paper_figs.shared.studies import short_sizes
from meanmode.paper_figs.shared.style import COLOURS, PAGE, plain_ticks
from meanmode.sweeps.studies.events.event_curves import (
    image_tokens,
    noisy_twins,
    outcomes,
    quartiles,
    since_onset,
)
from meanmode.sweeps.studies.events.event_rules import event_rows
from meanmode.sweeps.studies.events.event_summaries import collapsed
from meanmode.theory.meanfield.front import FRONT_COSINE
from meanmode.theory.meanfield.profile import energy_ratio

STUDY = "event_replicates"


STUDIES = (STUDY,)


SHOWN = 20
"""Steps on either side of the onset that are drawn."""


LOW_NOISE, NOISY = (COLOURS[0], COLOURS[5]), (COLOURS[1], COLOURS[4])
"""Colours of cases at low noise, whose markers are filled, and of their twins at a small batch."""


READERS = {"grad_rms_q_deep": "o", "grad_rms_k_deep": "^"}


PAPER_LOSS, PAPER_READERS = (0.79, 1.94), 1e-4
"""Loss of the paper's run before the event and at it, and the factor of its query and key gradients."""


PAPER_FACTORS = {"g_mean_all": {"attn": 155.0, "ffn": 61.0}, "g_ctr_all": {"attn": 1.0, "ffn": 3.0}}
"""Factors of the paper's event, by mode and writer (400 blocks, Fig. 3)."""


@dataclass(frozen=True, kw_only=True)
class Regime:
    """Runs of one case that collapsed.

    Attributes:
        label: the case, and how many of its runs collapsed.
        curves: quartiles over these runs, by steps after the onset.
        events: these runs at their events, as rows of `event_rows`.
        tokens: image tokens of a sample.
        colour, filled: style of its markers.
    """

    label: str
    curves: xr.Dataset
    events: pd.DataFrame
    tokens: int
    colour: str
    filled: bool

    @property
    def face(self) -> str:
        """Colour inside its markers."""
        return self.colour if self.filled else "none"


def draw(studies: Mapping[str, xr.Dataset]) -> Figure:
    """Loss, writer modes, reader gradients, TCS and rho around the onset, of a case and its noisy twin.

    Args:
        studies: with the study `STUDY`.

    Raises:
        ValueError: no run collapsed after its jump.
    """
    data = studies[STUDY]
    rows = event_rows(data)
    regimes = _regimes(data, rows)
    figure = Figure(figsize=(PAGE, 4.7), layout="constrained")
    panels = figure.subplots(2, 3, sharex=True)
    drawings = (_draw_loss, _draw_mean, _draw_centered, _draw_readers, _draw_cosine, _draw_ratio)
    for panel, letter, draw_panel in zip(panels.flat, "abcdef", drawings, strict=True):
        draw_panel(panel, regimes)
        panel.set_title(f"({letter}) {panel.get_title()}")
        panel.axvline(0, color="0.35", ls="--", lw=0.8)
        panel.grid(alpha=0.25)
        panel.set_xlim(-SHOWN - 0.7, SHOWN + 0.7)
    for panel in panels[1]:
        panel.set_xlabel("steps after the onset")
    _legend(figure, regimes, outcomes(rows))
    caption(
        figure,
        "Measured: medians over the runs that collapsed, bands: quartiles; factors over the healthy "
        f"state before; dotted: the paper's run. {short_sizes(studies)}",
    )
    return figure


def _regimes(data: xr.Dataset, rows: pd.DataFrame) -> list[Regime]:
    """The cases of which runs collapsed after the jump."""
    found, noisy = [], noisy_twins(rows)
    colours = {True: list(NOISY), False: list(LOW_NOISE)}
    for case, (fallen, _, count) in outcomes(rows).items():
        if fallen:
            of = rows[(rows["case"] == case) & collapsed(rows)]
            found.append(
                Regime(
                    label=f"{case}: {fallen} of {count} collapsed",
                    curves=since_onset(data, of.index.tolist(), SHOWN).map(quartiles),
                    events=of,
                    tokens=image_tokens(data, case),
                    colour=colours[case in noisy].pop(0),
                    filled=case not in noisy,
                )
            )
    if not found:
        raise ValueError(f"this figure shows the steps around an onset; no run of {STUDY} has one")
    return found


def _draw(panel: Axes, regime: Regime, values: xr.DataArray, marker: str) -> None:
    """Median and quartiles [3, N]."""
    low, middle, high = values.values
    x = values["since_onset"].values
    panel.fill_between(x, low, high, color=regime.colour, alpha=0.2, lw=0)
    style = {"color": regime.colour, "mfc": regime.face, "mew": 0.7, "ms": 2.6}
    panel.plot(x, middle, marker, **style)


def _draw_loss(panel: Axes, regimes: list[Regime]) -> None:
    for regime in regimes:
        _draw(panel, regime, regime.curves["loss"], "o")
    for value, ends in zip(PAPER_LOSS, ((-SHOWN, 0), (0, SHOWN)), strict=True):
        _draw_paper(panel, value, ends, gap=7)
    panel.set_title("loss")
    panel.set_ylabel("loss")
    panel.set_ylim(bottom=0)


def _draw_mean(panel: Axes, regimes: list[Regime]) -> None:
    _draw_mode(panel, regimes, "g_mean_all")
    _draw_events(panel, regimes, "g_mean")
    panel.set_title("G_mean")


def _draw_centered(panel: Axes, regimes: list[Regime]) -> None:
    _draw_mode(panel, regimes, "g_ctr_all")
    _draw_events(panel, regimes, "g_ctr")
    panel.set_title("G_ctr")


def _draw_mode(panel: Axes, regimes: list[Regime], name: str) -> None:
    for regime in regimes:
        for writer, marker in MARKS.items():
            _draw(panel, regime, regime.curves[name].sel(writer=writer), marker)
    for writer, factor in PAPER_FACTORS[name].items():
        above = factor == max(PAPER_FACTORS[name].values())
        _draw_paper(panel, factor, (0, SHOWN), WRITERS[writer].split()[-1], above=above)
    panel.set_ylabel("factor over before the jump")
    panel.set_yscale("log")
    panel.margins(y=0.1)


def _draw_readers(panel: Axes, regimes: list[Regime]) -> None:
    for regime in regimes:
        for name, marker in READERS.items():
            _draw(panel, regime, regime.curves[name], marker)
    _draw_paper(panel, PAPER_READERS, (0, SHOWN), "about 1e-4", above=True)
    panel.set_title("query and key gradients")
    panel.set_ylabel("factor over before the jump")
    panel.set_yscale("log")


def _draw_cosine(panel: Axes, regimes: list[Regime]) -> None:
    for regime in regimes:
        _draw(panel, regime, regime.curves["tcs_deep"], "o")
    panel.axhline(FRONT_COSINE, color="0.35", lw=0.6)
    panel.set_title("TCS")
    panel.set_ylabel("token cosine")


def _draw_ratio(panel: Axes, regimes: list[Regime]) -> None:
    for regime in regimes:
        cosine = regime.curves["tcs_deep"].isel(quantile=1)
        law = energy_ratio(regime.tokens, cosine.where(cosine < 1).values)
        panel.plot(cosine["since_onset"], law, color=regime.colour, lw=0.8)
        _draw(panel, regime, regime.curves["rho_deep"], "o")
    panel.set_title("rho; lines: law E1")
    panel.set_ylabel("|mean| / |centered|")
    panel.set_yscale("log")


def _draw_events(panel: Axes, regimes: list[Regime], mode: str) -> None:
    """An inset: median and quartiles of the factors of a mode at the events of the runs."""
    inset = panel.inset_axes((0.14, 0.05, 0.34, 0.3))
    for place, regime in enumerate(regimes):
        for shift, (writer, marker) in zip((-0.16, 0.16), MARKS.items(), strict=True):
            low, middle, high = np.quantile(regime.events[f"{mode}_{writer}"], [0.25, 0.5, 0.75])
            style = {"color": regime.colour, "mfc": regime.face, "ms": 3.8, "capsize": 1.2}
            inset.errorbar(place + shift, middle, yerr=[[middle - low], [high - middle]], fmt=marker, **style)
    for factor in PAPER_FACTORS[f"{mode}_all"].values():
        inset.axhline(factor, color="black", ls=":", lw=1)
    inset.set_yscale("log")
    plain_ticks(inset.yaxis)
    inset.set_xticks([])
    inset.set_xlim(-0.6, len(regimes) - 0.4)
    inset.tick_params(labelsize=6)
    inset.set_title("at the event", fontsize=6, pad=2)


def _draw_paper(
    panel: Axes, value: float, ends: tuple[float, float], word: str = "", *, above: bool = False, gap: int = 2
) -> None:
    """A dotted mark of a number of the paper, labelled at its outer end."""
    panel.plot(ends, [value, value], color="black", ls=":", lw=1)
    side = "left" if ends[0] < 0 else "right"
    panel.annotate(
        f"paper{f': {word}' if word else ''}",
        (ends[0 if side == "left" else 1], value),
        xytext=(0, gap if above else -gap),
        textcoords="offset points",
        ha=side,
        va="bottom" if above else "top",
    )


def _legend(figure: Figure, regimes: list[Regime], counts: Mapping[str, tuple[int, int, int]]) -> None:
    """Regimes, cases without an event, and markers, above the panels."""
    handles = [
        Line2D([], [], ls="", marker="o", color=regime.colour, mfc=regime.face, label=regime.label)
        for regime in regimes
    ]
    handles += [
        Line2D([], [], ls="", label=f"{case}: none of {count} collapsed after the jump, {early} before it")
        for case, (fallen, early, count) in counts.items()
        if not fallen
    ]
    for marker, label in (("o", "W_O; queries"), ("^", "W_2; keys")):
        handles.append(Line2D([], [], ls="", marker=marker, color="0.35", label=label))
    handles.append(Line2D([], [], ls="--", color="0.35", lw=0.8, label="onset"))
    figure.legend(handles=handles, loc="outside upper center", ncols=3, columnspacing=1)
