"""What figures of training runs share: required observables, and captions."""

import textwrap

import xarray as xr
from matplotlib.figure import Figure

WRITERS = {"attn": "attention writer W_O", "ffn": "FFN writer W_2"}
"""Writer coordinate -> its name in a figure."""


MARKS = {"attn": "o", "ffn": "^"}
"""Writer coordinate -> its marker."""


MERGES = {"plain": "plain", "mv_split": "MV-Split", "layerscale": "LayerScale"}
"""Merge of a configuration -> its name in a figure."""


def needs(run: xr.Dataset, *names: str) -> None:
    """Refuse a run that lacks an observable.

    Raises:
        ValueError: naming the observable.
    """
    for name in names:
        if name not in run:
            raise ValueError(f"this figure draws {', '.join(names)}; the run has no {name}")


def caption(figure: Figure, *paragraphs: str) -> None:
    """Draw a caption below the panels, wrapped, each paragraph on lines of its own."""
    width = round(22 * figure.get_figwidth())
    text = "\n".join(textwrap.fill(paragraph, width) for paragraph in paragraphs)
    figure.supxlabel(text, x=0.01, ha="left", fontsize=6.3)
