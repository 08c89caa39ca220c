"""`mms sweep`: sweeps over synthetic stacks."""

from pathlib import Path
from typing import Any

import click

from sweeps.options import json_option, show_json, stack_options


@click.group("sweep")
def sweep_group() -> None:
    """Sweeps over synthetic stacks."""


@sweep_group.command("list")
def sweep_list() -> None:
    """The named sweeps."""
    from sweeps.named import SWEEPS

    for sweep in SWEEPS.values():
        click.echo(f"{sweep.name}: {sweep.claim}; {len(sweep.cells)} cells")


@sweep_group.command("run")
@click.argument("name", default="collapse_front")
@stack_options(lists=True)
@click.option("--seeds", type=click.IntRange(min=1), help="Seeds of every setting.")
@click.option("--out", type=click.Path(path_type=Path), help="Store to write.  [default: NAME.zarr]")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes.")
@click.option("--resume", is_flag=True, help="Go on with the store where it stopped.")
@click.option(
    "-n",
    "--dry-run",
    is_flag=True,
    help="Print the resolved configuration, the work to be done and the forecast.",
)
def sweep_run(
    name: str, seeds: int | None, out: Path | None, workers: int, resume: bool, dry_run: bool, **options: Any
) -> None:
    """Run a named sweep; every stack option takes a comma list and becomes an axis."""
    from sweeps.execute import forecast_rows, provenance, run_sweep
    from sweeps.named import named_sweep

    rope = options.pop("rope")
    given = {field: values for field, values in options.items() if values is not None}
    if rope is not None:
        given["rope"] = (rope,)
    sweep = named_sweep(name).with_options(given, seeds)
    out = out or Path(f"{name}.zarr")
    if dry_run:
        plan = {"cells": len(sweep.cells), "runs": len(sweep.units()), "out": str(out)}
        show_json({**sweep.configuration(), **plan, **provenance(), "forecast": forecast_rows(sweep)})
        return
    run_sweep(sweep, out, resume=resume, workers=workers)
    click.echo(f"{out}: {len(sweep.cells)} cells", err=True)


@sweep_group.command("status")
@click.argument("store", type=click.Path(path_type=Path))
@json_option
def sweep_status(store: Path, as_json: bool) -> None:
    """How many cells of a store are to do, done, failed and diverged."""
    from sweeps.execute import count_status

    counts = count_status(store)
    if as_json:
        show_json(counts)
    else:
        click.echo("  ".join(f"{name} {count}" for name, count in counts.items()))


@sweep_group.command("compact")
@click.argument("store", type=click.Path(path_type=Path))
def sweep_compact(store: Path) -> None:
    """Rewrite a complete store with one chunk per variable: the same bits in few files."""
    from sim.store import compact

    compact(store)
