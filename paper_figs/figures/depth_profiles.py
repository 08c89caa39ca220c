"""Depth profiles of the forward observables (the panels of Fig. 7), with the prediction drawn in."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from meanmode.paper_figs.shared.runs import caption
from meanmode.paper_figs.shared.style import (
    COLOURS,
    DASHES,
    FRONT_AXES,
    MARKERS,
    PAGE,
    base_setting,
    check_axes,
    run_caption,
)
from meanmode.sim.store.sweep_store import unstacked
from meanmode.sweeps.studies.profiles import seed_statistics
from meanmode.theory.meanfield.front import FRONT_COSINE
from meanmode.theory.meanfield.profile import predict_profile

PANELS = (
    ("tcs", "TCS", "linear"),
    ("rho", "energy ratio rho", "log"),
    ("retention", "Ret(c<-c)", "log"),
    ("var_gain", "VarGain of the attention branch", "log"),
    ("row_div", "RowDiv", "linear"),
    ("mu_eff", "mu_eff = |PAP|_2", "log"),
)


SHOWN_POINTS = 16
"""Measured blocks that are drawn, at least."""


def draw(data: xr.Dataset) -> Figure:
    """Six observables over blocks, at the largest token count, first weight std and first input cosine.

    Args:
        data: a `collapse_front` sweep, along `cell`.

    Raises:
        ValueError: a sweep over other axes.
    """
    check_axes(data, *FRONT_AXES)
    chosen = unstacked(data).isel(depth=-1, tokens=-1, weight_std=0, input_cosine=0)
    fields = {name: chosen[name].item() for name in ("depth", "tokens", "weight_std", "input_cosine")}
    figure = Figure(figsize=(PAGE, 4.2), layout="constrained")
    panels = figure.subplots(2, 3, sharex=True)
    for style, merge in enumerate(str(value) for value in chosen["merge"].values):
        predicted = predict_profile(base_setting(data, merge=merge, **fields))
        for panel, (name, _, _) in zip(panels.flat, PANELS, strict=True):
            measured = chosen[name].sel(merge=merge)
            if "writer" in measured.dims:
                measured = measured.sel(writer="attn")
            _draw_profile(panel, measured, predicted[name], style)
    for panel, (_, label, scale) in zip(panels.flat, PANELS, strict=True):
        panel.set_ylabel(label)
        panel.set_yscale(scale)
        panel.grid(alpha=0.25)
    for panel in panels[-1]:
        panel.set_xlabel("block")
    panels[0, 0].axhline(FRONT_COSINE, color="0.5", lw=0.6, ls=":")
    handles = [
        Line2D(
            [], [], color=COLOURS[style], ls=DASHES[style], marker=MARKERS[style], ms=2.6, label=str(merge)
        )
        for style, merge in enumerate(chosen["merge"].values)
    ]
    panels[0, 0].legend(handles=handles)
    caption(
        figure,
        "At initialisation. Lines: mean-field recursion; points: measured mean and std between seeds; "
        f"dotted: TCS = {FRONT_COSINE:g}. {fields['tokens']} tokens, weight std "
        f"{fields['weight_std']:g}, input cosine {fields['input_cosine']:g}. {run_caption(data)}.",
    )
    return figure


def _draw_profile(panel: Axes, measured: xr.DataArray, predicted: np.ndarray, style: int) -> None:
    colour = COLOURS[style]
    predicted = predicted if predicted.ndim == 1 else predicted[:, 0]
    blocks = np.arange(len(predicted)) + (measured.sizes["block"] - len(predicted))
    panel.plot(blocks, predicted, color=colour, ls=DASHES[style])
    found = seed_statistics(measured)
    mean, std = found["mean"].values, found["spread"].values
    some = slice(None, None, max(1, measured.sizes["block"] // SHOWN_POINTS))
    panel.errorbar(
        measured["block"].values[some],
        mean[some],
        yerr=np.minimum(std[some], 0.999 * np.abs(mean[some])),
        fmt=MARKERS[style],
        ms=2.6,
        lw=0.6,
        color=colour,
    )
