"""`mms depth-check`: observables against depth of somebody else's model, before it is trained."""

from pathlib import Path
from typing import Any

import click

from meanmode.sweeps.cli.options import CommaList, json_option, show_json

ROWS = 12
"""Blocks shown in the table, besides the first and the last."""


EXIT = {"flat": 0, "growing": 0, "homogeneous": 1, "unsure": 2}
"""Exit code of each verdict."""


@click.command("depth-check")
@click.argument("target", metavar="MODULE:FUNCTION")
@click.option(
    "--depth",
    "depths",
    type=CommaList(int),
    help="Depths, such as 12,24,48: the function is called with each of them.",
)
@click.option(
    "--seeds",
    type=click.IntRange(1, 1000),
    default=1,
    show_default=True,
    help="Models of each depth; torch is seeded with 0, 1, ... before each call of the function.",
)
@click.option("--backward", is_flag=True, help="Measure gradients of the residual writers too.")
@json_option
@click.option(
    "--figure", type=click.Path(path_type=Path, dir_okay=False), help="Draw the profiles to a PNG file."
)
@click.pass_context
def depth_check(
    ctx: click.Context,
    target: str,
    depths: tuple[int, ...] | None,
    seeds: int,
    backward: bool,
    as_json: bool,
    figure: Path | None,
) -> None:
    """Show whether the tokens of a model stay distinct through its depth at initialisation.

    MODULE:FUNCTION names a function that returns the model and a batch, as for `mms anatomy`; with --depth it
    takes the depth as its argument. The verdict is homogeneous from a block, growing, flat or unsure, and
    says nothing about whether the model trains.

    Exit codes: 0 flat or growing, 1 homogeneous, 2 unsure or bad usage.
    """
    from meanmode.sim.watch.depth_check import depth_check as measure
    from meanmode.sweeps.cli.models.model_function import model_and_run

    for depth in depths or ():
        if depth < 1:
            raise click.UsageError(f"--depth takes depths of at least 1, got {depth}")
    if figure is not None and figure.suffix != ".png":
        raise click.UsageError(f"--figure takes the name of a .png file, got {figure}")
    document = measure(
        lambda *arguments: model_and_run(target, *arguments),
        depths=depths or (),
        seeds=seeds,
        backward=backward,
    )
    show_json(document) if as_json else _show(document)
    if figure is not None:
        from meanmode.paper_figs.figures.depth_curves import draw

        draw(document).savefig(figure, dpi=150)
    ctx.exit(EXIT[document["verdict"]])


def _show(document: dict[str, Any]) -> None:
    """Print verdict, fronts and table of every depth and trunk."""
    for row in document["rows"]:
        others = [other for other in document["rows"] if other["depth"] == row["depth"]]
        named = f", {row['trunk']}" if len(others) > 1 else ""
        click.echo(f"depth {row['depth']}{named}: {row['said']}")
        measured = [f"measured front {_front(row['front'], document['seeds'])}"]
        if row["predicted_front"]:
            measured.append(f"predicted front {_front(row['predicted_front'], 0)}")
        click.echo(f"  {', '.join(measured)}")
        click.echo(_table(row) + "\n")
    if document["verdict"] == "homogeneous":
        click.echo("homogeneous tokens at initialisation do not say that a model will not train")


def _front(front: dict[str, Any], seeds: int) -> str:
    if front["mean"] is None:
        reached = sum(value is not None for value in front.get("seeds", ()))
        return f"in {reached} of {seeds} seeds" if reached else "none"
    spread = "" if front["std"] is None else f" +- {front['std']:.1f}"
    return f"{front['mean']:.1f}{spread}"


def _table(row: dict[str, Any]) -> str:
    """Means over seeds every few blocks."""
    import numpy as np
    import pandas as pd

    columns = {"tcs": row["tcs"], "rho": row["rho"], **row["writers"]}
    table = pd.DataFrame(
        {name: np.array(values, dtype=float).mean(0) for name, values in columns.items()},
        index=pd.Index(row["blocks"], name="block"),
    ).reset_index()
    last = len(table) - 1
    shown = sorted({0, 1, last, *range(0, last, -(-last // ROWS))} & set(range(last + 1)))
    kept = table.iloc[shown].dropna(axis="columns", how="all")
    return kept.to_string(index=False, na_rep="-", float_format=lambda value: f"{value:.3g}")
