"""`mms import`: the store of a run whose telemetry was published or logged elsewhere."""

from pathlib import Path

import click

from meanmode.sweeps.cli.options import show_json


@click.command("import")
@click.argument("source", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run to write; it must not exist.")
@click.option(
    "--name",
    "names",
    metavar="THEIRS=OURS",
    multiple=True,
    help="Name of a quantity in the store, such as train/loss=loss; any number of times.",
)
@click.option("--depth", type=click.IntRange(min=1), help="Blocks.  [default: what FILE says or names]")
@click.option(
    "--first-layer",
    type=click.IntRange(0, 1),
    help="Number of the first block in FILE.  [default: 1; of the viewer, what its layers show]",
)
@click.option(
    "--step-offset", type=int, default=0, show_default=True, help="Added to the steps, where they begin at 0."
)
@click.option(
    "--initial-loss",
    type=click.FloatRange(min=0, min_open=True),
    help="Loss before any training, by which an onset is labelled.  [default: median of the first ten]",
)
@click.option("-n", "--dry-run", is_flag=True, help="Print the names, blocks and steps, and write nothing.")
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
    """Write the store of a run whose telemetry was published or logged elsewhere.

    FILE is the published viewer page or its JSON; JSON lines or CSV of steps, either of step, name and value
    or with a quantity a column; or a TensorBoard event file, or the folder of them of one run. A quantity
    that is one of ours has our name, another keeps its own; NAME/LAYER[/WRITER] is its value at one block.
    """
    from meanmode.dit.train.telemetry import SCALARS
    from meanmode.sim.imported.imported_run import import_run, plan_import
    from meanmode.sim.imported.log_files import read_log

    if out is None and not dry_run:
        raise click.UsageError(
            "say where to write the run: --out RUN, or --dry-run to see what it would hold"
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
            "--initial-loss says the level before training",
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
