"""A collapse in training, step by step (Fig. 3, a to f): what moved, how far, and in which order."""

# N steps, L blocks, W writers

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from meanmode.paper_figs.shared.runs import (
    FAR,
    NEAR,
    WRITERS,
    caption,
    deep,
    event_step,
    needs,
    onset_of,
    rate_of,
    run_sizes,
    stretch,
    tokens_of,
)
from meanmode.paper_figs.shared.style import COLOURS
from meanmode.theory.meanfield.predicted_front import FRONT_COSINE
from meanmode.theory.meanfield.profile import energy_ratio

OBSERVABLES = ("loss", "grad_norm", "functional_step", "g_mean", "g_ctr")


OBSERVABLES += ("grad_rms_q", "grad_rms_k", "tcs", "tcs_image", "rho")


OBSERVABLES += ("amplification", "kappa", "kappa_abs")
"""What the store holds: what is drawn, what the label and its evidence are read off, and the coherence."""


SHOWN = 40
"""Steps on either side of the onset that are drawn."""


MODES = {"g_mean": ("G_mean", COLOURS[1]), "g_ctr": ("G_ctr", COLOURS[0])}


MARKS = {"attn": "o", "ffn": "^"}


WORDS = {
    **{
        "loss": "loss",
        "grad_norm": "gradient norm",
        "tcs": "TCS",
        "rho": "rho",
        "mode_ratio": "G_mean/G_ctr",
    },
    **{"g_mean": "G_mean", "g_ctr": "G_ctr", "grad_rms_q": "G(Q)", "grad_rms_k": "G(K)"},
    "amplification": "A",
}
"""Signal of the evidence -> its name in a figure."""


PAPER = (
    "The paper's (400 blocks, width 1024, T = 256 + text, batch 1024): G_mean x155 (W_O) and x61 (W_2), "
    "G_ctr x1 and x3, gradients of queries and keys down by four orders of magnitude, loss 0.79 to 1.94."
)


def draw(run: xr.Dataset) -> Figure:
    """Loss, writer modes, query and key gradients, TCS in depth, rho, and step sizes around an onset.

    Observables of blocks are medians over the blocks of the deeper half. The event is the step of
    `training_runs.event_step`; factors are over the median of the steps `NEAR` to `FAR` before it.

    Args:
        run: an excerpt of `OBSERVABLES` with every step measured around an onset.

    Raises:
        ValueError: a run without an onset, with too few steps around it, or with another set of observables.
    """
    needs(run, *OBSERVABLES)
    onset = onset_of(run)
    shown = run.sel(step=slice(onset["step"] - SHOWN, onset["step"] + SHOWN))
    figure = Figure(figsize=(13.5, 8.6), layout="constrained")
    panels = figure.subplots(2, 3, sharex=True)
    _draw_loss(panels[0, 0], shown)
    _draw_modes(panels[0, 1], shown)
    _draw_readers(panels[0, 2], shown)
    _draw_cosines(panels[1, 0], shown)
    _draw_ratio(panels[1, 1], shown)
    _draw_sizes(panels[1, 2], shown)
    signals = (
        ("loss",),
        ("g_mean", "g_ctr"),
        ("grad_rms_q", "grad_rms_k"),
        ("tcs",),
        ("rho",),
        ("grad_norm",),
    )
    for panel, letter, named in zip(panels.flat, "abcdef", signals, strict=True):
        panel.set_title(f"({letter}) {panel.get_title()}", fontsize=9.5)
        panel.axvline(onset["step"], color="0.35", ls="--", lw=1)
        _mark(panel, onset, named)
    for panel in panels[1]:
        panel.set_xlabel("optimiser step")
    figure.suptitle(
        f"A collapse in training, onset at step {onset['step']} (dashed); merge plain; {rate_of(run)}\n"
        f"({run_sizes([run])})",
        fontsize=10,
    )
    caption(figure, _order(onset), _factors(run), PAPER)
    return figure


def _draw_loss(panel: Axes, run: xr.Dataset) -> None:
    panel.plot(run["step"], run["loss"], "o", ms=3, color=COLOURS[0], label="measured, every step")
    panel.axhline(run.attrs["initial_loss"], color="0.35", lw=1, label="initial level")
    panel.set_title("loss")
    panel.set_ylabel("loss (mean square of a velocity)")
    panel.set_ylim(bottom=0)
    _finish(panel, "lower right")


def _draw_modes(panel: Axes, run: xr.Dataset) -> None:
    for name, (label, colour) in MODES.items():
        for writer, marker in MARKS.items():
            values = deep(run[name]).sel(writer=writer).median("block")
            panel.plot(
                run["step"], values, marker, ms=3, color=colour, label=f"{label}, {WRITERS[writer]}", mew=0
            )
    panel.set_title("modes of the writer gradients, deep median")
    panel.set_ylabel("Frobenius norm")
    panel.set_yscale("log")
    _finish(panel, "lower left")


def _draw_readers(panel: Axes, run: xr.Dataset) -> None:
    for name, colour, marker in (("grad_rms_q", COLOURS[0], "o"), ("grad_rms_k", COLOURS[1], "^")):
        values = deep(run[name]).median("block")
        panel.plot(run["step"], values, marker, ms=3, color=colour, label=WORDS[name], mew=0)
    panel.set_title("gradients of queries and keys, deep median")
    panel.set_ylabel("root mean square")
    panel.set_yscale("log")
    _finish(panel, "lower left")


