"""`mms detect` and `mms margin`: how well collapses are found, and how early the margin warns."""

from pathlib import Path

import click

from meanmode.sweeps.cli.options import json_option, show_json, show_table


@click.command()
@click.argument("stores", nargs=-1, required=True, type=click.Path(path_type=Path))
@json_option
def detect(stores: tuple[Path, ...], as_json: bool) -> None:
    """Score the detector on the labelled runs of STORES, with all of their telemetry and with less of it."""
    from meanmode.sweeps.studies.detection import detection_rows
    from meanmode.sweeps.studies.run_onset import refuse_runs

    refuse_runs(stores, "detect", "studies of labelled runs")
    rows = detection_rows(stores)
    show_json({"views": rows}) if as_json else show_table(rows)


@click.command()
@click.argument("stores", nargs=-1, required=True, type=click.Path(path_type=Path))
@json_option
def margin(stores: tuple[Path, ...], as_json: bool) -> None:
    """Show how early the stability margin of the runs of STORES warns of a collapse, case by case."""
    from meanmode.sweeps.studies.run_onset import refuse_runs
    from meanmode.sweeps.studies.stability_margin import margin_rows

    refuse_runs(stores, "margin", "studies that measured the functional step")
    rows = margin_rows(stores)
    show_json({"cases": rows}) if as_json else show_table(rows)
