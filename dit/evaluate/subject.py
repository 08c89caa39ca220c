"""A trained network together with its text encoder, its decoder and its images."""

# K captions, B batch, C channels, H height, W width of a latent or of a picture, S text tokens

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from meanmode.dit.config.run_config import RunConfig
from meanmode.dit.data.captions import NO_CAPTION
from meanmode.dit.data.codecs import Flux2Codec
from meanmode.dit.data.images import Images
from meanmode.dit.data.latents import Latents
from meanmode.dit.data.sources import CLASSES, Digits, Source, source_of
from meanmode.dit.data.text_encoders import text_encoder
from meanmode.dit.model.network import DiT
from meanmode.dit.model.published import load_published
from meanmode.dit.train.checkpoint_files import has_average, notes_of
from meanmode.dit.train.checkpoints import find_checkpoint, load_network

DECODED_AT_ONCE = 64
"""Latents decoded together."""


KNOWN = 10
"""Largest number of known captions listed in an error message."""


Texts = tuple[Tensor, Tensor]
"""Text tokens of captions [K S W_text] and of the empty caption [S W_text], padded to the same length."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A network with everything needed to go from captions to pictures.

    Attributes:
        network: the network, in evaluation mode.
        name: origin of the network, for figure captions.
        document: origin of the network as JSON.
        captions: captions of the training data except the empty one; none for a weight file.
        source: training data; None for a weight file.
        texts: encodes captions as text tokens.
        decode: maps latents [B C H W] to pictures [B K H W] in [0, 1].
        images: opens the training images (False) or the held-out images (True).
    """

    network: DiT
    name: str
    document: dict[str, Any]
    captions: tuple[str, ...]
    source: Source | None
    texts: Callable[[Sequence[str]], Texts]
    decode: Callable[[Tensor], Tensor]
    images: Callable[[bool], Images]

    def pictures(self, latents: Float[Tensor, "*B C H W"]) -> Float[Tensor, "*B K H2 W2"]:
        """Decode latents on the device of the network; pictures are returned on the CPU, in [0, 1]."""
        device = next(self.network.parameters()).device
        parts = latents.reshape(-1, *latents.shape[-3:]).split(DECODED_AT_ONCE)
        found = torch.cat([self.decode(part.to(device)).cpu() for part in parts])
        return found.reshape(*latents.shape[:-3], *found.shape[1:])


def open_subject(
    path: Path,
    *,
    ema: bool = True,
    text: str | None = None,
    codec: str | None = None,
    damaged: Callable[[str], object] = lambda sentence: None,
) -> Subject:
    """Open the last checkpoint of a run, a single checkpoint, or a weight file with published names.

    Args:
        path: folder of a run or of a checkpoint, or a weight file.
        ema: load the moving average of the weights if the checkpoint has one.
        text: text encoder as in `meanmode.dit.data.text_encoders`; required for a weight file, refused
            otherwise.
        codec: codec of the latents, `flux2:PATH`; required for a weight file, refused otherwise.
        damaged: called with a sentence about each checkpoint that is skipped.

    Raises:
        ValueError: network, text encoder or codec are missing or do not fit together.
        StoreError: there is no checkpoint, or the checkpoint or its data are damaged.
    """
    if path.is_file():
        if text is None or codec is None:
            raise ValueError(
                f"{path} is a weight file: name its text encoder and its codec with --text qwen3:PATH "
                "and --codec flux2:PATH"
            )
        return _published(path, text, codec)
    if path.exists() and (text is not None or codec is not None):
        raise ValueError(f"{path} is not a weight file: its data determine --text and --codec, omit these")
    checkpoint = find_checkpoint(path, damaged)
    run, network = load_network(checkpoint, ema=ema)
    step, averaged = notes_of(checkpoint)["step"], ema and has_average(checkpoint)
    return subject_of(
        network,
        run,
        name=f"{path}, step {step}{', averaged weights' if averaged else ''}",
        document={"checkpoint": str(checkpoint), "step": step, "ema": averaged, "run": run.document()},
    )


