"""Regimes in the number of tokens: the exponent of A - 1 in T at every block, predicted and measured."""

import xarray as xr
from matplotlib.figure import Figure

from meanmode.paper_figs.shared.runs import caption
from meanmode.paper_figs.shared.style import COLOURS, COLUMN, DASHES, MARKERS, check_axes, run_caption
from meanmode.sim.store.sweep_store import unstacked
from meanmode.sweeps.studies.token_exponents import exponent_profile

SHOWN_POINTS = 12
"""Measured blocks that are drawn, at least."""


def draw(data: xr.Dataset) -> Figure:
    """Exponent of A - 1 of the attention writer in T against the block, by adjoint cosine.

    Args:
        data: a `token_law` sweep, along `cell`.

    Raises:
        ValueError: a sweep over other axes.
    """
    check_axes(data, "tokens", "adjoint_cosine", "seed")
    profile = exponent_profile(unstacked(data))
    figure = Figure(figsize=(COLUMN, 2.9), layout="constrained")
    panel = figure.subplots()
    for exponent, words in ((0, "no growth with T"), (1, "A ~ T")):
        panel.axhline(exponent, color="0.5", ls=":", lw=0.8)
        panel.annotate(words, (0, exponent), xytext=(2, 2), textcoords="offset points", color="0.3")
    for style, cosine in enumerate(profile["adjoint_cosine"].values):
        of = profile.sel(adjoint_cosine=cosine)
        colour = COLOURS[style]
        panel.plot(of["block"], of["predicted"], color=colour, ls=DASHES[style])
        some = of.isel(block=slice(0, None, max(1, of.sizes["block"] // SHOWN_POINTS)))
        mark = {"fmt": MARKERS[style], "color": colour, "capsize": 1.2, "label": f"adjoint cosine {cosine:g}"}
        panel.errorbar(some["block"], some["measured"], yerr=some["error"], **mark)
    panel.set(xlabel="block", ylabel="exponent of A - 1 in T", ylim=(-0.35, 1.3))
    panel.grid(alpha=0.25)
    panel.legend(loc="lower left")
    tokens = data["tokens"].values
    caption(
        figure,
        "At initialisation, attention writer. Lines: backward recursion; points: measured, bootstrap "
        f"errors. {run_caption(data)}, {tokens.min()} to {tokens.max()} tokens.",
    )
    return figure
