"""Token cosine and mode ratio against depth of any model at initialisation, one line per depth and seed."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from meanmode.paper_figs.shared.style import COLOURS, plain_ticks


def draw(document: Mapping[str, Any]) -> Figure:
    """TCS and rho against the block; a depth or trunk has a colour, its seeds share it.

    Args:
        document: the output of `mms depth-check --json`.
    """
    figure = Figure(figsize=(9.5, 4.0), layout="constrained")
    cosine, ratio = figure.subplots(1, 2)
    several = len({row["trunk"] for row in document["rows"]}) > 1
    for number, row in enumerate(document["rows"]):
        colour = COLOURS[number % len(COLOURS)]
        label = f"depth {row['depth']}" + (f", {row['trunk']}" if several else "")
        for panel, name in ((cosine, "tcs"), (ratio, "rho")):
            for seed, values in enumerate(np.array(row[name], dtype=float)):
                panel.plot(row["blocks"], values, color=colour, lw=1.2, label=None if seed else label)
        predicted = row["predicted_front"]
        if predicted and predicted["mean"] is not None and predicted["mean"] <= row["blocks"][-1]:
            cosine.axvline(predicted["mean"], color=colour, lw=1, ls="--")
    cosine.axhline(document["front_cosine"], color="0.5", lw=1, ls=":")
    cosine.set(xlabel="block (0: input)", ylabel="token cosine (TCS)")
    ratio.set(xlabel="block (0: input)", ylabel=r"$\rho = |\mu(X)|_F / |c(X)|_F$", yscale="log")
    plain_ticks(ratio.yaxis)
    cosine.legend(fontsize=8)
    return figure
