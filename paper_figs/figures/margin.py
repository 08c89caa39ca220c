"""The functional step before a collapse over all configurations, and critical rates foretold from pilots."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from meanmode.paper_figs.shared.runs import caption
from meanmode.paper_figs.shared.studies import DOT, FAR, NEAR, Studies, bars, cases, forecast_of, sizes_of
from meanmode.paper_figs.shared.style import COLOURS
from meanmode.sweeps.statistics.censoring import estimated

SETTINGS = "critical_rate_settings"


STUDIES = ("critical_rate_depth", "critical_rate_slopes", "critical_rate_deep", SETTINGS)


COLOUR = dict(zip(STUDIES, ("black", COLOURS[2], COLOURS[1], COLOURS[0]), strict=True))


FORECASTS = {
    "predicted": ("law O2, from a pilot", COLOURS[0]),
    "predicted_power_law": ("rate sqrt(L) alone", "none"),
}
"""Forecast -> its name and the face of its points."""


NAMED = 0.5
"""Cases that are further off bear their name."""


WITHIN = 0.2
"""Relative error of the band about the diagonal."""


def draw(studies: Studies) -> Figure:
    """Delta in the steps before each onset by case, and predicted against measured critical rates.

    Args:
        studies: some of `STUDIES`; the second panel is of `critical_rate_settings`.
    """
    foretold = SETTINGS in studies and "predicted" in studies[SETTINGS]
    figure = Figure(figsize=(14.5 if foretold else 11, 7.4), layout="constrained")
    panels = figure.subplots(
        1, 1 + foretold, squeeze=False, width_ratios=(1.35, 1) if foretold else None
    ).flat
    spread = _draw_steps(panels[0], studies)
    errors = _draw_foretold(panels[1], studies) if foretold else ""
    figure.suptitle(
        f"Functional step Delta before a collapse (median of the steps {FAR} to {NEAR} before its onset): "
        "dots, runs; bars, medians"
        + ("; and critical rates predicted from pilots before the runs" if foretold else ""),
        fontsize=10,
    )
    law = forecast_of(studies).get("law")
    theory = (
        "Theory: law O2 says that a run collapses where Delta reaches one threshold for all. "
        + (
            f"Fitted on 8 to 32 blocks: Delta_c = {law['threshold']:.3f}, its Delta at the onset. "
            if law
            else ""
        )
        + f"Measured: {spread}."
    )
    caption(
        figure,
        theory,
        *([errors] if errors else []),
        *(f"{name}: {sizes_of(data)}." for name, data in studies.items()),
    )
    return figure


def _draw_steps(panel: Axes, studies: Studies) -> str:
    """Every case in a column; how far the medians of cases lie apart, in words."""
    labels, medians = [], []
    law = forecast_of(studies).get("law")
    if law:
        panel.axhline(
            law["threshold"], color="0.35", lw=1, label="Delta_c of law O2, fitted on 8 to 32 blocks"
        )
    for study, data in studies.items():
        name = study
        for case in cases(data):
            sizes, place = case.steps_before(), len(labels)
            labels.append(case.label)
            if not len(sizes):
                continue
            spots = place + np.linspace(-0.25, 0.25, len(sizes)) if len(sizes) > 1 else [place]
            panel.plot(spots, sizes, color=COLOUR[study], label=name, **{**DOT, "ms": 3.5})
            medians.append(float(np.median(sizes)))
            panel.plot([place - 0.35, place + 0.35], [medians[-1]] * 2, color=COLOUR[study], lw=2)
            name = None
    panel.set_xticks(
        range(len(labels)), labels, rotation=60, ha="right", fontsize=7.5, rotation_mode="anchor"
    )
    panel.set_xlim(-0.7, len(labels) - 0.3)
    panel.set_yscale("log")
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_formatter("{x:g}")
    panel.tick_params(axis="y", which="both", labelsize=8)
    panel.set_ylabel("Delta before the onset")
    panel.set_xlabel("case")
    panel.set_title("is the threshold of Delta universal?", fontsize=9.5)
    panel.grid(axis="y", alpha=0.25, which="both")
    panel.legend(fontsize=8, frameon=False)
    if not medians:
        return "no run collapsed"
    ends = f"{min(medians):.2g} to {max(medians):.2g}"
    return f"medians of the {len(medians)} of {len(labels)} cases with a collapse lie from {ends}"


def _draw_foretold(panel: Axes, studies: Studies) -> str:
    """Predicted against measured rates of the settings; the errors of those with a measured one in words."""
    group = cases(studies[SETTINGS])
    said, ends = [], []
    for name, (words, face) in FORECASTS.items():
        if name not in group[0].runs:
            continue
        errors = []
        for case in group:
            predicted, found = float(case.field(name)), estimated(case.rates)
            if not (np.isfinite(predicted) and found.at_least > 0):
                continue
            known = np.isfinite(found.value)
            panel.plot(
                found.at_least,
                predicted,
                marker="o" if known else r"$\rightarrow$",
                mfc=face,
                mec=COLOURS[0],
                ls="none",
                label=words if case is group[0] else None,
            )
            ends += [found.at_least, predicted]
            if known:
                panel.errorbar(found.value, predicted, xerr=bars(found), color=COLOURS[0], lw=0.8, alpha=0.5)
                errors.append(predicted / found.value - 1)
            if name == "predicted" and not (known and abs(errors[-1]) <= NAMED):
                place = {"xytext": (4, 3), "textcoords": "offset points", "rotation": 30}
                panel.annotate(case.label, (found.at_least, predicted), fontsize=6.5, **place)
        if errors:
            sizes = np.abs(errors)
            said.append(
                f"{words}: median |relative error| {np.median(sizes):.1%}, at most 20 % in "
                f"{(sizes <= WITHIN).sum()} of {len(sizes)}"
            )
    _finish(panel, ends)
    return f"Predicted critical rates. {'; '.join(said)}." if said else ""


def _finish(panel: Axes, ends: list[float]) -> None:
    """The diagonal with its band through all points, and what the axes are."""
    if ends:
        line = np.array([min(ends) / 1.3, max(ends) * 1.3])
        panel.plot(line, line, color="0.35", lw=1)
        band = {"color": "0.35", "alpha": 0.12, "lw": 0, "label": "within 20 %"}
        panel.fill_between(line, line * (1 - WITHIN), line * (1 + WITHIN), **band)
        panel.legend(fontsize=8, frameon=False, loc="upper left")
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlabel("measured critical rate (median, 90 % interval; arrow: no collapse below)")
    panel.set_ylabel("predicted critical rate")
    panel.set_title(
        "one thing changed in 16 blocks; named: off by more than half, or no collapse", fontsize=9.5
    )
    panel.grid(alpha=0.25)
