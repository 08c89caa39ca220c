"""One run around its onset, step by step (Fig. 3, a to f): what moved, how far, and in which order."""

# N steps, L blocks, W writers

import json

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from meanmode.paper_figs.shared.runs import MARKS, WRITERS, caption, needs
from meanmode.paper_figs.shared.style import COLOURS, PAGE
from meanmode.sweeps.studies.around_onset import (
    deep_quartiles,
    deep_series,
    lasting_moves,
    near_onset,
    onset_of,
)
from meanmode.sweeps.studies.run_sizes import run_config, run_sizes, schedule_of
from meanmode.theory.meanfield.front import FRONT_COSINE
from meanmode.theory.meanfield.profile import energy_ratio

DRAWN = ("loss", "grad_norm", "g_mean", "g_ctr", "grad_rms_q", "grad_rms_k", "tcs", "rho")
"""What a run must hold to be drawn; `functional_step` is drawn where it was measured."""


OBSERVABLES = (*DRAWN, "functional_step", "tcs_image", "amplification", "kappa", "kappa_abs")
"""What an excerpt for this figure holds: also what the label and its evidence are read from."""


SHOWN = 40
"""Steps on either side of the onset that are drawn."""


LEGEND_ROOM = 19
"""Points between a panel and its title, for the legend."""


MODES = {"g_mean": ("G_mean", COLOURS[1]), "g_ctr": ("G_ctr", COLOURS[0])}


