"""Loss and clipped gradient norm over a ramp, by merge (Fig. 5): plain, LayerScale and MV-Split."""

# N steps, S seeds

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from meanmode.paper_figs.shared.runs import caption
from meanmode.paper_figs.shared.studies import Studies, short_sizes
from meanmode.paper_figs.shared.style import COLOURS, MARKERS, PAGE
from meanmode.sweeps.studies.merge_ratios import LOSS_WINDOW, case_series, running_median
from meanmode.sweeps.studies.run_sizes import span, study_sizes

STUDIES = ("stabilisers", "stabilisers_deep")


CASES = ("plain", "LayerScale 0.01", "MV-Split")
"""Cases of the studies that are drawn."""


POINTS = 24
"""Points per curve."""


def draw(studies: Studies) -> Figure:
    """Median loss and clipped gradient norm over seeds with quartiles, one row per study.

    Args:
        studies: some of `STUDIES`.
    """
    figure = Figure(figsize=(PAGE, 0.9 + 1.7 * len(studies)), layout="constrained")
    panels = figure.subplots(len(studies), 2, squeeze=False, sharex="row")
    for (left, right), data in zip(panels, studies.values(), strict=True):
        for style, case in enumerate(CASES):
            if case not in data["case"].values:
                continue
            series = case_series(data, case)
            _draw(left, series["loss"], style, case)
            _draw(right, series["grad_norm_clipped"], style, None)
        depth = span(study_sizes(data)["depth"])
        left.set(ylabel="loss", title=f"{depth} blocks")
        right.set(ylabel="gradient norm, clipped", title=f"{depth} blocks")
        for panel in (left, right):
            panel.grid(alpha=0.25)
            panel.set_xlim(left=0)
    for panel in panels[-1]:
        panel.set_xlabel("optimiser step")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    caption(
        figure,
        f"Measured under a ramp, running medians of {LOSS_WINDOW} steps: median over seeds, bands: "
        f"quartiles; a curve ends with its first run. {short_sizes(studies)}",
    )
    return figure


def _draw(panel: Axes, values: xr.DataArray, style: int, label: str | None) -> None:
    """Median and quartiles over seeds [S, N], while all runs go on."""
    smooth = running_median(values)
    smooth = smooth.where(smooth.notnull().all("seed"), drop=True)
    if not smooth.sizes["step"]:
        return
    low, middle, high = smooth.quantile([0.25, 0.5, 0.75], "seed").values
    x = smooth["step"].values
    panel.fill_between(x, low, high, color=COLOURS[style], alpha=0.2, lw=0)
    some = np.unique(np.linspace(0, len(x) - 1, POINTS).round().astype(int))
    line = {"color": COLOURS[style], "ms": 2.6, "lw": 0.6, "ls": ":", "label": label}
    panel.plot(x[some], middle[some], MARKERS[style], **line)
