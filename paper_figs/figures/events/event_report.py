"""The report on a gradient spike (Figs. 9 and 10): the steps around it, and the largest gradients."""

# N steps

import json
import re
from collections.abc import Mapping
from typing import Any

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from meanmode.paper_figs.shared.runs import caption, needs
from meanmode.paper_figs.shared.style import COLOURS, PAGE
from meanmode.sweeps.studies.run_sizes import run_config, schedule_of

SHOWN = 25
"""Steps on either side of the spike that are drawn."""


FAMILIES = {
    "operator.proj": ("W_O", "////"),
    "ffn.w2": ("W_2", "...."),
    "ffn.w13": ("W_13", ""),
    "operator.v_proj": ("W_V", "xxxx"),
    "operator.q_proj": ("W_Q", "----"),
    "operator.k_proj": ("W_K", "||||"),
}
"""Parameter of a block -> its name in a figure, and the hatch of its bars."""


ENDS = ("embedding, projection", "")


def draw(run: xr.Dataset) -> Figure:
    """Loss and unclipped gradient norm around the spike, and the gradients that were largest at it.

    Args:
        run: a run whose events were stored with it, one of them a gradient spike.

    Raises:
        ValueError: a run without one.
    """
    needs(run, "loss", "grad_norm")
    spikes = [event for event in json.loads(run.attrs.get("events", "[]")) if event["signal"] == "grad_norm"]
    if not spikes:
        raise ValueError("this figure draws the report on a gradient spike; the run has none")
    spike = max(spikes, key=lambda event: event["grad_norm"])
    figure = Figure(figsize=(PAGE, 3.0), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.25))
    _draw_steps(left.subplots(2, 1, sharex=True), run, spike["step"])
    _draw_largest(right.subplots(), spike)
    model, training = run_config(run).model, run_config(run).training
    caption(
        figure,
        f"Measured, one run: gradient spike at step {spike['step']} (dashed); right: the "
        f"{len(spike['largest'])} parameters with the largest gradients. Width {model.width}, {model.depth} "
        f"blocks, {model.image_tokens} + {model.text_tokens} tokens, batch {training.batch}, 1 seed; "
        f"{schedule_of(run_config(run))}.",
    )
    return figure


def _draw_steps(panels: Any, run: xr.Dataset, step: int) -> None:
    near = run.sel(step=slice(step - SHOWN, step + SHOWN))
    for panel, name, label in zip(panels, ("loss", "grad_norm"), ("loss", "gradient norm"), strict=True):
        panel.plot(near["step"], near[name], "o", ms=2.4, color=COLOURS[0], mew=0)
        panel.axvline(step, color="0.35", ls="--", lw=0.8)
        panel.set_ylabel(label)
        panel.grid(alpha=0.25)
    panels[1].set_yscale("log")
    panels[1].set_xlabel("optimiser step")


def _draw_largest(panel: Axes, spike: Mapping[str, Any]) -> None:
    """Bars of the largest gradient norms, labelled by parameter, with the hatch of their family."""
    shown: dict[str, tuple[str, str]] = {}
    kinds = [*FAMILIES, "ends"]
    for row, entry in enumerate(spike["largest"]):
        label, family = _named(entry["name"])
        words, hatch = FAMILIES.get(family, ENDS)
        colour = COLOURS[kinds.index(family)] if family in FAMILIES else "0.7"
        panel.barh(row, entry["norm"], color=colour, hatch=hatch, edgecolor="white", lw=0)
        panel.text(entry["norm"], row, f" {label}", va="center", fontsize=6)
        shown[words] = (colour, hatch)
    panel.set_xlim(right=1.45 * spike["largest"][0]["norm"])
    panel.set_ylim(len(spike["largest"]) - 0.4, -0.6)
    panel.set_yticks([])
    panel.set(xlabel="gradient norm of the parameter", ylabel="parameters, largest first")
    handles = [
        Patch(facecolor=colour, hatch=hatch, edgecolor="white", lw=0, label=words)
        for words, (colour, hatch) in shown.items()
    ]
    panel.legend(handles=handles, loc="lower right")


def _named(parameter: str) -> tuple[str, str]:
    """Label and family of a parameter; blocks are counted from 1, as in all figures."""
    of_block = re.fullmatch(r"blocks\.(\d+)\.(.+)\.weight", parameter)
    if of_block is None:
        return re.sub(r"^patch_embed\.|_proj", "", parameter).replace(".", " "), "ends"
    return f"block {int(of_block[1]) + 1}", of_block[2]
