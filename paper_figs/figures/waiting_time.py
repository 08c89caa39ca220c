"""Waiting times to a collapse: survival curves by rate and depth, and predictors scored on held-out seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D

from meanmode.paper_figs.shared.runs import caption
from meanmode.paper_figs.shared.style import COLOURS, MARKERS, PAGE

ANALYSES = {"scores": "every held-out run, stated before", "scores_behind_landmark": "not stated: {} only"}
"""Key of the document -> which runs its scores are computed on."""


PANELS = {"brier": "Brier score (less is better)", "auroc": "AUROC (more is better)"}


def draw(document: Mapping[str, Any]) -> Figure:
    """Kaplan-Meier curves and the fitted model by depth; calibration, Brier score and AUROC of predictors.

    Args:
        document: the output of `mms waiting`.

    Raises:
        ValueError: another document.
    """
    missing = sorted({"cases", "scores", "sizes"} - set(document))
    if missing:
        raise ValueError(f"this figure draws what `mms waiting` writes; the document has no {missing[0]}")
    depths = sorted({case["depth"] for case in document["cases"]})
    studies = list(document["thresholds"])
    figure = Figure(figsize=(PAGE, 3.1 + 1.9 * len(studies)), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(len(studies), 1.55))
    panels = top.subplots(len(studies), len(depths), sharex=True, sharey=True, squeeze=False)
    for row, study in zip(panels, studies, strict=True):
        for panel, depth in zip(row, depths, strict=True):
            drawn = [case for case in document["cases"] if (case["study"], case["depth"]) == (study, depth)]
            _draw_curves(panel, drawn, document["sizes"]["steps"])
        row[0].set_ylabel("share of runs not collapsed")
    calibrated, *scored = bottom.subplots(1, 1 + len(PANELS), width_ratios=(1.15, 1, 1))
    _draw_calibration(calibrated, [row for row in document["scores"] if row["stated"]])
    for panel, (score, title) in zip(scored, PANELS.items(), strict=True):
        _draw_scores(panel, document, score, title, named=panel is scored[0])
    for panel in panels[-1]:
        panel.set_xlabel("optimiser step")
    _legend(top, panels[0, 0], "rate / threshold:", ncols=6)
    _legend(bottom, calibrated, "", ncols=3)
    _legend(bottom, scored[0], "", ncols=1, loc="outside lower right")
    caption(figure, _said(document))
    return figure


def _legend(part: SubFigure, panel: Axes, title: str, *, ncols: int, loc: str = "outside lower left") -> None:
    """The legend of a panel, outside all panels."""
    handles, labels = panel.get_legend_handles_labels()
    if title:
        handles, labels = [Line2D([], [], ls=""), *handles], [title, *labels]
    part.legend(handles, labels, loc=loc, ncols=ncols)


def _draw_curves(panel: Axes, cases: Sequence[Mapping[str, Any]], horizon: int) -> None:
    for case, colour, marker in zip(cases, COLOURS, MARKERS, strict=False):
        steps, survival = ([*case["curve"][name]] for name in ("steps", "survival"))
        ends = [*steps, horizon], [*survival, survival[-1]]
        style = {"color": colour, "marker": marker, "ms": 2.6, "markevery": 3}
        panel.step(*ends, where="post", label=f"{case['share']:g}", **style)
        fitted = case["fitted"]
        panel.plot(fitted["steps"], fitted["survival"], color=colour, lw=0.8, ls="--")
        style = {"ms": 4.5, "mfc": "white", "mec": colour, "mew": 1.0, "clip_on": False, "zorder": 5}
        panel.plot(horizon, 1 - case["predicted"], marker, **style)
    panel.set_title(f"{cases[0]['depth']} blocks, {cases[0]['study']}")
    panel.set_xlim(0, horizon)
    panel.set_ylim(-0.02, 1.02)
    panel.grid(alpha=0.25)


def _draw_calibration(panel: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    colours = [*COLOURS, "0.35"]
    panel.plot([0, 1], [0, 1], color="0.6", lw=0.8)
    for row, colour, marker in zip(rows, colours, MARKERS, strict=False):
        bins = row["calibration"]
        middle = [one["value"] for one in bins]
        bars = [[one["value"] - one["low"] for one in bins], [one["high"] - one["value"] for one in bins]]
        panel.errorbar(
            [one["predicted"] for one in bins],
            middle,
            bars,
            color=colour,
            marker=marker,
            ms=2.6,
            lw=0.6,
            elinewidth=0.6,
            alpha=0.85,
            label=row["predictor"],
        )
    lowest = min(min(one["predicted"], one["low"]) for row in rows for one in row["calibration"])
    panel.set_xlim(lowest - 0.03, 1.02)
    panel.set_ylim(lowest - 0.03, 1.02)
    panel.set_xlabel("predicted P(collapse)")
    panel.set_ylabel("share that collapsed")
    panel.grid(alpha=0.25)


def _draw_scores(panel: Axes, document: Mapping[str, Any], score: str, title: str, *, named: bool) -> None:
    rows = document["scores"]
    for number, key in enumerate(ANALYSES):
        for line, row in enumerate(document[key]):
            found = row[score]
            if found["value"] is None:
                continue
            bars = [[found["value"] - found["low"]], [found["high"] - found["value"]]]
            panel.errorbar(
                found["value"],
                line - 0.13 + 0.26 * number,
                xerr=bars,
                color=COLOURS[number],
                marker="os"[number],
                ms=3.2,
                mfc=COLOURS[number] if number == 0 else "white",
                lw=1,
                ls="none",
                label=_analysis(document, key) if line == 0 else None,
            )
    if score == "auroc":
        panel.axvline(0.5, color="0.6", lw=0.8)
    names = [row["predictor"].replace(", ", ",\n") + ("" if row["stated"] else " *") for row in rows]
    panel.set_yticks(range(len(rows)), names if named else [""] * len(rows), fontsize=6, linespacing=0.85)
    panel.set_ylim(len(rows) - 0.5, -0.5)
    panel.set_xlabel(title)
    panel.grid(axis="x", alpha=0.25)
    if named:
        panel.set_ylabel("single predictor")


def _analysis(document: Mapping[str, Any], key: str) -> str:
    return ANALYSES[key].format(f"runs not collapsed by step {document['landmark']}")


def _said(document: Mapping[str, Any]) -> str:
    sizes, depths = document["sizes"], sorted({case["depth"] for case in document["cases"]})
    return (
        "Top: Kaplan-Meier curves (solid), a mixture cure model fitted to other seeds (dashed), forecasts "
        "for the last step (open marks). Bottom: cure models of one predictor each on "
        f"{sizes['held_out']} held-out runs, {document['interval']:.0%} intervals; *: not stated before. "
        f"Width {sizes['width']}, {', '.join(map(str, depths))} blocks, {sizes['image_tokens']} + "
        f"{sizes['text_tokens']} tokens, batch {sizes['batch']}, "
        f"{document['cases'][0]['runs']} seeds per curve."
    )