def _draw_cosines(panel: Axes, run: xr.Dataset) -> None:
    tcs = run["tcs"].transpose("block", "step")
    mesh = panel.pcolormesh(
        run["step"], run["block"], tcs, vmin=0, vmax=1, cmap="cividis", shading="nearest", rasterized=True
    )
    panel.contour(run["step"], run["block"], tcs, levels=[FRONT_COSINE], colors="white", linewidths=0.9)
    panel.figure.colorbar(mesh, ax=panel, label="TCS", pad=0.02)
    panel.set_title(f"token cosine; white: TCS = {FRONT_COSINE:g}, the front")
    panel.set_ylabel("block")


def _draw_ratio(panel: Axes, run: xr.Dataset) -> None:
    low, middle, high = deep(run["rho"]).quantile([0.25, 0.5, 0.75], "block")
    cosine = deep(run["tcs"]).astype(float).median("block")
    predicted = energy_ratio(sum(tokens_of(run)), cosine.where(cosine < 1).values)
    panel.plot(run["step"], predicted, color="0.2", lw=1, label="law E1 of median TCS")
    panel.fill_between(run["step"], low, high, color=COLOURS[0], alpha=0.25, lw=0, label="quartiles")
    panel.plot(run["step"], middle, "o", ms=3, color=COLOURS[0], label="measured, median", mew=0)
    panel.set_title("rho = |mean| / |centered| of deep blocks")
    panel.set_ylabel("ratio of norms")
    panel.set_yscale("log")
    _finish(panel, "center left")


def _draw_sizes(panel: Axes, run: xr.Dataset) -> None:
    for name, label, colour, marker in (
        ("grad_norm", "gradient norm, before clipping", COLOURS[1], "^"),
        ("functional_step", "functional step Delta (rms)", COLOURS[2], "o"),
    ):
        panel.plot(run["step"], run[name], marker, ms=3, color=colour, label=label, mew=0)
    panel.set_title("sizes of gradient and step")
    panel.set_ylabel("norm; rms of features")
    panel.set_yscale("log")
    _finish(panel, "lower left")


def _finish(panel: Axes, corner: str) -> None:
    """Grid and legend, and room at the top for the marks."""
    transform = panel.yaxis.get_transform()
    low, high = transform.transform(panel.get_ylim())
    panel.set_ylim(top=float(transform.inverted().transform(high + 0.16 * (high - low))))
    panel.grid(alpha=0.25)
    panel.legend(fontsize=7.5, framealpha=0.85, edgecolor="none", loc=corner)


def _mark(panel: Axes, onset: dict, signals: tuple[str, ...]) -> None:
    """Triangles at the top of a panel where its signals first moved, with their delay."""
    for row, signal in enumerate(signals):
        first = onset["evidence"].get(signal, {}).get("first_step")
        if first is None or abs(first - onset["step"]) > SHOWN:
            continue
        delay = first - onset["step"]
        panel.annotate(
            f"{WORDS[signal]} {delay:+d}",
            xy=(first, 1 - 0.075 * row),
            xytext=(8 if delay >= 0 else -8, -7),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="left" if delay >= 0 else "right",
            fontsize=8,
            bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.8},
        )
        panel.plot(
            first, 0.985 - 0.075 * row, "v", ms=6, color="black", transform=panel.get_xaxis_transform()
        )


def _order(onset: dict) -> str:
    """The delays of the evidence, in steps behind the onset."""
    moved = {name: found["first_step"] for name, found in onset["evidence"].items()}
    known = sorted((step - onset["step"], WORDS[name]) for name, step in moved.items() if step is not None)
    lasting = ", ".join(f"{word} {delay:+d}" for delay, word in known)
    rest = ", ".join(WORDS[name] for name, step in moved.items() if step is None)
    return (
        "Points: measured. Order of first lasting moves (threefold; loss 1.25-fold), in steps behind the "
        f"onset, triangles: {lasting}" + (f"; not for three rows: {rest}." if rest else ".")
    )


def factors(run: xr.Dataset) -> dict[str, tuple[float, float]]:
    """Deep medians at the event, and the median of those behind it, over the median of those before.

    Returns:
        Of `g_mean attn`, `g_ctr ffn` and the like, and of `grad_rms_q` and `grad_rms_k`.
    """
    event, found = event_step(run), {}
    series = {
        **{f"{name} {w}": deep(run[name]).sel(writer=w).median("block") for name in MODES for w in MARKS},
        **{name: deep(run[name]).median("block") for name in ("grad_rms_q", "grad_rms_k")},
    }
    before, behind = (stretch(run, before=side)["step"] for side in (True, False))
    for name, values in series.items():
        usual = float(values.sel(step=before).median())
        found[name] = (
            float(values.sel(step=event)) / usual,
            float(np.median(values.sel(step=behind))) / usual,
        )
    return found


def _factors(run: xr.Dataset) -> str:
    found = factors(run)
    said = ", ".join(
        f"{WORDS[name]}{f' {writer}' if writer else ''} x{at:.3g} (x{behind:.1e})"
        for (name, _, writer), (at, behind) in ((key.partition(" "), value) for key, value in found.items())
    )
    return (
        f"Deep medians at the event (step {event_step(run)}, the largest gradient norm near the onset) and, "
        f"in brackets, {NEAR} to {FAR} steps behind it, over those {NEAR} to {FAR} steps before: {said}."
    )
