"""A collapse in training, step by step (Fig. 3, a to f): what moved, how far, and in which order."""

# N steps, L blocks, W writers

from collections.abc import Mapping
from typing import Any

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from meanmode.paper_figs.shared.runs import WRITERS, caption, needs
from meanmode.paper_figs.shared.style import COLOURS
from meanmode.sweeps.studies.around_onset import (
    FAR,
    NEAR,
    deep_quartiles,
    deep_series,
    event_step,
    factors,
    lasting_moves,
    onset_of,
)
from meanmode.sweeps.studies.run_sizes import run_config, run_sizes, schedule_of
from meanmode.theory.meanfield.predicted_front import FRONT_COSINE
from meanmode.theory.meanfield.profile import energy_ratio

OBSERVABLES = (
    *("loss", "grad_norm", "functional_step", "g_mean", "g_ctr", "grad_rms_q", "grad_rms_k"),
    *("tcs", "tcs_image", "rho", "amplification", "kappa", "kappa_abs"),
)
"""What the store holds: what is drawn, what the label and its evidence are read from, and the coherence."""


SHOWN = 40
"""Steps on either side of the onset that are drawn."""


MODES = {"g_mean": ("G_mean", COLOURS[1]), "g_ctr": ("G_ctr", COLOURS[0])}


MARKS = {"attn": "o", "ffn": "^"}


WORDS = {
    "loss": "loss",
    "grad_norm": "gradient norm",
    "tcs": "TCS",
    "rho": "rho",
    "mode_ratio": "G_mean/G_ctr",
    "g_mean": "G_mean",
    "g_ctr": "G_ctr",
    "grad_rms_q": "G(Q)",
    "grad_rms_k": "G(K)",
    "amplification": "A",
}
"""Signal of the evidence -> its name in a figure."""


PANEL_SIGNALS = (
    *(("loss",), ("g_mean", "g_ctr"), ("grad_rms_q", "grad_rms_k")),
    *(("tcs",), ("rho",), ("grad_norm",)),
)
"""Signals whose lasting moves are marked, by panel."""


PAPER = (
    "The paper's (400 blocks, width 1024, T = 256 + text, batch 1024): G_mean x155 (W_O) and x61 (W_2), "
    "G_ctr x1 and x3, gradients of queries and keys down by four orders of magnitude, loss 0.79 to 1.94."
)


def draw(run: xr.Dataset) -> Figure:
    """Loss, writer modes, query and key gradients, TCS in depth, rho, and step sizes around an onset.

    Observables of blocks are medians over the blocks of the deeper half.

    Args:
        run: an excerpt of `OBSERVABLES` with every step measured around an onset.

    Raises:
        ValueError: a run without an onset, with too few steps around it, or with other observables.
    """
    needs(run, *OBSERVABLES)
    onset, moves = onset_of(run)["step"], lasting_moves(run)
    shown = run.sel(step=slice(onset - SHOWN, onset + SHOWN))
    figure = Figure(figsize=(13.5, 8.6), layout="constrained")
    panels = figure.subplots(2, 3, sharex=True)
    drawings = (_draw_loss, _draw_modes, _draw_readers, _draw_cosines, _draw_ratio, _draw_sizes)
    delays = {row["signal"]: row["delay"] for row in moves if row["delay"] is not None}
    for panel, draw_panel in zip(panels.flat, drawings, strict=True):
        draw_panel(panel, shown)
    for panel, letter, signals in zip(panels.flat, "abcdef", PANEL_SIGNALS, strict=True):
        panel.set_title(f"({letter}) {panel.get_title()}", fontsize=9.5)
        panel.axvline(onset, color="0.35", ls="--", lw=1)
        for line, signal in enumerate(signals):
            if abs(delays.get(signal, SHOWN + 1)) <= SHOWN:
                _mark(panel, onset, signal, delays[signal], line)
    for panel in panels[1]:
        panel.set_xlabel("optimiser step")
    config = run_config(run)
    figure.suptitle(
        f"A collapse in training, onset at step {onset} (dashed); merge {config.model.merge}; "
        f"{schedule_of(config)}\n({run_sizes([run])})",
        fontsize=10,
    )
    caption(figure, _order(moves), _factors(run), PAPER)
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
            values, words = deep_series(run, name, writer), f"{label}, {WRITERS[writer]}"
            panel.plot(values["step"], values, marker, ms=3, color=colour, label=words, mew=0)
    panel.set_title("modes of the writer gradients, deep median")
    panel.set_ylabel("Frobenius norm")
    panel.set_yscale("log")
    _finish(panel, "lower left")


def _draw_readers(panel: Axes, run: xr.Dataset) -> None:
    for name, colour, marker in (("grad_rms_q", COLOURS[0], "o"), ("grad_rms_k", COLOURS[1], "^")):
        values = deep_series(run, name)
        panel.plot(values["step"], values, marker, ms=3, color=colour, label=WORDS[name], mew=0)
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
    low, middle, high = deep_quartiles(run, "rho")
    cosine, model = deep_series(run, "tcs"), run_config(run).model
    tokens = model.image_tokens + model.text_tokens
    predicted = energy_ratio(tokens, cosine.where(cosine < 1).values)
    panel.plot(cosine["step"], predicted, color="0.2", lw=1, label="law E1 of median TCS")
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


def _mark(panel: Axes, onset: int, signal: str, delay: int, line: int) -> None:
    """A triangle at the top of a panel where a signal first moved, with its delay."""
    panel.annotate(
        f"{WORDS[signal]} {delay:+d}",
        xy=(onset + delay, 1 - 0.075 * line),
        xytext=(8 if delay >= 0 else -8, -7),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="left" if delay >= 0 else "right",
        fontsize=8,
        bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.8},
    )
    height, transform = 0.985 - 0.075 * line, panel.get_xaxis_transform()
    panel.plot(onset + delay, height, "v", ms=6, color="black", transform=transform)


def _order(moves: list[Mapping[str, Any]]) -> str:
    """The delays of the lasting moves, in steps after the onset."""
    lasting = [row for row in moves if row["delay"] is not None]
    rest = ", ".join(WORDS[row["signal"]] for row in moves if row["delay"] is None)
    needed = {row["threshold"] for row in moves if row["signal"] != "loss"}
    loss = next((f"; loss {row['threshold']:g}" for row in moves if row["signal"] == "loss"), "")
    return (
        f"Points: measured. Lasting moves by a factor ({', '.join(f'{one:g}' for one in needed)}{loss}) in "
        "their order, in steps after the onset, triangles: "
        + ", ".join(f"{WORDS[row['signal']]} {row['delay']:+d}" for row in lasting)
        + (f"; no lasting move: {rest}." if rest else ".")
    )


def _factors(run: xr.Dataset) -> str:
    said = ", ".join(
        f"{WORDS[row['signal']]} {row['writer'] or ''}".rstrip()
        + f" x{row['at_event']:.3g} (x{row['after']:.1e})"
        for row in factors(run)
    )
    return (
        f"Deep medians at the event (step {event_step(run)}, the largest gradient norm near the onset) and, "
        f"in brackets, {NEAR} to {FAR} steps after it, over those {NEAR} to {FAR} steps before: {said}."
    )
