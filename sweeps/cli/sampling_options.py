"""The network that `mms sample` and `mms evaluate` open, and the options of its sampler."""

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meanmode.dit.data.bounds import BOUNDS, GUIDANCE, TIME_SHIFT
from meanmode.sweeps.cli.options import check_device

if TYPE_CHECKING:
    from meanmode.dit.evaluate.sampling import SamplingConfig
    from meanmode.dit.evaluate.subject import Subject

OPTIONS = (
    click.argument("path", metavar="RUN|CHECKPOINT|WEIGHTS", type=click.Path(path_type=Path)),
    click.option(
        "--steps",
        type=click.IntRange(*BOUNDS["steps"]),
        default=25,
        show_default=True,
        help="Number of Euler steps (NFE, not counting guidance).",
    ),
    click.option(
        "--cfg-scale",
        type=click.FloatRange(*GUIDANCE),
        default=2.0,
        show_default=True,
        help="Guidance scale; 1 disables guidance.",
    ),
    click.option(
        "--time-shift",
        type=click.FloatRange(*TIME_SHIFT),
        default=4.0,
        show_default=True,
        help="Shift of the sampling times.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(*BOUNDS["seed"]),
        default=0,
        show_default=True,
        help="Seed of the noise.",
    ),
    click.option(
        "--batch",
        type=click.IntRange(*BOUNDS["batch"]),
        default=64,
        show_default=True,
        help="Number of samples computed together.",
    ),
    click.option("--device", default="cpu", show_default=True, help="Torch device that computes."),
    click.option(
        "--ema/--no-ema",
        default=True,
        show_default=True,
        help="Use the moving average of the weights if the run kept one.",
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SubjectOptions:
    """Values of `subject_options`.

    Attributes:
        path: run, checkpoint or weight file.
        steps: number of Euler steps.
        cfg_scale: guidance scale.
        time_shift: shift of the sampling times.
        seed: seed of the noise.
        batch: samples computed together.
        device: torch device that computes.
        ema: whether to use averaged weights.
    """

    path: Path
    steps: int
    cfg_scale: float
    time_shift: float
    seed: int
    batch: int
    device: str
    ema: bool

    def sampling(self, each: int = 1) -> "SamplingConfig":
        """Configuration of the sampler, for `each` samples per condition."""
        from meanmode.dit.evaluate.sampling import SamplingConfig

        return SamplingConfig(
            each=each,
            steps=self.steps,
            cfg_scale=self.cfg_scale,
            time_shift=self.time_shift,
            seed=self.seed,
            batch=self.batch,
        )

    def open(self, *, text: str | None = None, codec: str | None = None) -> "Subject":
        """Open the network on the device, and report checkpoints that are skipped."""
        from meanmode.dit.evaluate.subject import open_subject

        check_device(self.device)
        subject = open_subject(self.path, ema=self.ema, text=text, codec=codec, damaged=tell)
        subject.network.to(self.device)
        return subject


def subject_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the path of a network and the options of its sampler, passed as one `SubjectOptions`."""
    names = SubjectOptions.__dataclass_fields__

    @functools.wraps(command)
    def gathered(**given: Any) -> Any:
        return command(SubjectOptions(**{name: given.pop(name) for name in names}), **given)

    for option in reversed(OPTIONS):
        gathered = option(gathered)
    return gathered


def tell(sentence: str) -> None:
    """Print a remark on stderr, on its own line even while a progress bar is shown."""
    from tqdm import tqdm

    tqdm.write(f"mms: {sentence}", file=sys.stderr)