def subject_of(network: DiT, run: RunConfig, *, name: str, document: dict[str, Any]) -> Subject:
    """The network of a run with the data it was trained on.

    Args:
        network: the network.
        run: the run that trained it.
        name: origin of the network, for messages and captions.
        document: origin of the network as JSON.

    Raises:
        ValueError: data that do not fit the network.
        StoreError: there are no such data, or they are damaged.
    """
    said = {"name": name, "document": document}
    source = source_of(run)
    if isinstance(source, Latents):
        return _of_latents(network, source, said)
    assert isinstance(source, Digits)
    return _of_digits(network, run, source, said)


def _of_digits(network: DiT, run: RunConfig, source: Digits, said: dict[str, Any]) -> Subject:
    captions = tuple(map(str, range(CLASSES)))

    def texts(wanted: Sequence[str]) -> Texts:
        unknown = [caption for caption in wanted if caption not in captions]
        if unknown:
            raise ValueError(f"digits have the captions 0 to {CLASSES - 1}, got {unknown[0]!r}")
        return source.prompts(torch.tensor([int(caption) for caption in wanted])), source.empty_text

    def images(held_out: bool) -> Images:
        raise ValueError(
            f"{said['name']} was trained on all digits, so no held-out images are left for comparison: "
            "encode them (mms encode digits) and train on that store"
        )

    return Subject(
        network=network.eval(),
        captions=captions,
        source=source,
        texts=texts,
        decode=lambda latents: source.images(latents)[:, None],
        images=images,
        **said,
    )


def _of_latents(network: DiT, source: Latents, said: dict[str, Any]) -> Subject:
    store = source.store
    tokens, codec = source.empty_text.shape[0], store.codec()
    captions = tuple(caption for caption in store.captions if caption != NO_CAPTION)

    def texts(wanted: Sequence[str]) -> Texts:
        if all(caption in store.caption_indices for caption in wanted):
            return source.caption_tokens(wanted), source.empty_text
        encoder = store.text_encoder()
        if encoder.name == "labels":
            unknown = next(caption for caption in wanted if caption not in store.caption_indices)
            raise ValueError(
                f"{said['name']} was trained on random tokens per caption and has never seen those of "
                f"{unknown!r}: choose from {', '.join(captions[:KNOWN])}"
            )
        for caption, length in zip(wanted, encoder.lengths(wanted), strict=True):
            if length > tokens:
                raise ValueError(
                    f"{caption!r} has {length} text tokens, {said['name']} was trained with at most {tokens}"
                )
        return encoder.encode(wanted, tokens), source.empty_text

    return Subject(
        network=network.eval(),
        captions=captions,
        source=source,
        texts=texts,
        decode=codec.decode,
        images=lambda held_out: store.images(held_out=held_out),
        **said,
    )


def _published(path: Path, text: str, codec: str) -> Subject:
    kind, _, folder = codec.partition(":")
    if kind != "flux2" or not folder:
        raise ValueError(f"the codec of a weight file must be flux2:PATH, got {codec!r}")
    encoder, decoder = text_encoder(text), Flux2Codec(folder, colours=3)
    network = load_published(path).eval()
    config = network.config
    if encoder.width != config.text_width:
        raise ValueError(
            f"{text} gives {encoder.width} features per token, but {path} reads {config.text_width}"
        )
    if decoder.channels != config.channels:
        raise ValueError(f"{codec} has {decoder.channels} channels, but {path} reads {config.channels}")

    def texts(wanted: Sequence[str]) -> Texts:
        together = [*wanted, NO_CAPTION]
        found = encoder.encode(together, max(encoder.lengths(together)))
        return found[:-1], found[-1]

    def images(held_out: bool) -> Images:
        raise ValueError(f"the weight file {path} does not say what it was trained on")

    return Subject(
        network=network,
        name=str(path),
        document={"weights": str(path), "text": encoder.document(), "codec": decoder.document()},
        captions=(),
        source=None,
        texts=texts,
        decode=decoder.decode,
        images=images,
    )
