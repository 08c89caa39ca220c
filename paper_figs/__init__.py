"""Every figure, drawn from stores and laws."""

from paper_figs.draw import FIGURES, draw_figures

__all__ = ["FIGURES", "draw_figures"]
