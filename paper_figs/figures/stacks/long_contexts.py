"""Long contexts: the front and the amplification against tokens, measured, and predicted to a million."""

import dataclasses
from collections.abc import Mapping

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from meanmode.paper_figs.shared.runs import caption
from meanmode.paper_figs.shared.style import (
    COLOURS,
    DASHES,
    MARKERS,
    PAGE,
    base_setting,
    check_axes,
    run_caption,
)
from meanmode.theory.meanfield.predicted_front import deterministic_fronts
from meanmode.theory.meanfield.profile import predict_profile
from meanmode.theory.meanfield.token_limit import token_limit
from meanmode.theory.setting import Setting

STUDIES = ("long_contexts",)
BESIDE = ("long_contexts_largest",)

COUNTS = tuple(4**power for power in range(3, 11))
"""Token counts of the predicted lines, to a million."""


DISTANCES = (2, 4, 6, 8)
"""Blocks from the last block, which is 1."""


def draw(studies: Mapping[str, xr.Dataset]) -> Figure:
    """The front against T with its limit, and A - 1 of the attention writer at four distances from the loss.

    Args:
        studies: `long_contexts`, and the sweep of its largest token count, along `cell`.

    Raises:
        ValueError: a sweep over other axes.
    """
    for data in studies.values():
        check_axes(data, "tokens", "adjoint_cosine", "seed")
    first = studies[STUDIES[0]]
    base = base_setting(first)
    cosines = sorted({float(cosine) for cosine in first["adjoint_cosine"].values})
    figure = Figure(figsize=(PAGE, 2.6), layout="constrained")
    panels = figure.subplots(1, 1 + len(cosines))
    _draw_front(panels[0], base, studies, cosines[0])
    for panel, cosine in zip(panels[1:], cosines, strict=True):
        _draw_amplification(panel, base, studies, cosine)
    for panel in panels:
        panel.set_xscale("log", base=4)
        panel.set_xticks(COUNTS[::2], [f"{count:,}" for count in COUNTS[::2]])
        panel.set_xlabel("tokens T")
        panel.grid(alpha=0.25)
    panels[1].legend(loc="upper left")
    fewer = "".join(
        f", {len(np.unique(data['seed']))} at {data['tokens'].values.max():,} tokens"
        for name, data in studies.items()
        if name != STUDIES[0]
    )
    caption(
        figure,
        "At initialisation. Lines: mean recursion and backward recursion; points: measured mean and its "
        f"standard error. {run_caption(first)}{fewer}.",
    )
    return figure


def _cells(studies: Mapping[str, xr.Dataset], cosine: float) -> dict[int, xr.Dataset]:
    """The cells of every token count, in order."""
    found = {}
    for data in studies.values():
        of = data.isel(cell=np.flatnonzero(data["adjoint_cosine"].values == cosine))
        for count in np.unique(of["tokens"].values):
            found[int(count)] = of.isel(cell=np.flatnonzero(of["tokens"].values == count))
    return dict(sorted(found.items()))


def _draw_front(panel: Axes, base: Setting, studies: Mapping[str, xr.Dataset], cosine: float) -> None:
    fronts = deterministic_fronts([dataclasses.replace(base, tokens=count) for count in COUNTS])
    panel.plot(COUNTS, [np.nan if front is None else front for front in fronts], color=COLOURS[0])
    limit = token_limit(base)
    if limit is not None:
        panel.axhline(limit.limit, color="0.5", ls=":", lw=0.8)
        words = {"xytext": (2, 3), "textcoords": "offset points", "color": "0.3"}
        panel.annotate("infinitely many tokens", (COUNTS[0], limit.limit), **words)
    for count, cells in _cells(studies, cosine).items():
        fronts = cells["front"].values.astype(float)
        depths = np.where(np.isnan(fronts), base.depth, fronts)
        _point(panel, count, depths, 0)
    panel.set_ylabel("front (block)")
    panel.set_ylim(0, 1.2 * panel.get_ylim()[1])


def _draw_amplification(panel: Axes, base: Setting, studies: Mapping[str, xr.Dataset], cosine: float) -> None:
    profiles = [
        predict_profile(dataclasses.replace(base, tokens=count, adjoint_cosine=cosine))["amplification"]
        for count in COUNTS
    ]
    cells = _cells(studies, cosine)
    for style, distance in enumerate(DISTANCES):
        line = [profile[-distance, 0] - 1 for profile in profiles]
        panel.plot(COUNTS, line, color=COLOURS[style], ls=DASHES[style])
        for index, (count, of) in enumerate(cells.items()):
            excess = of["amplification"].sel(writer="attn").values[:, 1 + base.depth - distance] - 1
            _point(panel, count, excess, style, f"distance {distance}" if index == 0 else None)
    panel.set_yscale("log")
    panel.set_ylabel("A - 1 of the attention writer")
    panel.set_title(f"adjoint cosine {cosine:g}")


def _point(panel: Axes, x: float, samples: np.ndarray, style: int, label: str | None = None) -> None:
    error = samples.std(ddof=1) / len(samples) ** 0.5 if len(samples) > 1 else np.nan
    mark = {"fmt": MARKERS[style], "color": COLOURS[style], "capsize": 1.2, "label": label}
    panel.errorbar([x], [samples.mean()], yerr=[error], **mark)
