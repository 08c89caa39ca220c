"""`mms train` and `mms export`: training the diffusion transformer, and its weights as one file."""

from pathlib import Path

import click

from meanmode.sweeps.cli.options import show_json


@click.command()
@click.argument("preset", required=False)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run.  [default: runs/PRESET]")
@click.option(
    "--set",
    "settings",
    metavar="NAME=VALUE",
    multiple=True,
    help="Set a field of the network or the training, such as width=64 or steps=1000; any number of times.",
)
@click.option(
    "--intervene",
    "interventions",
    nargs=2,
    type=(click.IntRange(min=1), str),
    metavar="STEP WHAT",
    multiple=True,
    help="From this step on, such as 100 delete:mean:writer-gradient@blocks=8-16.",
)
@click.option(
    "--fork",
    type=click.Path(path_type=Path),
    help="Begin with this checkpoint, or the last one of this run, at its step: another run from there on.",
)
@click.option("--resume", is_flag=True, help="Go on with the run where its last checkpoint is.")
@click.option("--list", "as_list", is_flag=True, help="List the presets.")
@click.option("-n", "--dry-run", is_flag=True, help="Print the configuration and the memory it takes.")
def train(
    preset: str | None,
    out: Path | None,
    settings: tuple[str, ...],
    interventions: tuple[tuple[int, str], ...],
    fork: Path | None,
    resume: bool,
    as_list: bool,
    dry_run: bool,
) -> None:
    """Train a diffusion transformer, with all telemetry, from a named PRESET.

    On several processes: accelerate launch --num_processes N -m meanmode.sweeps.cli.main train PRESET ...
    """
    import dataclasses

    from meanmode.dit.config.presets import PRESETS
    from meanmode.dit.data.latents import with_data
    from meanmode.dit.train.memory import estimate

    if as_list or preset is None:
        for name, known in PRESETS.items():
            model, training = known.model, known.training
            click.echo(
                f"{name}: {model.depth} blocks of width {model.width}, {model.merge}, {training.steps} steps "
                f"of {training.batch}, data {known.data}"
            )
        return
    if preset not in PRESETS:
        raise click.UsageError(f"unknown preset {preset!r}: choose one of {', '.join(PRESETS)}")
    if resume and fork is not None:
        raise click.UsageError("--resume goes on with a run, --fork begins another one: choose one of them")
    run = with_data(PRESETS[preset], _options(settings))
    if interventions:
        training = dataclasses.replace(run.training, interventions=interventions)
        run = dataclasses.replace(run, training=training)
    if dry_run:
        found = estimate(run)
        memory = {**dataclasses.asdict(found), "total": found.total}
        show_json({**run.document(), "memory_bytes": memory, "out": str(out or Path("runs") / preset)})
        return
    from meanmode.dit.train.trainer import Trainer

    trainer = Trainer(run, out or Path("runs") / preset, resume=resume, fork=fork)
    outcome = trainer.train()
    trainer.processes.leave()
    if trainer.processes.rank == 0:
        click.echo(f"{trainer.out}: {outcome}")


def _options(settings: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals:
            raise click.UsageError(f"--set takes NAME=VALUE, got {text!r}")
        found[name.strip()] = value.strip()
    return found


@click.command("export")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A .safetensors or .pt file.")
@click.option(
    "--ema/--no-ema", default=True, show_default=True, help="The moving average, where one is kept."
)
def export(checkpoint: Path, out: Path, ema: bool) -> None:
    """Write the weights of a CHECKPOINT, or of a run's last one, under the published names."""
    from meanmode.dit.model.published import export_published
    from meanmode.dit.train.checkpoints import load_network

    _, network = load_network(checkpoint, ema=ema, damaged=lambda said: click.echo(f"mms: {said}", err=True))
    export_published(network, out)
    click.echo(out)
