"""`mms sample`: a picture of samples of a trained network."""

import dataclasses
import json
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from meanmode.sweeps.cli.options import CommaList

ROWS = 10
"""Captions that are drawn unless they are named, at most."""


SHOWN = 32
"""Letters of a caption that are shown beside its row, at most."""


def subject_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """PATH of a network and how it is sampled, the same in `sample` and `evaluate`."""
    options = (
        click.argument("path", metavar="RUN|CHECKPOINT|WEIGHTS", type=click.Path(path_type=Path)),
        click.option(
            "--steps",
            type=click.IntRange(min=1),
            default=25,
            show_default=True,
            help="Euler steps (NFE).",
        ),
        click.option("--cfg-scale", type=float, default=2.0, show_default=True, help="Guidance; 1 for none."),
        click.option(
            "--time-shift", type=float, default=4.0, show_default=True, help="Shift of the sampling times."
        ),
        click.option(
            "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the noise."
        ),
        click.option(
            "--batch",
            type=click.IntRange(min=1),
            default=64,
            show_default=True,
            help="Samples computed at a time.",
        ),
        click.option(
            "--device", default="cpu", show_default=True, help="Where to compute, as torch names it."
        ),
        click.option(
            "--ema/--no-ema",
            default=True,
            show_default=True,
            help="The moving average of the weights, where the run kept one.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@subject_options
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("samples.png"),
    show_default=True,
    help="PNG file to write.",
)
@click.option(
    "--classes",
    type=CommaList(int),
    help="Captions of the training to draw, by number, a row each.  [default: the first ten]",
)
@click.option(
    "--prompt", "prompts", multiple=True, help="A caption to draw, a row each; any number of times."
)
@click.option("--each", type=click.IntRange(min=1), default=8, show_default=True, help="Samples of a row.")
@click.option("--text", metavar="ENCODER", help="Of a file of WEIGHTS: qwen3:PATH_OR_ID, or another encoder.")
@click.option("--codec", metavar="CODEC", help="Of a file of WEIGHTS: flux2:PATH, the folder of the VAE.")
def sample(
    path: Path,
    steps: int,
    cfg_scale: float,
    time_shift: float,
    seed: int,
    batch: int,
    device: str,
    ema: bool,
    out: Path,
    classes: tuple[int, ...] | None,
    prompts: tuple[str, ...],
    each: int,
    text: str | None,
    codec: str | None,
) -> None:
    """Draw samples of a network into a PNG file.

    That of a RUN's last checkpoint, of one CHECKPOINT, or of a file of WEIGHTS under the published names.
    """
    from tqdm import tqdm

    from meanmode.dit.evaluate.sampling import SamplingConfig, draw_samples, samples_figure
    from meanmode.dit.evaluate.subject import open_subject
    from meanmode.sim.store.provenance import provenance
    from meanmode.sweeps.cli.options import check_device

    config = SamplingConfig(
        each=each, steps=steps, cfg_scale=cfg_scale, time_shift=time_shift, seed=seed, batch=batch
    )
    if out.suffix.lower() != ".png":
        raise ValueError(f"samples are written as PNG: give an --out that ends in .png, not {out}")
    if classes is not None and prompts:
        raise click.UsageError("--classes are captions of the training, --prompt is any: choose one of them")
    check_device(device)

    def tell(sentence: str) -> None:
        click.echo(f"mms: {sentence}", err=True)

    subject = open_subject(path, ema=ema, text=text, codec=codec, damaged=tell)
    rows = list(prompts) or _captions(subject.captions, classes, path)
    labels = list(range(len(rows))) if prompts or classes is None else list(classes)
    texts, empty_text = subject.texts(rows)
    out.parent.mkdir(parents=True, exist_ok=True)
    total = config.evaluations(len(rows))
    with tqdm(total=total, desc="steps", file=sys.stderr, dynamic_ncols=True, leave=False) as bar:
        samples = draw_samples(
            subject.network.to(device), texts, empty_text, config, labels=labels, step_done=bar.update
        )
    broken = int((~samples.flatten(2).isfinite().all(-1)).sum())
    if broken:
        tell(f"{broken} of {len(rows) * each} samples are not finite")
    sizes = subject.network.config
    caption = (
        f"{subject.name}: {sizes.depth} blocks, width {sizes.width}, {sizes.image_tokens} tokens, "
        f"{sizes.merge}; {steps} Euler steps, guidance {cfg_scale:g}, time shift {time_shift:g}, seed {seed}"
    )
    pictures = subject.pictures(samples)
    # a pair of dollars would be read as mathematics
    shown = [textwrap.shorten(row, SHOWN, placeholder="...") for row in rows]
    figure = samples_figure(pictures.movedim(2, -1), shown, caption)
    said = {"sampling": dataclasses.asdict(config), "captions": rows}
    described = json.dumps({**said, **subject.document, **provenance()})
    figure.savefig(out, metadata={"Description": described})
    click.echo(out)


def _captions(known: tuple[str, ...], classes: tuple[int, ...] | None, path: Path) -> list[str]:
    """Captions of the training by number; the first of them where no number is named."""
    if not known:
        raise click.UsageError(f"{path} knows no captions: give some with --prompt")
    if classes is None:
        return list(known[:ROWS])
    for number in classes:
        if not 0 <= number < len(known):
            raise ValueError(f"{path} was trained with the captions 0 to {len(known) - 1}, got {number}")
    return [known[number] for number in classes]
