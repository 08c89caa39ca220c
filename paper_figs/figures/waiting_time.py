"""Waiting times to a collapse: survival curves by rate and depth, and predictors scored on held-out seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from meanmode.paper_figs.shared.runs import caption
from meanmode.paper_figs.shared.style import COLOURS, MARKERS
from meanmode.sweeps.studies.half_rates import forecasts_outside
from meanmode.sweeps.studies.run_sizes import ramp_scale

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
    figure = Figure(figsize=(13.5, 5.6 + 3.6 * len(studies)), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(len(studies), 1.15))
    panels = top.subplots(len(studies), len(depths), sharey=True, squeeze=False)
    for row, study in zip(panels, studies, strict=True):
        for panel, depth in zip(row, depths, strict=True):
            drawn = [case for case in document["cases"] if (case["study"], case["depth"]) == (study, depth)]
            _draw_curves(panel, drawn, document["sizes"]["steps"])
        row[0].set_ylabel("share of runs not collapsed")
    calibrated, *scored = bottom.subplots(1, 1 + len(PANELS), width_ratios=(1.15, 1, 1))
    _draw_calibration(calibrated, [row for row in document["scores"] if row["stated"]])
    for panel, (score, title) in zip(scored, PANELS.items(), strict=True):
        _draw_scores(panel, document, score, title, named=panel is scored[0])
    sizes = document["sizes"]
    figure.suptitle(
        "Waiting time to a collapse at a fixed learning rate\n"
        f"(width {sizes['width']}; {', '.join(map(str, depths))} blocks; {sizes['image_tokens']} image + "
        f"{sizes['text_tokens']} text tokens, batch {sizes['batch']}, {sizes['steps']} steps, "
        f"{document['cases'][0]['runs']} seeds per curve)",
        fontsize=10,
    )
    caption(figure, _said(document))
    return figure


def _draw_curves(panel: Axes, cases: Sequence[Mapping[str, Any]], horizon: int) -> None:
    for case, colour in zip(cases, COLOURS, strict=False):
        steps, survival = ([*case["curve"][name]] for name in ("steps", "survival"))
        panel.step(
            [*steps, horizon],
            [*survival, survival[-1]],
            where="post",
            color=colour,
            lw=1.6,
            label=f"{case['share']:g} ({case['rate']:.3g})",
        )
        panel.plot(
            case["fitted"]["steps"], case["fitted"]["survival"], color=colour, lw=1, ls="--", alpha=0.8
        )
        panel.plot(
            horizon,
            1 - case["predicted"],
            "D",
            ms=7,
            mfc="white",
            mec=colour,
            mew=1.6,
            clip_on=False,
            zorder=5,
        )
    panel.set_title(f"{cases[0]['depth']} blocks", fontsize=10)
    panel.set_xlabel("optimiser step")
    panel.set_xlim(0, horizon)
    panel.set_ylim(-0.02, 1.02)
    panel.grid(alpha=0.25)
    panel.legend(
        title="rate over threshold (rate)",
        fontsize=7.5,
        title_fontsize=7.5,
        framealpha=0.85,
        edgecolor="none",
        loc="upper right",
        bbox_to_anchor=(0.97, 1.0),
    )


def _draw_calibration(panel: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    colours = [*COLOURS, "0.35"]
    panel.plot([0, 1], [0, 1], color="0.6", lw=1)
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
            ms=4,
            lw=0.8,
            elinewidth=0.8,
            alpha=0.85,
            label=row["predictor"],
        )
    lowest = min(min(one["predicted"], one["low"]) for row in rows for one in row["calibration"])
    panel.set_xlim(lowest - 0.03, 1.02)
    panel.set_ylim(lowest - 0.03, 1.02)
    panel.set_title("calibration, bins of equal count", fontsize=10)
    panel.set_xlabel("predicted P(collapse within the run)")
    panel.set_ylabel("share that collapsed")
    panel.grid(alpha=0.25)
    panel.legend(fontsize=7.5, framealpha=0.85, edgecolor="none", loc="lower right")


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
                ms=5,
                mfc=COLOURS[number] if number == 0 else "white",
                lw=1.4,
                ls="none",
                label=_analysis(document, key) if line == 0 else None,
            )
    if score == "auroc":
        panel.axvline(0.5, color="0.6", lw=1)
    names = [row["predictor"].replace(", ", ",\n") + ("" if row["stated"] else " *") for row in rows]
    panel.set_yticks(range(len(rows)), names if named else [""] * len(rows), fontsize=7.5)
    panel.set_ylim(len(rows) + 0.4, -0.5)
    panel.set_title(title, fontsize=10)
    panel.set_xlabel(f"held-out runs, {document['interval']:.0%} bootstrap interval")
    panel.grid(axis="x", alpha=0.25)
    if named:
        panel.set_ylabel("single predictor")
        panel.legend(fontsize=7.5, framealpha=0.85, edgecolor="none", loc="lower center")


def _analysis(document: Mapping[str, Any], key: str) -> str:
    return ANALYSES[key].format(f"runs not collapsed by step {document['landmark']}")


def _said(document: Mapping[str, Any]) -> str:
    sizes = document["sizes"]
    thresholds = ", ".join(f"{rate:g}" for rate in document["thresholds"].values())
    return (
        "Top: Kaplan-Meier curves (solid), the Weibull mixture cure model of rate sqrt(depth) fitted to the "
        "seeds that are not held out (dashed), and the forecast for the last step, written before the runs "
        f"(diamonds); rates as shares of {thresholds}{ramp_scale('depth_ramp')}. Of {len(document['cases'])} "
        f"forecast shares, {forecasts_outside(document['cases'])} lie outside the measured "
        f"{document['interval']:.0%} interval. "
        f"{sizes['collapsed']} of {sizes['runs']} runs collapsed, {sizes['collapsed_early']} of them by step "
        f"{document['landmark']}, so predictors read from the steps before have seen the collapse itself; "
        f"{sizes['diverged']} diverged plainly and count as not collapsed. Bottom: cure models of one "
        f"predictor each on {sizes['held_out']} held-out runs. *: not stated before the runs."
    )
