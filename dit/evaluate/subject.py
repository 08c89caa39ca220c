"""A trained network with what it takes to sample it: texts of captions, pictures of latents, its images."""

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
from meanmode.dit.train.checkpoints import find_checkpoint, load_network, notes_of

DECODED_AT_ONCE = 64
"""Latents."""


KNOWN = 10
"""As many known captions an error lists."""


Texts = tuple[Tensor, Tensor]
"""Text tokens of captions [K S W_text], and of the empty one, padded alike [S W_text]."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A network, and what joins its latents and texts to pictures and captions.

    Attributes:
        network: in evaluation.
        name: where it came from, for captions of figures.
        document: the same as JSON.
        captions: those that it was trained with, without the empty one; none of a file of weights.
        source: its training data; None of a file of weights.
        texts: of captions.
        decode: latents [B C H W] to pictures [B K H W] in [0, 1].
        images: of the training (False), or held out of it (True).
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
        """Pictures of latents, values in [0, 1], computed where the network is, on the CPU."""
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
    """The network of a run's last checkpoint, of one checkpoint, or of a file under the published names.

    Args:
        path: folder of a run or of a checkpoint, or a file of weights.
        ema: the moving average of the weights, where the run kept one.
        text: encoder of the captions, as in `meanmode.dit.data.text_encoders`; of a file of weights, and only of it.
        codec: of the latents, `flux2:PATH`; likewise.
        damaged: told of checkpoints that are passed over.

    Raises:
        ValueError: no network, encoder or codec there, or some that do not fit each other.
        StoreError: no checkpoint there, a damaged one, or data that are damaged.
    """
    if path.is_file():
        if text is None or codec is None:
            raise ValueError(
                f"{path} is a file of weights: say what its texts and latents are with --text qwen3:PATH "
                "and --codec flux2:PATH"
            )
        return _published(path, text, codec)
    if path.exists() and (text is not None or codec is not None):
        raise ValueError(f"{path} is no file of weights: its data say what encodes its texts and latents")
    checkpoint = find_checkpoint(path, damaged)
    run, network = load_network(checkpoint, ema=ema)
    step, averaged = notes_of(checkpoint)["step"], bool(ema and run.training.ema)
    said = {
        "name": f"{path}, step {step}{', averaged weights' if averaged else ''}",
        "document": {"checkpoint": str(checkpoint), "step": step, "ema": averaged, "run": run.document()},
    }
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
            f"{said['name']} was trained on all digits, none are held out to compare with: encode them "
            "(mms encode digits) and train on that"
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
        if all(caption in store.caption_places for caption in wanted):
            return source.caption_tokens(wanted), source.empty_text
        encoder = store.text_encoder()
        if encoder.name == "labels":
            unknown = next(caption for caption in wanted if caption not in store.caption_places)
            raise ValueError(
                f"{said['name']} was trained on random tokens of every caption and has never seen those of "
                f"{unknown!r}: choose from {', '.join(captions[:KNOWN])}"
            )
        for caption, length in zip(wanted, encoder.lengths(wanted), strict=True):
            if length > tokens:
                raise ValueError(
                    f"{caption!r} has {length} text tokens, {said['name']} was trained with {tokens} at most"
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
        raise ValueError(f"the latents of a file of weights are those of flux2:PATH, got {codec!r}")
    encoder, decoder = text_encoder(text), Flux2Codec(folder, colours=3)
    network = load_published(path).eval()
    config = network.config
    if encoder.width != config.text_width:
        raise ValueError(f"{text} has {encoder.width} features a token, {path} reads {config.text_width}")
    if decoder.channels != config.channels:
        raise ValueError(f"{codec} has {decoder.channels} channels, {path} reads {config.channels}")

    def texts(wanted: Sequence[str]) -> Texts:
        together = [*wanted, NO_CAPTION]
        found = encoder.encode(together, max(encoder.lengths(together)))
        return found[:-1], found[-1]

    def images(held_out: bool) -> Images:
        raise ValueError(f"{path} does not say what it was trained on")

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
