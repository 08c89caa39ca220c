"""What all figures share: colour-blind safe colours, markers, and the wording of a sweep's sizes."""

import json
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axis import Axis
from matplotlib.ticker import LogLocator, NullFormatter

from meanmode.theory.setting import Setting

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""The palette of Okabe and Ito."""


MARKERS = ("o", "s", "^", "D", "v", "P")


FRONT_AXES = ("depth", "tokens", "weight_std", "input_cosine", "merge", "seed")
"""The axes of the `collapse_front` sweep."""


def plain_ticks(axis: Axis) -> None:
    """Label a logarithmic axis with plain numbers: powers of ten, and 2, 3, 5 times them if it is short."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5) if high < 50 * low else (1,)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def base_setting(data: xr.Dataset, **fields: Any) -> Setting:
    """The sweep's base setting with some fields replaced."""
    base = json.loads(data.attrs["configuration"])["base"]
    return Setting(**{**base, **fields})


def check_axes(data: xr.Dataset, *drawn: str) -> None:
    """Refuse a sweep that varies other axes than those a figure draws.

    Raises:
        ValueError: naming the axis.
    """
    axes = json.loads(data.attrs["axes"])
    missing, extra = sorted(set(drawn) - set(axes)), sorted(set(axes) - set(drawn))
    if missing or extra:
        named = f"does not vary {missing[0]}" if missing else f"also varies {extra[0]}"
        raise ValueError(f"this figure draws sweeps over {', '.join(drawn)}; the store {named}")


def run_caption(data: xr.Dataset) -> str:
    """Width, heads, depth, batch and seeds of a sweep."""
    base = base_setting(data)
    depth = int(data["depth"].max()) if "depth" in data.coords else base.depth
    seeds = len(np.unique(data["seed"].values))
    return f"width {base.width}, {base.heads} heads, {depth} blocks, batch {base.batch}, {seeds} seeds"
