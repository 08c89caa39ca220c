"""Amplification of writer gradients against the coherence of tokens at the event, block by block (Fig. 4)."""

# L blocks, W writers

from collections.abc import Mapping

import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from meanmode.paper_figs.shared.runs import WRITERS, caption
from meanmode.paper_figs.shared.studies import short_sizes
from meanmode.paper_figs.shared.style import COLOURS, PAGE
from meanmode.sweeps.studies.around_onset import ACTIVE
from meanmode.sweeps.studies.events.event_curves import EventBlocks, event_blocks, noisy_twins, outcomes
from meanmode.sweeps.studies.events.event_rules import EXPLAINED, SLOPES, event_rows
from meanmode.sweeps.studies.events.event_summaries import Share, summaries

STUDY = "event_replicates"


STUDIES = (STUDY,)


LOW_NOISE, NOISY = (COLOURS[0], "o"), (COLOURS[1], "^")
"""Colour and marker of a case at low noise, and of a twin at a small batch."""


PAPER_SLOPES = {"attn": 0.961, "ffn": 0.985}
"""Slopes of the paper's regressions at its event (400 blocks, T = 256); intercepts are not published."""


def draw(studies: Mapping[str, xr.Dataset]) -> Figure:
    """A - 1 against (T - 1) kappa_abs at the event; one row per writer, one column per case with events.

    Args:
        studies: with the study `STUDY`.

    Raises:
        ValueError: no run collapsed after its jump.
    """
    data = studies[STUDY]
    rows = event_rows(data)
    counts = outcomes(rows)
    cases = [case for case in counts if counts[case][0]]
    if not cases:
        raise ValueError(f"this figure shows the blocks at an event; no run of {STUDY} has one")
    shares, noisy = {row["case"]: row["regular"] for row in summaries(rows)}, noisy_twins(rows)
    figure = Figure(figsize=(PAGE, 5.0), layout="constrained")
    panels = figure.subplots(len(WRITERS), len(cases), squeeze=False)
    for column, case in zip(panels.T, cases, strict=True):
        column[0].set_title(case)
        for panel, writer in zip(column, WRITERS, strict=True):
            blocks = event_blocks(data, rows, case, writer)
            _draw_blocks(panel, blocks, *(NOISY if case in noisy else LOW_NOISE))
            _draw_lines(panel, _tokens(rows, case), writer)
            _say(panel, blocks, shares[case])
            panel.set_ylabel(f"A - 1, {WRITERS[writer]}")
        column[-1].set_xlabel("(T - 1) kappa_abs")
    _legend(figure)
    caption(
        figure,
        "Measured: one point per block and run at its event. In the panels: runs with the published "
        f"regression (slope {SLOPES[0]:g} to {SLOPES[1]:g}, R^2 at least {EXPLAINED:g}), 90 % "
        f"intervals. {short_sizes(studies)}",
    )
    return figure


def _tokens(rows: pd.DataFrame, case: str) -> int:
    return int(rows.loc[rows["case"] == case, "tokens"].iloc[0])


def _draw_blocks(panel: Axes, blocks: EventBlocks, colour: str, marker: str) -> None:
    for chosen, face in ((blocks.active, colour), (~blocks.active, "none")):
        style = {"ms": 2.9, "mfc": face, "mec": colour, "mew": 0.5, "alpha": 0.6}
        panel.plot(blocks.coherence[chosen], blocks.excess[chosen], marker, **style)


def _draw_lines(panel: Axes, tokens: int, writer: str) -> None:
    """Law A5, and a line of the paper's slope, over everything that (T - 1) kappa_abs can be."""
    end = tokens - 1.0
    panel.plot([0, end], [0, end], color="0.2", lw=0.8)
    panel.plot([0, end], [0, PAPER_SLOPES[writer] * end], color="black", ls=":", lw=1)
    panel.set_xlim(-0.03 * end, 1.03 * end)
    panel.set_ylim(min(-1.3, -0.06 * end), 1.16 * end)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.grid(alpha=0.25)


def _say(panel: Axes, blocks: EventBlocks, both: Share) -> None:
    own = Share.counted(blocks.regular, both.of)
    panel.text(
        0.03,
        0.97,
        f"published regression\nthis writer: {own}\nboth: {both}",
        transform=panel.transAxes,
        va="top",
    )


def _legend(figure: Figure) -> None:
    handles = [
        Line2D([], [], ls="", marker=marker, color=colour, label=label)
        for (colour, marker), label in ((LOW_NOISE, "low noise"), (NOISY, "twin at a small batch"))
    ]
    handles += [
        Line2D([], [], ls="", marker="o", mfc="none", mec="0.4", label=f"inactive, A - 1 <= {ACTIVE:g}"),
        Line2D([], [], color="0.2", lw=0.8, label="law A5, y = x"),
        Line2D([], [], color="black", ls=":", lw=1, label="paper's slope, through 0"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
