"""`mms sample`: draw samples of a trained network into a picture."""

import dataclasses
import io
import json
import textwrap
from pathlib import Path

import click

from meanmode.dit.data.bounds import BOUNDS
from meanmode.sweeps.cli.options import CommaList
from meanmode.sweeps.cli.progress_bar import ProgressBar
from meanmode.sweeps.cli.sampling_options import SubjectOptions, subject_options, tell

ROWS = 10
"""Number of captions drawn by default."""


SHOWN = 32
"""Largest number of letters of a caption shown next to its row."""


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
    help="Numbers of the training captions to draw, one row each.  [default: the first ten]",
)
@click.option(
    "--prompt", "prompts", multiple=True, help="Caption to draw, one row each; may be given several times."
)
@click.option(
    "--each",
    type=click.IntRange(*BOUNDS["each"]),
    default=8,
    show_default=True,
    help="Number of samples per row.",
)
@click.option(
    "--text",
    metavar="ENCODER",
    help="Text encoder of a WEIGHTS file: qwen3:PATH_OR_ID or another encoder.",
)
@click.option(
    "--codec",
    metavar="CODEC",
    help="Codec of a WEIGHTS file: flux2:PATH, where PATH is the folder of the VAE.",
)
def sample(
    options: SubjectOptions,
    out: Path,
    classes: tuple[int, ...] | None,
    prompts: tuple[str, ...],
    each: int,
    text: str | None,
    codec: str | None,
) -> None:
    """Draw samples of a network into a PNG file.

    The network is the last checkpoint of a RUN, a single CHECKPOINT, or a WEIGHTS file with the published
    names.
    """
    import torch

    from meanmode.dit.evaluate.sampling import check_figure, draw_samples, samples_figure
    from meanmode.sim.store.destination import check_writable
    from meanmode.sim.store.files import write_whole
    from meanmode.sim.store.provenance import provenance

    config = options.sampling(each)
    if out.suffix.lower() != ".png":
        raise ValueError(f"samples are written as PNG: give an --out that ends in .png, not {out}")
    if classes is not None and prompts:
        raise click.UsageError("--classes selects training captions and --prompt gives others: use only one")
    if out.exists() and not out.is_file():
        raise ValueError(f"{out} is not a file: choose another --out")
    check_writable(out)
    subject = options.open(text=text, codec=codec)
    rows = list(prompts) or _captions(subject.captions, classes, options.path)
    labels = list(range(len(rows))) if prompts or classes is None else list(classes)
    texts, empty_text = subject.texts(rows)
    sizes = subject.network.config
    nothing = torch.zeros(1, sizes.channels, sizes.side, sizes.side)
    check_figure(len(rows), each, subject.pictures(nothing).shape[-1])
    with ProgressBar("steps", "step", config.evaluations(len(rows))) as bar:
        samples = draw_samples(
            subject.network, texts, empty_text, config, labels=labels, step_done=bar.advance
        )
    broken = int((~samples.flatten(2).isfinite().all(-1)).sum())
    if broken:
        tell(f"{broken} of {len(rows) * each} samples are not finite")
    caption = (
        f"{subject.name}: {sizes.depth} blocks, width {sizes.width}, {sizes.image_tokens} tokens, "
        f"{sizes.merge}; {config.steps} Euler steps, guidance {config.cfg_scale:g}, "
        f"time shift {config.time_shift:g}, seed {config.seed}"
    )
    shown = [textwrap.shorten(row, SHOWN, placeholder="...") for row in rows]
    figure = samples_figure(subject.pictures(samples).movedim(2, -1), shown, caption)
    settings = {"sampling": dataclasses.asdict(config), "captions": rows}
    described = json.dumps({**settings, **subject.document, **provenance()})
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Description": described})
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, content.getvalue())
    click.echo(out)


def _captions(known: tuple[str, ...], classes: tuple[int, ...] | None, path: Path) -> list[str]:
    """Training captions by number, or the first `ROWS` of them if no numbers are given."""
    if not known:
        raise click.UsageError(f"{path} has no captions of its own: give some with --prompt")
    if classes is None:
        return list(known[:ROWS])
    for number in classes:
        if not 0 <= number < len(known):
            raise ValueError(f"the captions of {path} are numbered 0 to {len(known) - 1}, got {number}")
    return [known[number] for number in classes]
