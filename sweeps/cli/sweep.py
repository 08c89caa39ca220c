"""`mms sweep`: list, run and inspect sweeps and studies."""

from pathlib import Path
from typing import Any

import click

from meanmode.sweeps.cli.options import json_option, shard_option, show_json, stack_options
from meanmode.sweeps.cli.show.report_command import check_report, look_at, report_option


@click.group("sweep")
def sweep_group() -> None:
    """List, run and inspect sweeps and studies."""


@sweep_group.command("list")
def sweep_list() -> None:
    """List the named sweeps and studies."""
    from meanmode.sweeps.named.all_sweeps import SWEEPS

    for sweep in SWEEPS.values():
        click.echo(f"{sweep.name}: {sweep.claim}; {len(sweep.cells)} cells")


@sweep_group.command("run")
@click.argument("name", default="collapse_front")
@stack_options(lists=True)
@click.option("--seeds", type=click.IntRange(min=1), help="Seeds of every setting.")
@click.option(
    "--ensemble",
    type=click.IntRange(min=1),
    help="Seeds stepped together as one batched network.  [default: 1 for stacks]",
)
@click.option("--device", help="Torch device to compute on, such as cpu or cuda.  [default: cpu]")
@click.option(
    "--compile",
    "compiled",
    is_flag=True,
    help="Compile the blocks with torch.compile, for faster training; numbers agree up to rounding.",
)
@click.option(
    "--forecast",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Forecast of a study of training runs, written by mms predict onset.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Store to write.  [default: NAME.zarr]")
@click.option(
    "--workers", type=click.IntRange(min=1, max=1024), help="Processes on this machine.  [default: 1]"
)
@click.option(
    "--scheduler", metavar="ADDRESS", help="Compute on the workers of a running dask scheduler instead."
)
@shard_option
@click.option("--resume", is_flag=True, help="Resume the store where it stopped; begin it if there is none.")
@report_option
@click.option(
    "-n",
    "--dry-run",
    is_flag=True,
    help="Print the resolved configuration, the work to be done and the forecast, and stop.",
)
@click.pass_context
def sweep_run(
    ctx: click.Context,
    name: str,
    seeds: int | None,
    ensemble: int | None,
    device: str | None,
    compiled: bool,
    forecast: Path | None,
    out: Path | None,
    workers: int | None,
    scheduler: str | None,
    shard: str | None,
    resume: bool,
    write_report: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Run a named sweep; a comma-separated list for a stack option becomes an axis.

    Exits with 1 if a cell failed: the others are done, mms sweep status shows why, --resume tries again.
    """
    from meanmode.sim.store.provenance import provenance
    from meanmode.sweeps.cli.options import check_device
    from meanmode.sweeps.engine.execution import check_executor, run_sweep
    from meanmode.sweeps.engine.shards import Shard
    from meanmode.sweeps.engine.study import with_compiled_blocks
    from meanmode.sweeps.named.all_sweeps import named_sweep
    from meanmode.sweeps.studies.forecast_files import with_forecast

    share = None if shard is None else Shard.parse(shard)
    check_executor(workers, scheduler, share)
    if device is not None:
        check_device(device)
    sweep = named_sweep(name).with_options(_given(options), seeds, ensemble=ensemble, device=device)
    if forecast is not None:
        sweep = with_forecast(sweep, forecast)
    if compiled:
        sweep = with_compiled_blocks(sweep)
    out = out or Path(f"{name}.zarr")
    units = sweep.units() if share is None else share.units(sweep)
    cells = sum(map(len, units))
    if dry_run:
        plan = {"cells": cells, "runs": len(units), "out": str(out), "shard": shard}
        show_json({**sweep.configuration(), **plan, **provenance(), "forecast": sweep.forecast_rows()})
        return
    if write_report:
        check_report(out)
    failures = run_sweep(sweep, out, resume=resume, workers=workers, scheduler=scheduler, shard=share)
    part = "" if share is None else f" of shard {share}"
    click.echo(f"{out}: {cells} cells{part}", err=True)
    if failures:
        click.echo(
            f"{out}: {len(failures)} of them failed (mms sweep status {out} shows why); "
            "--resume tries them again",
            err=True,
        )
    look_at(out, write=write_report)
    if failures:
        ctx.exit(1)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The options of stacks that were given, each a list of values."""
    values = {**options, "rope": None if options["rope"] is None else (options["rope"],)}
    return {field: of for field, of in values.items() if of is not None}


@sweep_group.command("status")
@click.argument("store", type=click.Path(path_type=Path))
@json_option
def sweep_status(store: Path, as_json: bool) -> None:
    """Show the progress of a sweep: cells by status, rate, time left, and why cells failed."""
    from meanmode.sweeps.engine.status import status_lines, status_of

    found = status_of(store)
    if as_json:
        show_json(found)
        return
    for line in status_lines(found):
        click.echo(line)


@sweep_group.command("compact")
@click.argument("store", type=click.Path(path_type=Path))
def sweep_compact(store: Path) -> None:
    """Rewrite a complete store with one chunk per variable: the same bits in fewer files."""
    from meanmode.dit.train.run_folder import nobody_trains
    from meanmode.sim.store.compaction import compact

    with nobody_trains(store):
        compact(store)
