"""What all figures share: colours that colour-blind readers tell apart, and what a caption must say of a run."""

import json
from typing import Any

import xarray as xr

from theory import Setting

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette."""

MARKERS = ("o", "s", "^", "D", "v", "P")


def base_setting(data: xr.Dataset, **fields: Any) -> Setting:
    """The sweep's base setting with some fields replaced."""
    base = json.loads(data.attrs["configuration"])["base"]
    return Setting(**{**base, **fields})


def run_caption(data: xr.Dataset) -> str:
    """Width, heads, depth, batch and seeds of a sweep."""
    base = base_setting(data)
    depth = int(data["depth"].max()) if "depth" in data.coords else base.depth
    seeds = data.sizes["seed"]
    return f"width {base.width}, {base.heads} heads, {depth} blocks, batch {base.batch}, {seeds} seeds"
