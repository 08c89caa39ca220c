"""`mms import`: turn telemetry that was published or logged elsewhere into a run."""

import math
from pathlib import Path

import click

from meanmode.sweeps.cli.options import show_json

LARGEST_DEPTH, LARGEST_OFFSET, LARGEST_COUNT = 10_000, 100_000_000, 1_000_000_000_000


def _loss(_: click.Context, option: click.Parameter, value: float | None) -> float | None:
    if value is not None and not 0 < value < math.inf:
        raise click.BadParameter(f"the loss before training must be a positive number, got {value}")
    return value


def _only(_: click.Context, option: click.Parameter, value: str | None) -> tuple[str, str] | None:
    if value is None:
        return None
    column, equals, chosen = value.partition("=")
    if not equals or not column:
        raise click.BadParameter(f"takes COLUMN=VALUE, such as rank=0, got {value!r}")
    return column, chosen


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
    help="Rename a quantity, such as train/loss=loss; =step names the column of steps. Repeatable.",
)
@click.option(
    "--only",
    metavar="COLUMN=VALUE",
    callback=_only,
    help="Read only the rows of one run or process, such as rank=0.",
)
@click.option(
    "--steps-per-row",
    type=click.IntRange(1, LARGEST_OFFSET),
    help="Steps between two rows, for a log without a column of steps: its rows are counted.",
)
@click.option(
    "--samples-per-step",
    type=click.IntRange(1, LARGEST_COUNT),
    help="Samples or tokens of a step, for a log that counts those.",
)
@click.option(
    "--depth",
    type=click.IntRange(1, LARGEST_DEPTH),
    help="Number of blocks, at most 10000.  [default: as FILE says, or as its names show]",
)
@click.option(
    "--first-layer",
    type=click.IntRange(0, 1),
    help="Number of the first block in FILE.  [default: 1; for the viewer, as its layers show]",
)
@click.option(
    "--step-offset",
    type=click.IntRange(-LARGEST_OFFSET, LARGEST_OFFSET),
    help="Number to add to every step.  [default: 1 if FILE counts from 0]",
)
@click.option(
    "--initial-loss",
    type=float,
    callback=_loss,
    help="Loss before any training, which the onset label compares with.  "
    "[default: median of the first ten losses]",
)
@click.option("-n", "--dry-run", is_flag=True, help="Print names, blocks and steps, and write nothing.")
def import_log(
    source: Path,
    out: Path | None,
    names: tuple[str, ...],
    only: tuple[str, str] | None,
    steps_per_row: int | None,
    samples_per_step: int | None,
    depth: int | None,
    first_layer: int | None,
    step_offset: int | None,
    initial_loss: float | None,
    dry_run: bool,
) -> None:
    """Import a run whose telemetry was published or logged elsewhere.

    FILE is a log in any common form, or the folder of one run: JSON lines, CSV, trainer_state.json, lines of
    text with steps and losses, TensorBoard event files, the published viewer. What is taken, renamed and left
    out is said on stderr. Known quantities get our names, others keep theirs; NAME/LAYER[/WRITER] is the
    value of a quantity at one block.
    """
    import numpy as np

    from meanmode.sim.imported.import_plan import plan_import
    from meanmode.sim.imported.imported_run import check_new, import_run
    from meanmode.sim.imported.log_files import read_log
    from meanmode.sim.imported.row_steps import Reading

    if out is None and not dry_run:
        raise click.UsageError(
            "say where to write the run with --out RUN, or pass --dry-run to see what it would hold"
        )
    if out is not None and not dry_run:
        check_new(out)
    renamed = _renamed(names)
    step_name = next((theirs for theirs, ours in renamed.items() if ours == "step"), None)
    reading = Reading(
        only=only, step_name=step_name, steps_per_row=steps_per_row, samples_per_step=samples_per_step
    )
    plan = plan_import(
        read_log(source, reading),
        renamed={theirs: ours for theirs, ours in renamed.items() if ours != "step"},
        depth=depth,
        first_layer=first_layer,
        step_offset=step_offset,
    )
    for note in plan.notes:
        click.echo(f"mms: {note}", err=True)
    first, spacing = int(plan.steps[0]), max(np.diff(plan.steps[:11]), default=1)
    if first > 1 + spacing and initial_loss is None and any(column.name == "loss" for column in plan.columns):
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
