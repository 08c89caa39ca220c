"""`mms measure`: measure the states of a run again, with more samples than its training batches have."""

import re
from pathlib import Path
from typing import Any

import click

from meanmode.dit.data.bounds import BOUNDS
from meanmode.sweeps.cli.options import check_device
from meanmode.sweeps.cli.progress_bar import ProgressBar


class StepRanges(click.ParamType):
    """Steps and stretches of steps, such as 120-140 or 100,120-130."""

    name = "STEPS"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[range, ...]:
        if isinstance(value, tuple):
            return value
        found = []
        for part in value.split(","):
            match = re.fullmatch(r"\s*([0-9]{1,18})(?:-([0-9]{1,18}))?\s*", part)
            first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
            if first > last:
                self.fail(f"{value!r} is not a list of steps such as 120-140 or 100,120-130", param, ctx)
            found.append(range(first, last + 1))
        return tuple(found)


@click.command()
@click.argument("path", metavar="RUN|CHECKPOINT", type=click.Path(path_type=Path))
@click.option(
    "--samples",
    type=click.IntRange(1, BOUNDS["samples"][1]),
    required=True,
    help="Number of samples with which every state is measured, the same for all.",
)
@click.option(
    "--steps",
    type=StepRanges(),
    help="Steps whose states are measured, such as 120-140 or 100,120-130.  [default: all]",
)
@click.option("--out", type=click.Path(path_type=Path), help="Run store to write, with a row per state.")
@click.option(
    "--batch",
    type=click.IntRange(*BOUNDS["batch"]),
    default=64,
    show_default=True,
    help="Number of samples computed together; results depend on it by rounding only.",
)
@click.option("--device", default="cpu", show_default=True, help="Torch device that computes.")
@click.option(
    "--ema/--no-ema",
    default=False,
    show_default=True,
    help="Measure the moving average of the weights instead of the trained weights.",
)
def measure(
    path: Path,
    samples: int,
    steps: tuple[range, ...] | None,
    out: Path | None,
    batch: int,
    device: str,
    ema: bool,
) -> None:
    """Measure every observable of the states of a RUN, or of one CHECKPOINT, on samples of the run's data.

    States are the checkpoints of a run and the weights that weights_ring kept. Times, noise and images are
    drawn anew with a seed that no training uses. Row s describes the weights after step s, with which step
    s + 1 was trained. In the table, G_mean and G_ctr are roots of sums of squares over all blocks; the
    columns _deep, TCS and A are medians over the deeper half of the blocks.
    """
    from meanmode.dit.data.sources import source_of
    from meanmode.dit.evaluate.run_states import states_of
    from meanmode.dit.evaluate.state_measurements import measure_states, table_rows, write_measurements
    from meanmode.sim.imported.imported_run import check_new

    if out is not None:
        check_new(out)
    states = states_of(path)
    if steps is not None:
        states = states.at(steps)
    check_device(device)
    source = source_of(states.run)
    states.check(ema=ema)
    with ProgressBar("batches", "batch", len(states.by_step) * -(-samples // batch)) as bar:
        found = measure_states(
            states, source, samples=samples, batch=batch, device=device, ema=ema, batch_done=bar.advance
        )
    if out is not None:
        write_measurements(out, states, found, samples=samples, ema=ema)
    import pandas as pd

    of = "averaged weights" if ema else "trained weights"
    click.echo(f"{path}: {of} on {samples} fresh samples{'' if out is None else f', written to {out}'}")
    table = pd.DataFrame(table_rows(found))
    click.echo(table.to_string(index=False, na_rep="-", float_format=lambda value: f"{value:.4g}"))
