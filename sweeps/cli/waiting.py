"""`mms waiting`: survival statistics of waiting times to a collapse."""

import json
from pathlib import Path
from typing import Any

import click

from meanmode.sweeps.cli.options import json_option, show_json, show_table
from meanmode.sweeps.named.waiting_time import LAW, LINE_EXPONENT

CASE_COLUMNS = (
    "study",
    "depth",
    "share",
    "rate",
    "runs",
    "predicted",
    "measured",
    "low",
    "high",
    "median_time",
)


HALF_RATE_COLUMNS = (
    *("depth", "runs", "collapsed", "value", "low", "high"),
    *("predicted", "predicted_low", "predicted_high", "predicted_power_law", "covered"),
)


@click.command()
@click.argument("stores", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--spectrum",
    "spectra",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Store of the spectral study of the same runs, one per STORE. Without it there are no spectral "
    "predictors.",
)
@click.option(
    "--forecasts",
    type=click.Path(path_type=Path),
    default=Path("paper_figs/data"),
    show_default=True,
    help="Folder of the forecasts written before the runs, STUDY.forecast.json.",
)
@click.option(
    "--law",
    type=click.Path(path_type=Path),
    help=f"Forecast whose law O2 is a predictor.  [default: {LAW} in --forecasts]",
)
@click.option(
    "--exponent",
    type=float,
    default=LINE_EXPONENT,
    show_default=True,
    help="Exponent of the depth in the predictor rate * depth^exponent.",
)
@click.option("--out", type=click.Path(path_type=Path), help="File to write the document to.")
@json_option
def waiting(
    stores: tuple[Path, ...],
    spectra: tuple[Path, ...],
    forecasts: Path,
    law: Path | None,
    exponent: float,
    out: Path | None,
    as_json: bool,
) -> None:
    """Analyse the waiting times of STORES together: shares, half rates, and predictors on held-out seeds."""
    from meanmode.sim.store.sweep_store import open_cells
    from meanmode.sweeps.cli.statements import open_stated
    from meanmode.sweeps.studies.waiting_times import waiting_document

    document = waiting_document(
        [open_stated(store) for store in stores],
        forecasts=forecasts,
        law=law or forecasts / LAW,
        exponent=exponent,
        spectra=[open_cells(path) for path in spectra],
    )
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    if as_json:
        show_json(document)
        return
    show_table([{key: row[key] for key in CASE_COLUMNS} for row in document["cases"]])
    click.echo("\nrate at which half of the runs collapse:")
    show_table([{key: row[key] for key in HALF_RATE_COLUMNS} for row in document["half_rates"]])
    later = f"not collapsed by step {document['landmark']}"
    for key, of in (("scores", "all runs"), ("scores_behind_landmark", later)):
        click.echo(f"\nheld-out seeds, {of}:")
        show_table([score_row(row) for row in document[key]])


def score_row(row: dict[str, Any]) -> dict[str, str]:
    """Scores of a predictor with their intervals, and its differences from the baselines."""
    shown = {"predictor": row["predictor"]}
    for score in ("brier", "auroc", "log_likelihood"):
        shown[score] = interval_text(row[score])
        for base, differences in row["against"].items():
            if score != "log_likelihood":
                shown[f"{score} - {base}"] = interval_text(differences[score])
    return shown


def interval_text(found: dict[str, float | None]) -> str:
    """A statistic with its interval, or a dash."""
    if found["value"] is None:
        return "-"
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
