"""Encoding images and captions into a latent store, shard by shard, by one process or many."""

# N images, M captions

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from meanmode.dit.config.training_config import at_least
from meanmode.dit.data.captions import NO_CAPTION, captions_of
from meanmode.dit.data.codecs import fitted_codec
from meanmode.dit.data.images import IMAGES, Images, batch, images_of
from meanmode.dit.data.latent_store import LatentStore, lay_out_latents
from meanmode.dit.data.text_encoders import text_encoder
from meanmode.sim.store.files import StoreError, StoreExistsError, check_free

FITTED_ON, FITTED_NUMBERS = 2048, 2**26
"""As many images, evenly spaced, a codec learns its statistics from; fewer where they hold more numbers."""


AT_ONCE = 32
"""Images or captions; fixed, so that a shard has the same bits whoever encodes it on one kind of device."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodingConfig:
    """What is encoded, and how.

    Attributes:
        images: source, of `meanmode.dit.data.images.IMAGES`.
        codec: of latents, of `meanmode.dit.data.codecs`; or `store:PATH`, that of another store, as it was fitted there.
        text: encoder of captions, of `meanmode.dit.data.text_encoders`.
        captions: `classes`, `none`, or a file; as in `meanmode.dit.data.captions`.
        side: of the images, pixels; None for the source's own.
        limit: so many images at most, evenly spaced; None for all.

    Raises:
        ValueError: a value outside its range.
    """

    images: str
    codec: str = "dct"
    text: str = "labels"
    captions: str = "classes"
    side: int | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        at_least(self, {name: 1 for name in ("side", "limit") if getattr(self, name) is not None})
        kind, colon, path = self.images.partition(":")
        if path and f"{kind}:PATH" in IMAGES:
            # absolute, for an evaluation from another folder; no shell expands a ~ behind a colon
            place = Path(path).expanduser().resolve()
            object.__setattr__(self, "images", f"{kind}{colon}{place}")

    def chosen(self, images: Images) -> NDArray[Any]:
        """The images that are encoded, as places in the source."""
        count = images.size if self.limit is None else min(self.limit, images.size)
        return evenly_spaced(images.size, count)


def evenly_spaced(size: int, count: int) -> NDArray[Any]:
    """So many places of so many, evenly spaced from the first on."""
    return np.arange(count) * size // count


def lay_out(config: EncodingConfig, out: Path, *, device: str = "cpu") -> None:
    """Lay out the store that `encode` fills: fit the codec, and find the distinct captions.

    Args:
        config: what is encoded.
        out: where; must not exist.
        device: that encodes.

    Raises:
        ValueError: images, captions, codec or encoder that are not there or do not fit.
        StoreError: no room.
        StoreExistsError: something is already there.
    """
    check_free(out)
    images = images_of(config.images, side=config.side)
    chosen = config.chosen(images)
    texts = captions_of(images, config.captions)
    distinct = [NO_CAPTION, *sorted({texts[index] for index in chosen} - {NO_CAPTION})]
    places = {caption: place for place, caption in enumerate(distinct)}
    encoder = text_encoder(config.text, device=device)
    most = max(1, min(FITTED_ON, FITTED_NUMBERS // (images.colours * images.side**2), len(chosen)))
    sample = batch(images, chosen[evenly_spaced(len(chosen), most)]).to(device)
    kind, _, known = config.codec.partition(":")
    codec = LatentStore(Path(known)).codec() if kind == "store" else fitted_codec(config.codec, sample)
    lay_out_latents(
        out,
        latent=tuple(codec.encode(sample[:1]).shape[1:]),
        text=(max(encoder.lengths(distinct)), encoder.width),
        captions=distinct,
        caption_of=np.array([places[texts[index]] for index in chosen]),
        image_of=chosen,
        codec=codec,
        text_encoder=encoder,
        attributes={
            "encoding": dataclasses.asdict(config),
            "source": {"side": images.side, **images.document()},
        },
    )


def encode(
    config: EncodingConfig,
    out: Path,
    *,
    resume: bool = False,
    share: tuple[int, int] | None = None,
    device: str = "cpu",
    shard_done: Callable[[int, int], object] = lambda done, total: None,
) -> int:
    """Encode what a store still lacks; how many shards that were.

    Args:
        config: what is encoded.
        out: the store.
        resume: go on with the store that is there.
        share: number, from 1, and count of the processes that fill the store together: the first that is
            there lays it out, the others join it.
        device: that encodes.
        shard_done: told how many shards are done of how many to do, at first and after each.

    Raises:
        ValueError: images, captions, codec or encoder that are not there or do not fit.
        StoreError: another store, no store to go on with, or no room.
        StoreExistsError: there is a store, and neither `resume` nor `share` says to go on with it.
    """
    if resume and not out.exists():
        raise StoreError(f"{out} does not exist: there is nothing to go on with")
    if not out.exists() or not (resume or share):
        try:
            lay_out(config, out, device=device)
        except StoreExistsError:
            if share is None:
                raise
    store = LatentStore(out, "r+")
    _agree(store, config)
    number, count = share or (1, 1)
    todo = [place for place in store.remaining() if place % count == number - 1]
    shard_done(0, len(todo))
    if todo:
        work = _Work(store, device)
        for done, place in enumerate(todo, start=1):
            if not store.is_done(place):  # by another process that goes on with the store
                store.write(place, work.shard(store.parts[place]))
            shard_done(done, len(todo))
    return len(todo)


def _agree(store: LatentStore, config: EncodingConfig) -> None:
    """Refuse to go on with a store of something else."""
    for name, value in dataclasses.asdict(config).items():
        if store.encoding[name] != value:
            raise StoreError(f"{store.path} was begun with {name} {store.encoding[name]}, not {value}")


class _Work:
    """What encodes the shards of a store."""

    def __init__(self, store: LatentStore, device: str) -> None:
        self.store, self.device = store, device
        self.codec, self.images = store.codec(), store.images()
        self.encoder = store.text_encoder(device=device)

    def shard(self, part: tuple[str, int]) -> NDArray[np.float16]:
        """The rows of a shard.

        Raises:
            ValueError: an image that cannot be read, or values beyond half precision.
        """
        rows, encoded = self.store.rows(part), self._latents if part[0] == "latents" else self._texts
        parts = (encoded(rows[first : first + AT_ONCE]) for first in range(0, len(rows), AT_ONCE))
        values = torch.cat([part.to(torch.float16).cpu() for part in parts])
        wrong = ~values.flatten(1).isfinite().all(1)
        if wrong.any():
            row = rows[int(wrong.int().argmax())]
            image, caption = self.images.name(int(self.store.image_of[row])), self.store.captions[row]
            of = f"the latent of {image}" if part[0] == "latents" else f"the text {caption!r}"
            raise ValueError(f"{of} holds values that are not finite in half precision")
        return values.numpy()

    def _latents(self, rows: Sequence[int]) -> Tensor:
        return self.codec.encode(batch(self.images, self.store.image_of[rows]).to(self.device))

    def _texts(self, rows: Sequence[int]) -> Tensor:
        tokens = self.store.arrays["texts"].shape[1]
        return self.encoder.encode([self.store.captions[row] for row in rows], tokens)
