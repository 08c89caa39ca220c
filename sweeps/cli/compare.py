"""`mms onset` and `mms compare`: measured onsets, and predictions beside measurements."""

from pathlib import Path
from typing import Any

import click

from meanmode.sweeps.cli.options import json_option, show_json, show_table


@click.command()
@click.argument("store", type=click.Path(path_type=Path))
@json_option
def onset(store: Path, as_json: bool) -> None:
    """Measure the onset of a training run, with its evidence, or list the fronts or onsets of a sweep.

    STORE is a sweep, the folder of a run or its telemetry.
    """
    from meanmode.sim.store.run_reader import is_run
    from meanmode.sim.store.sweep_store import open_cells
    from meanmode.sweeps.studies.comparison import onset_cells

    if is_run(store):
        show_run_onset(store, as_json)
        return
    cells = onset_cells(open_cells(store))
    if as_json:
        show_json({"cells": cells})
    elif cells:
        show_table(cells)
    else:
        click.echo("no finished cells")


def show_run_onset(store: Path, as_json: bool) -> None:
    """Print the label of a run, its alarms, and when each signal moved."""
    from meanmode.sweeps.studies.run_onset import evidence_rows, onset_document, onset_lines

    document = onset_document(store)
    if as_json:
        show_json(document)
        return
    for line in onset_lines(store, document):
        click.echo(line)
    if document["evidence"]:
        show_table(evidence_rows(document))


@click.command()
@click.argument("stores", nargs=-1, required=True, type=click.Path(path_type=Path))
@json_option
@click.option("--markdown", "as_markdown", is_flag=True, help="Print Markdown tables.")
def compare(stores: tuple[Path, ...], as_json: bool, as_markdown: bool) -> None:
    """Set predictions beside measurements; the forecast is the one that each STORE was created with."""
    from meanmode.sweeps.studies.comparison import as_tables
    from meanmode.sweeps.studies.comparison import compare as compare_stores
    from meanmode.sweeps.studies.run_onset import refuse_runs

    refuse_runs(stores, "compare", "sweeps and studies")
    document = compare_stores(stores)
    if as_json:
        show_json(document)
    elif as_markdown:
        click.echo(as_tables(document))
    else:
        show_comparison(document)


def show_comparison(document: dict[str, Any]) -> None:
    """Print the table of a comparison, that of the first moves of signals if any, and a summary."""
    moves = [row for row in document["rows"] if row["quantity"] == "first_move"]
    show_table([row for row in document["rows"] if row not in moves])
    if moves:
        show_table(moves)
    median, mean = document["median_abs_relative_error"], document["mean_abs_relative_error"]
    if median is not None:
        click.echo(f"|relative error| of the predictions: median {median:.2%}, mean {mean:.2%}")
