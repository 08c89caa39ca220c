"""Generated table of judged studies: what networks of different depths and merges are worth."""

from pathlib import Path
from typing import Any

from meanmode.sim.store.sweep_store import open_cells
from meanmode.sweeps.studies.markdown import pipe_table
from meanmode.sweeps.studies.results.sizes import captioned, store, studies_caption
from meanmode.sweeps.studies.training.judgements import judged_rows

SHOWN = {"held_out_loss": ".3f", "fid": ".0f", "kid": ".2f"}
"""What networks are judged by, and how it is written."""


def judged(data: Path, name: str) -> str:
    """Held-out loss, FID and KID of every size and merge, and the floors of these distances."""
    cells = open_cells(store(data, name))
    lines = []
    for row in judged_rows(cells):
        size, _, merge = row["case"].rpartition(", ")
        sizes = [f"{row['weights'] / 1e3:,.0f}", f"{row['flops'] / 1e6:.1f}"]
        judgements = [_ranged(row, of, shown) for of, shown in SHOWN.items()]
        lines.append([size, merge, *sizes, f"{row['failed']} of {row['runs']}", *judgements])
    costs = ("thousand weights", "MFLOP a sample")
    heads = ("network", "merge", *costs, "failed", "held-out loss", "FID", "KID")
    floors = [float(cells[f"{of}_floor"].median()) for of in ("fid", "kid")]
    statistics = (
        "Medians over seeds (smallest to largest); a run that failed counts as worse than any other. FID and "
        f"KID of as many held-out images: {floors[0]:.0f} and {floors[1]:.3f}."
    )
    return captioned(pipe_table(heads, lines), studies_caption(data, [name]), statistics)


def _ranged(row: dict[str, Any], name: str, shown: str) -> str:
    return f"{row[name]:{shown}} ({row[f'{name}_low']:{shown}} to {row[f'{name}_high']:{shown}})"
