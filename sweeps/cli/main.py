"""The command line `mms`: its commands by section, and what becomes of an error."""

import os
import sys
import warnings
from importlib import import_module
from typing import Any

import click

from meanmode.sim.train.allocator import keep_freed_memory

SECTIONS = {
    "Prove and predict": {
        "verify": ("laws:verify", "Prove the laws for every size."),
        "law": ("laws:show_law", "Show a law with its assumptions and proof."),
        "predict": ("predict:predict", "Predict the front, a profile or the onset."),
    },
    "Sweep": {
        "sweep": ("sweep:sweep_group", "List, run and inspect sweeps and studies."),
        "waiting": ("waiting:waiting", "Survival statistics of waiting times."),
    },
    "Train": {
        "train": ("train:train", "Train the diffusion transformer."),
        "export": ("train:export", "Write weights under the published names."),
        "encode": ("encode:encode", "Encode images and captions, once."),
        "sample": ("sample:sample", "Draw samples from a run or a checkpoint."),
        "evaluate": ("evaluate:evaluate", "Judge samples beside real images."),
    },
    "Measure": {
        "import": ("import_log:import_log", "Read telemetry logged elsewhere."),
        "anatomy": ("models.anatomy_command:anatomy", "Show what a model of your own is made of."),
        "depth-check": ("models.depth_check_command:depth_check", "Show if its depth is alive at the start."),
        "measure": ("measure:measure", "Measure states with more samples."),
        "onset": ("compare:onset", "Measure when and where it collapsed."),
        "forecast": ("detect:forecast", "Warn of a collapse within a run."),
        "detect": ("detect:detect", "Score the detector on labelled runs."),
        "margin": ("detect:margin", "Follow the stability margin of runs."),
        "compare": ("compare:compare", "Set predictions beside measurements."),
    },
    "Show": {
        "report": ("show.report_command:report", "Write one HTML page on a run, sweep or log."),
        "figures": ("figures:figures", "Draw figures from stores."),
        "results": ("results:results", "Refresh the tables of docs/results."),
        "demo": ("figures:demo", "Run the whole chain, small, on a CPU."),
    },
}
"""Section of the help -> command -> where it is defined, and what it does in one line."""

COMMANDS = {name: entry for section in SECTIONS.values() for name, entry in section.items()}


class Sections(click.Group):
    """A group that imports a command when it is called, and lists all by section."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, name = COMMANDS[cmd_name][0].split(":")
        command: click.Command = getattr(import_module(f"meanmode.sweeps.cli.{module}"), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, line) for name, (_, line) in commands.items()], col_max=12)


@click.group(cls=Sections)
@click.version_option(package_name="mean-mode-screaming")
def cli() -> None:
    """Will a very deep transformer collapse, when, and why: derive, predict, measure, compare."""


def main() -> None:
    """Entry point: every error becomes one sentence on stderr and exit 2, an interruption exit 130."""
    status: Any
    try:
        keep_freed_memory()
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            status = cli.main(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        status = 2
    except (click.Abort, KeyboardInterrupt):
        click.echo("mms: interrupted; continue a sweep or a run with --resume", err=True)
        status = 130
    except Exception as error:
        from meanmode.sweeps.cli.errors import sentence

        click.echo(f"mms: {sentence(error)}", err=True)
        status = 2
    _leave(status)


def _leave(status: Any) -> None:
    """Exit; one of several processes of a launcher does so at once.

    Threads of gloo outlive the process group as long as anything refers to it, and the tensors that they hold
    abort a process whose interpreter is being finalised.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(status or 0))
    sys.exit(status)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """Print a warning as a sentence, without the line of code that raised it."""
    if not issubclass(category, DeprecationWarning | FutureWarning):
        click.echo(f"mms: {' '.join(str(message).split())}", err=True)
