"""`mms import`: turn telemetry that was published or logged elsewhere into a run."""

from pathlib import Path

import click

from meanmode.sweeps.cli.options import show_json


@click.command("import")
@click.argument("source", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder of the run to write. It must not exist yet."
)
@click.option(
    "--name",
    "names",
    metavar="THEIRS=OURS",
    multiple=True,
    help="Rename a quantity, such as train/loss=loss. Repeatable.",
)
@click.option(
    "--depth",
    type=click.IntRange(min=1),
    help="Number of blocks.  [default: as FILE says, or as its names show]",
)
@click.option(
    "--first-layer",
    type=click.IntRange(0, 1),
    help="Number of the first block in FILE.  [default: 1; for the viewer, as its layers show]",
)
@click.option(
    "--step-offset",
    type=int,
    default=0,
    show_default=True,
    help="Number to add to every step, for logs that start at step 0.",
)
@click.option(
    "--initial-loss",
    type=click.FloatRange(min=0, min_open=True),
    help="Loss before any training, which the onset label compares with.  "
    "[default: median of the first ten losses]",
)
@click.option("-n", "--dry-run", is_flag=True, help="Print names, blocks and steps, and write nothing.")
def import_log(
    source: Path,
    out: Path | None,
    names: tuple[str, ...],
    depth: int | None,
    first_layer: int | None,
    step_offset: int,
    initial_loss: float | None,
    dry_run: bool,
) -> None:
    """Import a run whose telemetry was published or logged elsewhere.

    FILE is the published viewer page or its JSON; JSON lines or CSV, with either one row per step or the
    columns step, name and value; or a TensorBoard event file or folder of one run. Known quantities get our
    names, others keep theirs; NAME/LAYER[/WRITER] is the value of a quantity at one block.
    """
    from meanmode.dit.train.telemetry import SCALARS
    from meanmode.sim.imported.import_plan import plan_import
    from meanmode.sim.imported.imported_run import import_run
    from meanmode.sim.imported.log_files import read_log

    if out is None and not dry_run:
        raise click.UsageError(
            "say where to write the run with --out RUN, or pass --dry-run to see what it would hold"
        )
    plan = plan_import(
        read_log(source),
        scalars=SCALARS,
        renamed=_renamed(names),
        depth=depth,
        first_layer=first_layer,
        step_offset=step_offset,
    )
    for note in plan.notes:
        click.echo(f"mms: {note}", err=True)
    first = int(plan.steps[0])
    if first > 1 and initial_loss is None and any(column.name == "loss" for column in plan.columns):
        click.echo(
            f"mms: the first step is {first}, so the first losses may be those of a trained network: "
            "give the loss before training with --initial-loss",
            err=True,
        )
    if dry_run or out is None:
        show_json(plan.document())
        return
    click.echo(import_run(plan, out, initial_loss=initial_loss))


def _renamed(names: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in names:
        # the last sign, since theirs may be any text
        theirs, equals, ours = text.rpartition("=")
        if not equals:
            raise click.UsageError(f"--name takes THEIRS=OURS, got {text!r}")
        found[theirs] = ours
    return found
