"""`mms sample`: a picture of samples of a trained network."""

import dataclasses
import json
import sys
from pathlib import Path

import click

from sweeps.options import CommaList


@click.command()
@click.argument("path", metavar="RUN|CHECKPOINT", type=click.Path(path_type=Path))
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
    default="0,1,2,3,4,5,6,7,8,9",
    show_default=True,
    help="Classes to draw, a row each.",
)
@click.option("--each", type=click.IntRange(min=1), default=8, show_default=True, help="Samples of a class.")
@click.option("--steps", type=click.IntRange(min=1), default=25, show_default=True, help="Euler steps (NFE).")
@click.option("--cfg-scale", type=float, default=2.0, show_default=True, help="Guidance; 1 for none.")
@click.option("--time-shift", type=float, default=4.0, show_default=True, help="Shift of the sampling times.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the noise.")
@click.option(
    "--batch", type=click.IntRange(min=1), default=64, show_default=True, help="Samples computed at a time."
)
@click.option("--device", default="cpu", show_default=True, help="Where to compute, as torch names it.")
@click.option(
    "--ema/--no-ema",
    default=True,
    show_default=True,
    help="The moving average of the weights, where the run kept one.",
)
def sample(
    path: Path,
    out: Path,
    classes: tuple[int, ...],
    each: int,
    steps: int,
    cfg_scale: float,
    time_shift: float,
    seed: int,
    batch: int,
    device: str,
    ema: bool,
) -> None:
    """Draw samples of the network of a RUN's last checkpoint, or of one CHECKPOINT, into a PNG file."""
    import torch
    from tqdm import tqdm

    from dit.data import source_of
    from dit.sampling import SamplingConfig, draw_samples, samples_figure
    from dit.states import find_checkpoint, load_network, notes_of
    from sim.provenance import provenance
    from sweeps.execute import check_device

    config = SamplingConfig(
        each=each, steps=steps, cfg_scale=cfg_scale, time_shift=time_shift, seed=seed, batch=batch
    )
    if out.suffix.lower() != ".png":
        raise ValueError(f"samples are written as PNG: give an --out that ends in .png, not {out}")
    if path.is_file():
        raise ValueError(
            f"{path} is a file of weights, whose latents have no pixel codec here: "
            "give the folder of a run of `mms train`, or of one of its checkpoints"
        )
    check_device(device)
    checkpoint = find_checkpoint(path, lambda sentence: click.echo(sentence, err=True))
    step = notes_of(checkpoint)["step"]
    run, network = load_network(checkpoint, ema=ema)
    if run.data != "digits":
        raise ValueError(
            f"{path} was trained on the data {run.data!r}, which have no pixel codec to draw them with"
        )
    source = source_of(run)
    prompts = source.prompts(torch.tensor(classes))
    out.parent.mkdir(parents=True, exist_ok=True)
    total = config.evaluations(len(classes))
    with tqdm(total=total, desc="steps", file=sys.stderr, dynamic_ncols=True, leave=False) as bar:
        samples = draw_samples(
            network.to(device), prompts, source.empty_text, config, labels=classes, step_done=bar.update
        )
    broken = int((~samples.flatten(2).isfinite().all(-1)).sum())
    if broken:
        click.echo(f"{broken} of {len(classes) * each} samples are not finite", err=True)
    averaged = bool(ema and run.training.ema)
    sizes = run.model
    caption = (
        f"{path}, step {step}{', averaged weights' if averaged else ''}: {sizes.depth} blocks, "
        f"width {sizes.width}, {sizes.image_tokens} tokens, {sizes.merge}; {steps} Euler steps, "
        f"guidance {cfg_scale:g}, time shift {time_shift:g}, seed {seed}"
    )
    images = source.images(samples.flatten(0, 1)).unflatten(0, samples.shape[:2])
    figure = samples_figure(images, [str(label) for label in classes], caption)
    said = {"sampling": dataclasses.asdict(config), "classes": classes, "ema": averaged}
    of = {"checkpoint": str(checkpoint), "step": step, "run": run.document()}
    figure.savefig(out, metadata={"Description": json.dumps({**said, **of, **provenance()})})
    click.echo(out)
