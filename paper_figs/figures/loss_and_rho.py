"""Loss and the energy ratio rho of every block over training (Fig. 2): a run that collapses, and its twin."""

# N steps, L blocks

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from meanmode.paper_figs.shared.runs import MERGES, caption, needs
from meanmode.paper_figs.shared.style import COLOURS, PAGE
from meanmode.sweeps.studies.run_sizes import run_config, schedule_of
from meanmode.theory.meanfield.front import FRONT_COSINE

RHO = (0.1, 100.0)
"""Ends of the colour scale of rho."""


def draw(*runs: xr.Dataset) -> Figure:
    """Loss above rho against step and block, one column per run, with the front as a contour.

    Args:
        runs: runs with `loss`, `rho` and `tcs`.

    Raises:
        ValueError: a run without one of these.
    """
    for run in runs:
        needs(run, "loss", "rho", "tcs")
    figure = Figure(figsize=(PAGE, 3.3), layout="constrained")
    panels = figure.subplots(2, len(runs), squeeze=False, sharey="row", height_ratios=(1, 1.5))
    for (upper, lower), run in zip(panels.T, runs, strict=True):
        upper.plot(run["step"], run["loss"], "o", ms=1.5, color=COLOURS[0], mew=0)
        upper.grid(alpha=0.25)
        mesh = _draw_rho(lower, run)
        for panel in (upper, lower):
            panel.set_xlim(0, float(run["step"][-1]) + 1)
        upper.set_title(MERGES.get(run_config(run).model.merge, run_config(run).model.merge))
        lower.set_xlabel("optimiser step")
    panels[0, 0].set_ylabel("loss")
    panels[1, 0].set_ylabel("block")
    figure.colorbar(mesh, ax=panels[1], label="rho = |mean| / |centered|", extend="both", pad=0.01)
    model, training = run_config(runs[0]).model, run_config(runs[0]).training
    caption(
        figure,
        f"Measured, one run each; white: TCS = {FRONT_COSINE:g}, the front. Width {model.width}, "
        f"{model.depth} blocks, {model.image_tokens} + {model.text_tokens} tokens, batch {training.batch}, "
        f"1 seed; {schedule_of(run_config(runs[0]))}.",
    )
    return figure


def _draw_rho(panel: Axes, run: xr.Dataset) -> QuadMesh:
    rho, tcs = (
        run[name].dropna("step", how="all").dropna("block", how="all").transpose("block", "step")
        for name in ("rho", "tcs")
    )
    scale = {"norm": LogNorm(*RHO), "cmap": "cividis", "shading": "nearest", "rasterized": True}
    mesh = panel.pcolormesh(rho["step"], rho["block"], rho, **scale)
    panel.contour(tcs["step"], tcs["block"], tcs, levels=[FRONT_COSINE], colors="white", linewidths=0.7)
    return mesh
