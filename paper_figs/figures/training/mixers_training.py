"""Does the collapse of training need softmax? How every mixer fails with each of four merges."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from meanmode.paper_figs.shared.runs import caption
from meanmode.paper_figs.shared.studies import Studies, short_sizes
from meanmode.paper_figs.shared.style import COLOURS, PAGE
from meanmode.sweeps.studies.events.event_rules import event_rows
from meanmode.sweeps.studies.events.event_summaries import Share, collapsed
from meanmode.sweeps.studies.training.failures import failed_runs

RAMPS, EVENTS = "mixers_training", "mixers_events"

STUDIES, BESIDE = (RAMPS,), (EVENTS,)
"""What is drawn, and what is drawn beside it where it exists."""

COMMON = 0.0314
"""The rate of a jump at which every mixer and merge was run."""

NAMES = {"a_minus_i": "A - I", "lazy": "half identity", "state_space": "state space"}
"""Mixer -> its name in the figure, where that is another."""

WIDTH = 0.72
"""Width of the group of a mixer, in mixers."""


def draw(studies: Studies) -> Figure:
    """Rate at which each run fails under a ramp, and shares that collapse after a jump, by mixer and merge.

    Args:
        studies: `STUDIES` and any of `BESIDE`.
    """
    drawn = {name: draw for name, draw in ((RAMPS, _draw_ramps), (EVENTS, _draw_jumps)) if name in studies}
    figure = Figure(figsize=(PAGE, 1.0 + 1.7 * len(drawn)), layout="constrained")
    panels = figure.subplots(len(drawn), 1, squeeze=False)[:, 0]
    for panel, (said, draw_panel), letter in zip(panels, drawn.items(), "ab", strict=False):
        draw_panel(panel, studies[said])
        mixers = list(dict.fromkeys(label.partition(", ")[0] for label in studies[said]["case"].values))
        panel.set_xticks(range(len(mixers)), [NAMES.get(mixer, mixer) for mixer in mixers])
        panel.set_xlim(-0.5, len(mixers) - 0.5)
        for border in range(1, len(mixers)):
            panel.axvline(border - 0.5, color="0.85", lw=0.6)
        panel.set_title(f"({letter}) {short_sizes({said: studies[said]})}", loc="left")
        panel.grid(axis="y", alpha=0.25)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names))
    caption(
        figure,
        "(a) Ramps: rate at which a run fails."
        + f" (b) Jumps to {COMMON:g} from a healthy state: shares of collapses (dots, 90 % intervals) and of "
        "plain divergences (crosses)." * (EVENTS in studies),
    )
    return figure


def _place(mixer: int, merge: int, merges: int) -> float:
    return mixer + WIDTH * ((merge + 0.5) / merges - 0.5)


def _positions(labels: list[str]) -> tuple[dict[str, float], dict[str, str]]:
    """Place and colour of every `mixer, merge`."""
    pairs = [label.partition(", ")[::2] for label in labels]
    mixers, merges = (list(dict.fromkeys(names)) for names in zip(*pairs, strict=True))
    return (
        {
            label: _place(mixers.index(mixer), merges.index(merge), len(merges))
            for label, (mixer, merge) in zip(labels, pairs, strict=True)
        },
        {label: COLOURS[merges.index(merge)] for label, (_, merge) in zip(labels, pairs, strict=True)},
    )


def _draw_ramps(panel: Axes, data: xr.Dataset) -> None:
    runs = failed_runs(data)
    labels = list(dict.fromkeys(runs["case"]))
    places, colours = _positions(labels)
    for label, of in runs.groupby("case", sort=False):
        shifts = np.linspace(-0.05, 0.05, len(of)) * WIDTH
        for shift, kind, rate in zip(shifts, of["kind"], of["rate"], strict=True):
            style = {"mean_mode": "o", "plain_divergence": "x", "none": "^"}[kind]
            panel.plot(places[str(label)] + shift, rate, style, color=colours[str(label)], ms=3.4, alpha=0.8)
    for merge in dict.fromkeys(label.partition(", ")[2] for label in labels):
        first = next(label for label in labels if label.endswith(f", {merge}"))
        panel.plot([], [], "s", color=colours[first], label=merge)
    for marker, said in (("o", "mean mode"), ("x", "plain divergence"), ("^", "no failure to the end")):
        panel.plot([], [], marker, color="0.35", label=said)
    panel.set_yscale("log")
    panel.set_yticks([0.01, 0.02, 0.03, 0.06], ["0.01", "0.02", "0.03", "0.06"])
    panel.minorticks_off()
    panel.set_ylabel("learning rate at the failure")


def _draw_jumps(panel: Axes, data: xr.Dataset) -> None:
    rows = event_rows(data)
    groups = rows["case"].str.rsplit(",", n=1).str[0]
    places, colours = _positions(list(dict.fromkeys(groups)))
    for label, of in rows[np.isclose(rows["rate"], COMMON)].groupby(groups, sort=False):
        share = Share.counted(int(collapsed(of).sum()), len(of))
        value = share.count / share.of
        ends = [[value - share.low], [share.high - value]]
        panel.errorbar(
            places[str(label)], value, yerr=ends, fmt="o", color=colours[str(label)], ms=3.6, capsize=1.8
        )
        diverged = int((of["kind"] == "plain_divergence").sum())
        if diverged:
            panel.plot(places[str(label)], diverged / share.of, "x", color=colours[str(label)], ms=4)
    panel.set_ylim(-0.06, 1.06)
    panel.set_ylabel("share of runs")
