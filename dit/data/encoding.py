"""Encode images and captions into a latent store, shard by shard, in one process or many."""

# N images, M captions

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from meanmode.dit.config.field_ranges import Range, check_fields
from meanmode.dit.data.bounds import BOUNDS
from meanmode.dit.data.captions import NO_CAPTION, captions_of
from meanmode.dit.data.codecs import fitted_codec
from meanmode.dit.data.images import IMAGES, Images, batch, images_of
from meanmode.dit.data.latent_store import LatentStore, lay_out_latents
from meanmode.dit.data.text_encoders import text_encoder
from meanmode.sim.store.destination import check_writable
from meanmode.sim.store.files import StoreError, StoreExistsError, check_free

FITTED_ON, FITTED_NUMBERS = 2048, 2**26
"""Largest number of images, evenly spaced, that a codec is fitted to, and of values in all of them."""


AT_ONCE = 32
"""Images or captions encoded together; fixed, so that all processes on one kind of device agree bitwise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodingConfig:
    """Which images and captions are encoded, and by which codec and text encoder.

    Attributes:
        images: source of the images, one of `meanmode.dit.data.images.IMAGES`.
        codec: codec of the latents as in `meanmode.dit.data.codecs`, or `store:PATH` to reuse the codec of
            another store exactly as it was fitted there.
        text: text encoder of the captions, as in `meanmode.dit.data.text_encoders`.
        captions: `classes`, `none`, or a file, as in `meanmode.dit.data.captions`.
        side: height and width of the images in pixels; None uses the default of the source.
        limit: largest number of images, evenly spaced; None encodes all.

    Raises:
        ValueError: a value is out of range.
    """

    images: str
    codec: str = "dct"
    text: str = "labels"
    captions: str = "classes"
    side: Annotated[int | None, Range(*BOUNDS["side"])] = None
    limit: Annotated[int | None, Range(*BOUNDS["limit"])] = None

    def __post_init__(self) -> None:
        check_fields(self)
        kind, colon, path = self.images.partition(":")
        if path and f"{kind}:PATH" in IMAGES:
            # absolute, so that it holds in other working folders; shells expand no ~ after a colon
            folder = Path(path).expanduser().resolve()
            object.__setattr__(self, "images", f"{kind}{colon}{folder}")

    def chosen(self, images: Images) -> NDArray[Any]:
        """Return the indices of the images to encode."""
        count = images.size if self.limit is None else min(self.limit, images.size)
        return evenly_spaced(images.size, count)


def evenly_spaced(size: int, count: int) -> NDArray[Any]:
    """Return `count` of the indices 0 to `size` - 1, evenly spaced and starting at 0."""
    return np.arange(count) * size // count


def lay_out(config: EncodingConfig, out: Path, *, device: str = "cpu") -> None:
    """Fit the codec, find the distinct captions, and create the empty store that `encode` fills.

    Args:
        config: what is encoded, and how.
        out: path of the new store.
        device: device that encodes.

    Raises:
        ValueError: images, captions, codec or text encoder are missing or do not fit together.
        StoreError: the store cannot be written.
        StoreExistsError: the path already exists.
    """
    check_free(out)
    check_writable(out)
    lay_out_latents(out, **_layout(config, images_of(config.images, side=config.side), device))


def check(
    config: EncodingConfig, out: Path, *, resume: bool = False, joins: bool = False, device: str = "cpu"
) -> Images:
    """Return the images that `encode` would encode, after every check that it makes before it writes.

    Args:
        config: what is encoded, and how.
        out: path of the store.
        resume: continue an existing store.
        joins: join an existing store.
        device: device that encodes.

    Raises:
        ValueError: as `encode`.
    """
    if resume and not out.exists():
        raise StoreError(f"{out} does not exist: there is nothing to resume")
    if out.exists() and (resume or joins):
        store = LatentStore(out)
        _agree(store, config)
        return store.images()
    check_free(out)
    check_writable(out)
    images = images_of(config.images, side=config.side)
    _layout(config, images, device)
    return images


def _layout(config: EncodingConfig, images: Images, device: str) -> dict[str, Any]:
    """Arguments of `lay_out_latents`: everything that the new store says about what it will hold."""
    chosen = config.chosen(images)
    texts = captions_of(images, config.captions)
    distinct = [NO_CAPTION, *sorted({texts[index] for index in chosen} - {NO_CAPTION})]
    numbers = {caption: number for number, caption in enumerate(distinct)}
    encoder = text_encoder(config.text, device=device)
    most = max(1, min(FITTED_ON, FITTED_NUMBERS // (images.colours * images.side**2), len(chosen)))
    sample = batch(images, chosen[evenly_spaced(len(chosen), most)]).to(device)
    kind, _, known = config.codec.partition(":")
    codec = LatentStore(Path(known)).codec() if kind == "store" else fitted_codec(config.codec, sample)
    return {
        "latent": tuple(codec.encode(sample[:1]).shape[1:]),
        "text": (max(encoder.lengths(distinct)), encoder.width),
        "captions": distinct,
        "caption_of": np.array([numbers[texts[index]] for index in chosen]),
        "image_of": chosen,
        "codec": codec,
        "text_encoder": encoder,
        "attributes": {
            "encoding": dataclasses.asdict(config),
            "source": {"side": images.side, **images.document()},
        },
    }


def encode(
    config: EncodingConfig,
    out: Path,
    *,
    resume: bool = False,
    share: tuple[int, int] | None = None,
    device: str = "cpu",
    shard_done: Callable[[int, int], object] = lambda done, total: None,
) -> int:
    """Encode the missing shards of a store and return how many there were.

    Args:
        config: what is encoded, and how.
        out: path of the store.
        resume: continue an existing store.
        share: number of this process, counted from 1, and the number of processes that fill the store
            together; the first to start creates the store and the others join it.
        device: device that encodes.
        shard_done: called with the numbers of finished shards and of shards to do, at the start and after
            each shard.

    Raises:
        ValueError: images, captions, codec or text encoder are missing or do not fit together.
        StoreError: the store was begun with another configuration, does not exist, or cannot be written.
        StoreExistsError: the store exists and neither `resume` nor `share` is given.
    """
    if resume and not out.exists():
        raise StoreError(f"{out} does not exist: there is nothing to resume")
    if not out.exists() or not (resume or share):
        try:
            lay_out(config, out, device=device)
        except StoreExistsError:
            if share is None:
                raise
    store = LatentStore(out, "r+")
    _agree(store, config)
    number, count = share or (1, 1)
    todo = [index for index in store.remaining() if index % count == number - 1]
    shard_done(0, len(todo))
    if todo:
        work = _Work(store, device)
        for done, index in enumerate(todo, start=1):
            if not store.is_done(index):  # another process may have written it meanwhile
                store.write(index, work.shard(store.parts[index]))
            shard_done(done, len(todo))
    return len(todo)


def _agree(store: LatentStore, config: EncodingConfig) -> None:
    """Refuse to continue a store that was begun with another configuration."""
    for name, value in dataclasses.asdict(config).items():
        if store.encoding.get(name) != value:
            raise StoreError(f"{store.path} was begun with {name} {store.encoding.get(name)}, not {value}")


class _Work:
    """Encodes the shards of a store with its own codec and text encoder."""

    def __init__(self, store: LatentStore, device: str) -> None:
        self.store, self.device = store, device
        self.codec, self.images = store.codec(), store.images()
        self.encoder = store.text_encoder(device=device)

    def shard(self, part: tuple[str, int]) -> NDArray[np.float16]:
        """Encode the rows of one shard.

        Raises:
            ValueError: an image cannot be read, or a value does not fit half precision.
        """
        rows, encoded = self.store.rows(part), self._latents if part[0] == "latents" else self._texts
        parts = (encoded(rows[first : first + AT_ONCE]) for first in range(0, len(rows), AT_ONCE))
        values = torch.cat([part.to(torch.float16).cpu() for part in parts])
        wrong = ~values.flatten(1).isfinite().all(1)
        if wrong.any():
            row = rows[int(wrong.int().argmax())]
            image, caption = self.images.name(int(self.store.image_of[row])), self.store.captions[row]
            of = f"the latent of {image}" if part[0] == "latents" else f"the text {caption!r}"
            raise ValueError(f"{of} contains values that are not finite in half precision")
        return values.numpy()

    def _latents(self, rows: Sequence[int]) -> Tensor:
        return self.codec.encode(batch(self.images, self.store.image_of[rows]).to(self.device))

    def _texts(self, rows: Sequence[int]) -> Tensor:
        tokens = self.store.arrays["texts"].shape[1]
        return self.encoder.encode([self.store.captions[row] for row in rows], tokens)
