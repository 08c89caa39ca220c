"""Fronts of every mixer and merge: prediction as bars, measured seeds as points."""

import json

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from meanmode.paper_figs.shared.runs import caption
from meanmode.paper_figs.shared.style import COLOURS, PAGE, base_setting
from meanmode.theory.meanfield.front import FRONT_COSINE
from meanmode.theory.setting import Setting


def draw(data: xr.Dataset) -> Figure:
    """One row per case: the predicted front and its spread, and the front of every seed.

    Args:
        data: a `mixers` sweep, a list of cases along `cell`.

    Raises:
        ValueError: a sweep over a grid, or one that does not vary mixers.
    """
    if data.attrs.get("grid", True) or "mixer" not in data.coords:
        raise ValueError("this figure draws the sweep `mixers`, a list of cases that differ in their mixer")
    cases = _cases(data)
    figure = Figure(figsize=(PAGE, 1.0 + 0.155 * len(cases)), layout="constrained")
    panel = figure.subplots()
    for row, cells in enumerate(cases):
        _draw_case(panel, data.isel(cell=cells), row, first=row == 0)
    panel.set_yticks(range(len(cases)), [_label(_setting(data.isel(cell=cells))) for cells in cases])
    panel.set_ylim(len(cases) - 0.4, -0.6)
    panel.set_xlim(0, 1.2 * max(panel.get_xlim()[1], 1))
    panel.set_xlabel(f"front: block at which TCS reaches {FRONT_COSINE:g}")
    panel.set_ylabel("case")
    panel.grid(axis="x", alpha=0.25)
    panel.legend(loc="lower right")
    base = base_setting(data)
    caption(
        figure,
        "Untrained stacks. Bars: mean-field recursion, mean and spread; points: measured seeds. Width "
        f"{base.width}, {base.heads} heads, {base.tokens} tokens, batch {base.batch}, {len(cases[0])} "
        "seeds.",
    )
    return figure


def _cases(data: xr.Dataset) -> list[np.ndarray]:
    """The cells of every case, in the order of the sweep."""
    axes = [axis for axis in json.loads(data.attrs["axes"]) if axis != "seed"]
    keys = list(zip(*(data[axis].values.tolist() for axis in axes), strict=True))
    return [np.array([index for index, key in enumerate(keys) if key == one]) for one in dict.fromkeys(keys)]


def _setting(cells: xr.Dataset) -> Setting:
    axes = [axis for axis in json.loads(cells.attrs["axes"]) if axis != "seed"]
    return base_setting(cells, **{axis: cells[axis].values[0] for axis in axes})


def _label(setting: Setting) -> str:
    words = [setting.mixer if setting.merge == "plain" else setting.merge]
    if setting.mixer == "lazy":
        words.append(f"l = {setting.mixer_share:g}")
    if setting.merge in ("layerscale", "rezero", "deepnorm", "highway"):
        words.append(f"gain {setting.residual_gain:g}")
    if setting.ffn_ratio != Setting().ffn_ratio:
        words.append(f"FFN ratio {setting.ffn_ratio:g}")
    if setting.input_cosine:
        words.append(f"input cosine {setting.input_cosine:g}")
    return ", ".join(words)


def _draw_case(panel: Axes, cells: xr.Dataset, row: int, *, first: bool) -> None:
    predicted, spread = (float(cells[name][0]) for name in ("predicted_front", "predicted_front_std"))
    if np.isfinite(predicted):
        panel.plot(
            [predicted - spread, predicted + spread],
            [row, row],
            color=COLOURS[0],
            lw=3.8,
            alpha=0.35,
            solid_capstyle="butt",
            label="predicted" if first else None,
        )
        panel.plot([predicted], [row], marker="|", ms=7, color=COLOURS[0], ls="none")
    fronts = cells["front"].values
    shown = fronts[np.isfinite(fronts)]
    label = "measured" if first else None
    panel.plot(shown, np.full(len(shown), row), "o", ms=2.2, color=COLOURS[1], alpha=0.7, label=label)
    _say_missing(panel, cells, row)


def _say_missing(panel: Axes, cells: xr.Dataset, row: int) -> None:
    """How many seeds have no front within the depth, and what the theory says where it predicts none."""
    predicted, fronts = float(cells["predicted_front"][0]), cells["front"].values
    shown, depth = fronts[np.isfinite(fronts)], _setting(cells).depth
    missing = len(fronts) - len(shown)
    theory = "; outside the theory"
    if np.isfinite(float(cells["predicted_fraction"][0])):
        theory = "" if np.isfinite(predicted) else "; none predicted"
    if missing == len(fronts):
        panel.annotate(f"none in {depth} blocks{theory}", (1, row), va="center", color="0.35")
    elif missing or theory:
        text = f"{missing} of {len(fronts)} none" if missing else theory.removeprefix("; ")
        panel.annotate(text, (shown.max() + 2, row), va="center", color="0.35")
