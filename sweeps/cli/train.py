"""`mms train` and `mms export`: train the diffusion transformer, and write its weights to one file."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meanmode.sweeps.cli.options import preset_run, settings_option, show_json
from meanmode.sweeps.cli.show.report_command import check_report, look_at, report_option

if TYPE_CHECKING:
    from meanmode.dit.config.run_config import RunConfig


@click.command()
@click.argument("preset", required=False)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run.  [default: runs/PRESET]")
@settings_option
@click.option(
    "--intervene",
    "interventions",
    nargs=2,
    type=(click.IntRange(min=1), str),
    metavar="STEP WHAT",
    multiple=True,
    help="Apply an intervention from this step on, such as 100 delete:mean:writer-gradient@blocks=8-16. "
    "Repeatable.",
)
@click.option(
    "--fork",
    type=click.Path(path_type=Path),
    help="Start a new run from this checkpoint, or from the last checkpoint of this run, at its step.",
)
@click.option("--resume", is_flag=True, help="Resume the run from its last checkpoint.")
@click.option(
    "--begin-anew",
    is_flag=True,
    help="With --resume: train a run that has lost all its checkpoints again from its beginning. What it "
    "holds is moved to the folder before-1 in it, or the next free number.",
)
@report_option
@click.option("--list", "as_list", is_flag=True, help="List the presets and exit.")
@click.option(
    "-n",
    "--dry-run",
    is_flag=True,
    help="Print the configuration and its memory estimate, and train nothing.",
)
@click.pass_context
def train(
    ctx: click.Context,
    preset: str | None,
    out: Path | None,
    settings: tuple[str, ...],
    interventions: tuple[tuple[int, str], ...],
    fork: Path | None,
    resume: bool,
    begin_anew: bool,
    write_report: bool,
    as_list: bool,
    dry_run: bool,
) -> None:
    """Train a diffusion transformer from a named PRESET and record all telemetry.

    Exits with 1 if the training diverged: its last loss is not finite, whatever stop_on says. Its telemetry
    and its last checkpoint are written all the same.

    To train on several processes: accelerate launch --num_processes N -m meanmode train PRESET ...
    """
    import dataclasses

    from meanmode.dit.config.presets import PRESETS

    if as_list or preset is None:
        for name, known in PRESETS.items():
            model, training = known.model, known.training
            click.echo(
                f"{name}: {model.depth} blocks of width {model.width}, {model.merge}, {training.steps} steps "
                f"of {training.batch}, data {known.data}"
            )
        return
    if resume and fork is not None:
        raise click.UsageError("--resume continues a run and --fork starts a new one: pass only one of them")
    if begin_anew and not resume:
        raise click.UsageError("--begin-anew is for a run without intact checkpoints: pass it with --resume")
    from meanmode.dit.train.memory import estimate

    run = preset_run(preset, settings)
    if interventions:
        training = dataclasses.replace(run.training, interventions=interventions)
        run = dataclasses.replace(run, training=training)
    if dry_run:
        found = estimate(run)
        memory = {**dataclasses.asdict(found), "total": found.total}
        show_json({**run.document(), "memory_bytes": memory, "out": str(out or Path("runs") / preset)})
        return
    start = {"resume": resume, "fork": fork, "begin_anew": begin_anew}
    if _diverged(run, out or Path("runs") / preset, write_report, **start):
        ctx.exit(1)


def _diverged(run: "RunConfig", out: Path, write_report: bool, **start: Any) -> bool:
    """Train a run, print how it ended and how to look at it; return whether it diverged."""
    from meanmode.dit.train.trainer import Trainer

    if write_report:
        check_report(out)
    trainer = Trainer(run, out, **start)
    try:
        outcome = trainer.train()
    except BaseException:
        trainer.close(failed=True)
        raise
    trainer.close()
    if trainer.processes.rank == 0:
        click.echo(f"{out}: {outcome}")
        look_at(out, write=write_report)
    return outcome.diverged


@click.command("export")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="File to write, .safetensors or .pt."
)
@click.option(
    "--ema/--no-ema",
    default=True,
    show_default=True,
    help="Export the moving average of the weights if the run kept one.",
)
def export(checkpoint: Path, out: Path, ema: bool) -> None:
    """Write the weights of a CHECKPOINT, or of the last checkpoint of a run, under the published names."""
    from meanmode.dit.model.published import SAFETENSORS, TORCH, export_published
    from meanmode.dit.train.checkpoints import load_network
    from meanmode.sim.store.destination import check_writable

    if out.suffix not in (SAFETENSORS, TORCH) or out.is_dir():
        raise ValueError(
            f"weights are written to a {SAFETENSORS} or {TORCH} file: give such an --out, not {out}"
        )
    if not out.absolute().parent.is_dir():
        raise ValueError(f"{out} cannot be written: {out.parent} is not a folder")
    check_writable(out)
    _, network = load_network(checkpoint, ema=ema, damaged=lambda said: click.echo(f"mms: {said}", err=True))
    export_published(network, out)
    click.echo(out)
