"""`mms detect` and `mms margin`: how well collapses are found, and announced, in the runs of studies."""

from pathlib import Path

import click

from meanmode.sweeps.cli.options import json_option, show_json, show_table


@click.command()
@click.argument("stores", nargs=-1, required=True, type=click.Path(path_type=Path))
@json_option
def detect(stores: tuple[Path, ...], as_json: bool) -> None:
    """How the detector does on the labelled runs of studies, shown all they logged, and less."""
    from meanmode.sweeps.studies.detection import detection_rows

    rows = detection_rows(stores)
    show_json({"views": rows}) if as_json else show_table(rows)


@click.command()
@click.argument("stores", nargs=-1, required=True, type=click.Path(path_type=Path))
@json_option
def margin(stores: tuple[Path, ...], as_json: bool) -> None:
    """How long before a collapse the functional step reaches its threshold, case by case."""
    from meanmode.sweeps.studies.stability_margin import margin_rows

    rows = margin_rows(stores)
    show_json({"cases": rows}) if as_json else show_table(rows)
