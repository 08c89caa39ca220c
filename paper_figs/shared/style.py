"""What all figures share: widths, fonts, colour-blind safe colours, markers, and a sweep's sizes in words."""

import json
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axis import Axis
from matplotlib.ticker import LogLocator, NullFormatter

from meanmode.theory.setting import Setting

COLUMN, PAGE = 3.5, 7.2
"""Widths of a figure in inches: one or two columns of a printed page. Every figure has one of them."""


LOOK = {
    **{"font.size": 6.5, "axes.titlesize": 7.5, "axes.labelsize": 7, "figure.titlesize": 8},
    **{"xtick.labelsize": 6.5, "ytick.labelsize": 6.5, "legend.fontsize": 6.3, "legend.frameon": False},
    **{"lines.linewidth": 1.0, "axes.linewidth": 0.6, "grid.linewidth": 0.5, "legend.title_fontsize": 6.3},
    **{
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "xtick.minor.width": 0.4,
        "ytick.minor.width": 0.4,
    },
    **{"xtick.major.size": 2.5, "ytick.major.size": 2.5, "xtick.minor.size": 1.5, "ytick.minor.size": 1.5},
    **{"axes.labelpad": 2.5, "axes.titlepad": 4, "lines.markersize": 3.2, "lines.markeredgewidth": 0.6},
    **{"legend.handlelength": 1.8, "legend.labelspacing": 0.3, "legend.columnspacing": 1.3},
    **{"legend.handletextpad": 0.5, "legend.borderaxespad": 0.4, "pdf.fonttype": 42},
}
"""Matplotlib's settings for figures of these widths, whose text stays legible in print."""


COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""The palette of Okabe and Ito."""


MARKERS = ("o", "s", "^", "D", "v", "P")


DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
"""Line styles that tell curves apart where colours are printed in grey."""


ABOVE = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "borderaxespad": 0.2}
"""Place of a legend above its panel, where it covers no data."""


FRONT_AXES = ("depth", "tokens", "weight_std", "input_cosine", "merge", "seed")
"""The axes of the `collapse_front` sweep."""


def plain_ticks(axis: Axis) -> None:
    """Label a logarithmic axis with plain numbers: powers of ten, and the more between the shorter it is."""
    low, high = axis.get_view_interval()
    subs = (1, 2, 3, 5, 7) if high < 12 * low else (1, 3) if high < 100 * low else (1,)
    axis.set_major_locator(LogLocator(subs=subs))
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
    return f"Width {base.width}, {base.heads} heads, {depth} blocks, batch {base.batch}, {seeds} seeds"
