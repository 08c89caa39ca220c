"""`mms report`: one page that says and shows what happened in runs, sweeps and logs."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("paths", metavar="RUN|STORE|LOG...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="HTML file to write; an older report is replaced.  "
    "[default: NAME.report.html, or report.html for several]",
)
@click.option(
    "--watch",
    is_flag=True,
    help="Write the page again whenever a run, sweep or log has grown, until it is complete or ctrl-c.",
)
def report(paths: tuple[Path, ...], out: Path | None, watch: bool) -> None:
    """Write one HTML page on runs, sweeps, studies or logs, side by side.

    It says first whether it collapsed, when, where in depth, what moved first and how surely; then come
    timelines with a shared cursor, maps over steps and blocks, and tables. It opens without a network. A LOG
    is read as by mms import without options.
    """
    from meanmode.sweeps.report.making import default_out, make_report, watch_report

    file = out or default_out(paths)
    if watch:
        watch_report(paths, file, lambda said: click.echo(f"mms: {said}", err=True))
    else:
        make_report(paths, file)
    click.echo(file)


def report_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--report` of the commands that make a run or a store."""
    return click.option(
        "--report", "write_report", is_flag=True, help="Write the report at the end, as mms report does."
    )(command)


def check_report(path: Path) -> None:
    """Refuse, before the work, a report that cannot be written at its end.

    Raises:
        ValueError: packages are missing.
        StoreError: the file cannot be written.
    """
    from meanmode.sweeps.report.making import check_extra, default_out

    check_extra()
    from meanmode.sweeps.report.writing import check_destination

    check_destination(default_out([path]))


def look_at(path: Path, *, write: bool) -> None:
    """End a command that made a run or a store: write its report, or name the command that does.

    A report that cannot be written is told in a sentence: the work is done, and its exit code stays.
    """
    if not write:
        click.echo(f"look at it: mms report {shlex.quote(str(path))}", err=True)
        return
    from meanmode.sweeps.report.making import default_out, make_report

    file = default_out([path])
    try:
        make_report([path], file)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        again = f"mms report {shlex.quote(str(path))}"
        click.echo(f"mms: the report was not written ({reason}): {again} tries again", err=True)
        return
    click.echo(f"look at it: {file}", err=True)
