"""`mms encode`: encode images and captions into a latent store."""

import dataclasses
from pathlib import Path

import click

from meanmode.dit.data.bounds import BOUNDS
from meanmode.sweeps.cli.options import check_device, shard_option, show_json
from meanmode.sweeps.cli.progress_bar import ProgressBar


@click.command()
@click.argument("images")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Store to write.")
@click.option(
    "--codec",
    default="dct",
    show_default=True,
    metavar="CODEC",
    help="Codec of the latents: pixels, dct, pca, flux2:PATH with the folder of a FLUX.2 VAE, or store:PATH "
    "for the codec of another store.",
)
@click.option(
    "--text",
    default="labels",
    show_default=True,
    metavar="ENCODER",
    help="Text encoder: labels (frozen random tokens per distinct caption), minilm, or qwen3:PATH_OR_ID.",
)
@click.option(
    "--captions",
    default="classes",
    show_default=True,
    metavar="CAPTIONS",
    help='Captions: classes, none, or a file of JSON lines {"file_name": ..., "text": ...}.',
)
@click.option(
    "--side",
    type=click.IntRange(*BOUNDS["side"]),
    help="Height and width of the images in pixels.  [default: that of the source; photos 128, a folder 256]",
)
@click.option(
    "--limit",
    type=click.IntRange(*BOUNDS["limit"]),
    help="Largest number of images to encode, evenly spaced.  [default: all]",
)
@click.option("--device", default="cpu", show_default=True, help="Torch device that encodes.")
@shard_option
@click.option("--resume", is_flag=True, help="Resume the store where it stopped.")
@click.option("-n", "--dry-run", is_flag=True, help="Print what would be encoded.")
def encode(
    images: str,
    out: Path,
    codec: str,
    text: str,
    captions: str,
    side: int | None,
    limit: int | None,
    device: str,
    shard: str | None,
    resume: bool,
    dry_run: bool,
) -> None:
    """Encode IMAGES once: digits, fashion-mnist:PATH, photos, or imagefolder:PATH.

    Held-out images (Fashion-MNIST's test set, the right part of every photograph, every tenth image of the
    other sources) are reserved for `mms evaluate`.
    """
    from meanmode.dit.data.encoding import EncodingConfig, check
    from meanmode.dit.data.encoding import encode as fill
    from meanmode.sweeps.engine.shards import Shard

    check_device(device)
    share = None if shard is None else Shard.parse(shard)
    config = EncodingConfig(images=images, codec=codec, text=text, captions=captions, side=side, limit=limit)
    if dry_run:
        found = check(config, out, resume=resume, joins=share is not None, device=device)
        sizes = {"samples": len(config.chosen(found)), "side": found.side, "colours": found.colours}
        show_json({**dataclasses.asdict(config), **sizes, "out": str(out), "shard": shard})
        return
    with ProgressBar(out.name, "shard") as bar:
        fill(
            config,
            out,
            resume=resume,
            share=None if share is None else (share.index, share.count),
            device=device,
            shard_done=bar.reached,
        )
    click.echo(out)
