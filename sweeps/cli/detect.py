"""`mms forecast`, `mms detect`, `mms margin`: is a run about to collapse, and how well can one tell?"""

from pathlib import Path

import click

from meanmode.sweeps.cli.options import json_option, show_json, show_table


@click.command()
@click.argument("path", metavar="RUN", type=click.Path(path_type=Path))
@json_option
def forecast(path: Path, as_json: bool) -> None:
    """Show how probable it is that a running or finished RUN collapses within 25 and 50 steps.

    RUN is the folder of a run, its store, or an imported log. The probability is that of the last step with
    a measured token cosine and functional step; the table shows earlier ones, --json all of them. From step
    150 on, the critical rate of a ramp of this setting is forecast as well.
    """
    from meanmode.sweeps.studies.hazards.run_warning import forecast_document, forecast_lines, shown_rows

    document = forecast_document(path)
    if as_json:
        show_json(document)
        return
    for line in forecast_lines(path, document):
        click.echo(line)
    rows = shown_rows(document)
    if rows:
        import pandas as pd

        click.echo(pd.DataFrame(rows).to_string(index=False))


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
