"""Writers of standard size (Fig. 7): deep blocks are homogeneous from the first step, as predicted."""

# N steps, L blocks, W writers

import dataclasses

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from meanmode.paper_figs.shared.runs import MARKS, WRITERS, caption, needs
from meanmode.paper_figs.shared.style import COLOURS, DASHES, MARKERS, PAGE
from meanmode.sweeps.studies.run_sizes import run_config, schedule_of
from meanmode.theory.meanfield.front import FRONT_COSINE, FrontPrediction
from meanmode.theory.meanfield.predicted_front import predict_front
from meanmode.theory.meanfield.profile import predict_profile
from meanmode.theory.setting import Setting

OBSERVABLES = ("loss", "tcs", "tcs_image", "retention", "var_gain", "row_div", "g_mean", "g_ctr")
"""What the store holds."""


PROFILES = {"retention": "Ret(c<-c)", "var_gain": "VarGain", "row_div": "RowDiv"}


EVERY = 8
"""Blocks from one point of a profile to the next."""


def draw(run: xr.Dataset) -> Figure:
    """TCS against step and block with the predicted front, and profiles of the first step.

    Args:
        run: a run whose writers do not begin at zero, with `OBSERVABLES`.

    Raises:
        ValueError: a run without one of these.
    """
    needs(run, *OBSERVABLES)
    setting = dataclasses.replace(run_config(run).model.setting(), rope=False)  # the theory has no positions
    figure = Figure(figsize=(PAGE, 2.7), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.3, 1, 1))
    _draw_front(left, run, predict_front(setting))
    first = run.isel(step=0)
    _draw_profiles(middle, first, setting)
    for style, (name, label) in enumerate((("g_mean", "G_mean"), ("g_ctr", "G_ctr"))):
        for writer, marker in MARKS.items():
            of = first[name].sel(writer=writer).isel(block=slice(EVERY, None, EVERY))
            face = COLOURS[style] if name == "g_mean" else "none"
            label_of = f"{label}, {WRITERS[writer].split()[-1]}"
            right.plot(of["block"], of, marker, color=COLOURS[style], mfc=face, label=label_of)
    right.set(ylabel="Frobenius norm", title="writer gradients, step 1", ylim=(1e-7, 10))
    for panel in (middle, right):
        panel.set_yscale("log")
        panel.set_xlabel("block")
        panel.grid(alpha=0.25)
        panel.legend(loc="lower left")
    model, training = run_config(run).model, run_config(run).training
    caption(
        figure,
        "Lines and dashed band: mean-field recursion, front and its std. Measured: TCS with its front, "
        f"{FRONT_COSINE:g} (white), and points. Width {model.width}, {model.depth} blocks, "
        f"{model.image_tokens} + {model.text_tokens} tokens, batch {training.batch}, 1 seed; "
        f"{schedule_of(run_config(run))}.",
    )
    return figure


def _draw_front(panel: Axes, run: xr.Dataset, predicted: FrontPrediction) -> None:
    tcs = run["tcs"].dropna("step", how="all").transpose("block", "step")
    steps, blocks = tcs["step"], tcs["block"]
    mesh = panel.pcolormesh(
        steps, blocks, tcs, vmin=0, vmax=1, cmap="cividis", shading="nearest", rasterized=True
    )
    panel.contour(steps, blocks, tcs, levels=[FRONT_COSINE], colors="white", linewidths=0.9)
    if predicted.front is not None and predicted.front_std is not None:
        ends = predicted.front - predicted.front_std, predicted.front + predicted.front_std
        panel.axhspan(*ends, color="white", alpha=0.3, lw=0)
        panel.axhline(predicted.front, color="black", ls="--", lw=1)
    panel.figure.colorbar(mesh, ax=panel, label="TCS", pad=0.02)
    panel.set(xlabel="optimiser step", ylabel="block", title="token cosine")


def _draw_profiles(panel: Axes, first: xr.Dataset, setting: Setting) -> None:
    predicted = predict_profile(setting)
    for style, (name, label) in enumerate(PROFILES.items()):
        of, theory = first[name], predicted[name]
        of = of.sel(writer="attn") if "writer" in of.dims else of
        theory = theory if theory.ndim == 1 else theory[:, 0]
        blocks = of["block"].values[len(of) - len(theory) :]
        panel.plot(blocks, theory, color=COLOURS[style], ls=DASHES[style])
        of = of.isel(block=slice(EVERY, None, EVERY))
        panel.plot(of["block"], of, MARKERS[style], color=COLOURS[style], label=label)
    panel.set(ylabel="ratio", title="attention, step 1")