WORDS = {
    "loss": "loss",
    "grad_norm": "gradient",
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


KINDS = {"mean_mode": "A collapse", "plain_divergence": "A divergence"}
"""Kind of an onset -> how a title speaks of it."""


def draw(run: xr.Dataset) -> Figure:
    """Loss, writer modes, query and key gradients, TCS in depth, rho, and step sizes around an onset.

    Observables of blocks are medians over the blocks of the deeper half.

    Args:
        run: a run, or an excerpt of `OBSERVABLES`; best with every step measured around the onset.

    Raises:
        ValueError: a run without an onset, without one of `DRAWN`, or without the configuration of a network,
            as imported from a log or watched in another training script.
    """
    needs(run, *DRAWN)
    if "import" in run.attrs or "model" not in json.loads(run.attrs["configuration"]):
        raise ValueError(
            "this figure needs the sizes of the network; "
            "an imported log or a watched run has no configuration"
        )
    shown = near_onset(run, SHOWN)
    onset, moves = onset_of(shown), lasting_moves(shown)
    figure = Figure(figsize=(PAGE, 5.2), layout="constrained")
    panels = figure.subplots(2, 3, sharex=True)
    drawings = (_draw_loss, _draw_modes, _draw_readers, _draw_cosines, _draw_ratio, _draw_sizes)
    delays = {row["signal"]: row["delay"] for row in moves if row["delay"] is not None}
    for panel, draw_panel in zip(panels.flat, drawings, strict=True):
        draw_panel(panel, shown)
    for panel, letter, signals in zip(panels.flat, "abcdef", PANEL_SIGNALS, strict=True):
        panel.set_title(f"({letter}) {panel.get_title()}", pad=LEGEND_ROOM)
        panel.axvline(onset["step"], color="0.35", ls="--", lw=0.8)
        for line, signal in enumerate(signals):
            if abs(delays.get(signal, SHOWN + 1)) <= SHOWN:
                _mark(panel, onset["step"], signal, delays[signal], line)
    for panel in panels[1]:
        panel.set_xlabel("optimiser step")
        panel.set_xlim(float(shown["step"][0]) - 0.5, float(shown["step"][-1]) + 0.5)
    config = run_config(run)
    caption(
        figure,
        f"Measured, medians over deep blocks; onset at step {onset['step']} (dashed); white: TCS = "
        f"{FRONT_COSINE:g}. Triangles: first lasting moves, in steps after the onset.",
        f"One run: {run_sizes([run])}; merge {config.model.merge}; {schedule_of(config)}.",
    )
    return figure


def _draw_loss(panel: Axes, run: xr.Dataset) -> None:
    panel.plot(run["step"], run["loss"], "o", ms=1.9, color=COLOURS[0], label="measured")
    panel.axhline(run.attrs["initial_loss"], color="0.35", lw=0.8, label="initial level")
    panel.set_title("loss")
    panel.set_ylabel("loss")
    panel.set_ylim(bottom=0)
    _finish(panel)


def _draw_modes(panel: Axes, run: xr.Dataset) -> None:
    for name, (label, colour) in MODES.items():
        for writer, marker in MARKS.items():
            values, words = deep_series(run, name, writer), f"{label}, {WRITERS[writer].split()[-1]}"
            face = colour if name == "g_mean" else "none"
            style = {"ms": 2.2, "color": colour, "mfc": face, "mew": 0.6}
            panel.plot(values["step"], values, marker, label=words, **style)
    panel.set_title("writer gradients")
    panel.set_ylabel("Frobenius norm")
    panel.set_yscale("log")
    _finish(panel)


def _draw_readers(panel: Axes, run: xr.Dataset) -> None:
    for name, colour, marker in (("grad_rms_q", COLOURS[0], "o"), ("grad_rms_k", COLOURS[1], "^")):
        values = deep_series(run, name)
        panel.plot(values["step"], values, marker, ms=1.9, color=colour, label=WORDS[name], mew=0)
    panel.set_title("query and key gradients")
    panel.set_ylabel("root mean square")
    panel.set_yscale("log")
    _finish(panel)


def _draw_cosines(panel: Axes, run: xr.Dataset) -> None:
    tcs = run["tcs"].dropna("step", how="all").dropna("block", how="all").transpose("block", "step")
    mesh = panel.pcolormesh(
        tcs["step"], tcs["block"], tcs, vmin=0, vmax=1, cmap="cividis", shading="nearest", rasterized=True
    )
    panel.contour(tcs["step"], tcs["block"], tcs, levels=[FRONT_COSINE], colors="white", linewidths=0.7)
    panel.figure.colorbar(mesh, ax=panel, label="TCS", pad=0.02)
    panel.set_title("token cosine")
    panel.set_ylabel("block")


def _draw_ratio(panel: Axes, run: xr.Dataset) -> None:
    measured = run[["rho"]].dropna("step", how="all")
    low, middle, high = deep_quartiles(measured, "rho")
    cosine, model = deep_series(run, "tcs"), run_config(run).model
    tokens = model.image_tokens + model.text_tokens
    predicted = energy_ratio(tokens, cosine.where(cosine < 1).values)
    panel.plot(cosine["step"], predicted, color="0.2", lw=0.8, label="law E1 of TCS")
    panel.fill_between(measured["step"], low, high, color=COLOURS[0], alpha=0.25, lw=0, label="quartiles")
    panel.plot(measured["step"], middle, "o", ms=1.9, color=COLOURS[0], label="measured", mew=0)
    panel.set_title("rho = |mean| / |centered|")
    panel.set_ylabel("ratio of norms")
    panel.set_yscale("log")
    _finish(panel)


def _draw_sizes(panel: Axes, run: xr.Dataset) -> None:
    sizes = {"grad_norm": ("gradient norm", COLOURS[1], "^")}
    if "functional_step" in run and bool(run["functional_step"].notnull().any()):
        sizes["functional_step"] = ("functional step", COLOURS[2], "o")
    for name, (label, colour, marker) in sizes.items():
        panel.plot(run["step"], run[name], marker, ms=1.9, color=colour, label=label, mew=0)
    panel.set_title("gradient and step" if len(sizes) > 1 else "gradient")
    panel.set_ylabel("norm; rms" if len(sizes) > 1 else "norm")
    panel.set_yscale("log")
    _finish(panel)


def _finish(panel: Axes) -> None:
    """Grid, legend above the panel, and room at the top for the marks."""
    transform = panel.yaxis.get_transform()
    low, high = transform.transform(panel.get_ylim())
    panel.set_ylim(top=float(transform.inverted().transform(high + 0.16 * (high - low))))
    panel.grid(alpha=0.25)
    above = {"loc": "lower left", "bbox_to_anchor": (-0.02, 0.99), "borderaxespad": 0}
    legend = panel.legend(ncols=2, columnspacing=1.2, handletextpad=0.4, labelspacing=0.3, **above)
    legend.set_in_layout(False)  # its room is the distance of the title


def _mark(panel: Axes, onset: int, signal: str, delay: int, line: int) -> None:
    """A triangle at the top of a panel where a signal first moved, with its delay."""
    first, last = panel.get_xlim()
    place = (onset + delay - first) / (last - first)
    right = place < 0.3 or (delay >= 0 and place < 0.7)  # towards the middle from the outer parts
    height, transform = 0.955 - 0.075 * line, panel.get_xaxis_transform()
    panel.annotate(
        f"{WORDS[signal]} {delay:+d}",
        xy=(onset + delay, height),
        xytext=(8 if right else -8, 0),
        xycoords=transform,
        textcoords="offset points",
        ha="left" if right else "right",
        va="center",
        bbox={"boxstyle": "round,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.8},
    )
    panel.plot(onset + delay, height, "v", ms=3.8, color="black", transform=transform)
