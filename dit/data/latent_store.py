"""The latent store: latents and texts that were encoded once, in Zarr, shard by shard."""

# N samples, M captions, C channels, H height, W width of a latent, S text tokens

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.buffer import Buffer
from zarr.storage import MemoryStore

from meanmode.dit.data.codecs import Codec, stored_codec
from meanmode.dit.data.images import Images, images_of
from meanmode.dit.data.text_encoders import TextEncoder, stored_text_encoder
from meanmode.sim.store.files import (
    UNREADABLE,
    StoreError,
    add_array,
    check_free,
    chunk_path,
    find_arrays,
    json_attribute,
    open_kind,
    put_in_place,
    write_chunk,
)
from meanmode.sim.store.provenance import provenance
from meanmode.sim.store.sharded_rows import ShardedRows, add_sharded

KIND = "mean-mode latents"


LARGEST_SHARD, SMALLEST_SHARD, SHARDS = 1024, 64, 64
"""Rows of a shard: a part in `SHARDS` of all, within these bounds."""


TODO, DONE = 0, 1


NEEDED = {
    "encoding": ("images",),
    "source": ("side", "digest"),
    "codec": ("name", "digest"),
    "text_encoder": ("name", "digest"),
}
"""Attributes that every store has, and what they have to say at least."""


CODEC_ARRAY = "codec_"
"""What the names of the arrays of a codec begin with."""


def rows_of_a_shard(count: int) -> int:
    """Rows of each shard of an array of so many."""
    return min(LARGEST_SHARD, max(SMALLEST_SHARD, -(-count // SHARDS)))


def lay_out_latents(
    path: Path,
    *,
    latent: Sequence[int],
    text: Sequence[int],
    captions: Sequence[str],
    caption_of: NDArray[np.int64],
    image_of: NDArray[np.int64],
    codec: Codec,
    text_encoder: TextEncoder,
    attributes: Mapping[str, Any],
) -> None:
    """Lay out an empty latent store; it appears under `path` complete or not at all.

    Args:
        path: where; must not exist.
        latent: [C, H, W].
        text: [S, W_text].
        captions: distinct ones, the empty one first.
        caption_of: every sample's, as a place in them [N].
        image_of: every sample's image, as a place in the source [N].
        codec: of the latents; its parameters are kept in the store.
        text_encoder: of the captions.
        attributes: of the source, JSON-serialisable.

    Raises:
        StoreExistsError: something is already there.
        StoreError: no room, or another error of the file system.
    """
    check_free(path)
    documents = {"codec": codec.document(), "text_encoder": text_encoder.document(), **attributes}
    samples = hashlib.sha256(json.dumps([list(captions), caption_of.tolist(), image_of.tolist()]).encode())
    identity = json.dumps([documents, list(latent), list(text), samples.hexdigest()], sort_keys=True)
    files: dict[str, Buffer] = {}
    group = zarr.open_group(MemoryStore(files), mode="w")
    group.attrs.update(
        {
            "kind": KIND,
            **{name: json.dumps(value) for name, value in documents.items()},
            "digest": hashlib.sha256(identity.encode()).hexdigest(),
            **provenance(),
        }
    )
    count, texts = len(caption_of), len(captions)
    rows = {"latents": rows_of_a_shard(count), "texts": rows_of_a_shard(texts)}
    dims = ("sample", "channel", "row", "column")
    add_sharded(group, "latents", (count, *latent), rows["latents"], dims, "latent, as the codec gives it")
    dims = ("caption", "token", "feature")
    add_sharded(group, "texts", (texts, *text), rows["texts"], dims, "text tokens of a caption")
    parts = [-(-count // rows["latents"]), -(-texts // rows["texts"])]
    for name, values, dim, definition in (
        ("caption_of", caption_of.astype("int32"), "sample", "caption of the sample"),
        ("image_of", image_of.astype("int32"), "sample", "image of the sample, as a place in the source"),
    ):
        add_array(group, name, (count,), "int32", -1, (dim,), {"long_name": definition}, rows=count)[:] = (
            values
        )
    add_array(
        group,
        "captions",
        (texts,),
        "string",
        "",
        ("caption",),
        {"long_name": "distinct captions"},
        rows=texts,
    )[:] = np.array(captions, dtype=object)
    for name, parameters in codec.tensors().items():
        dims = tuple(f"{name}_{axis}" for axis in range(parameters.ndim))
        array = group.create_array(CODEC_ARRAY + name, data=parameters, dimension_names=dims)
        array.attrs["long_name"] = f"{name} of the codec"
    done = {"long_name": "state of a shard: of latents first, then of texts", "flag_meanings": "to_do done"}
    add_array(group, "status", (sum(parts),), "int8", TODO, ("shard",), done)
    put_in_place(files, path)


class LatentStore:
    """A latent store, complete or not.

    Args:
        path: of it.

    Attributes:
        encoding: what was asked for, of `meanmode.dit.data.encoding.EncodingConfig`.
        source, codec_document, text_document: what images, latents and texts are.
        captions: distinct ones, the empty one first.
        caption_of, image_of: every sample's, as places in the captions and in the images [N].
        digest: of all that determines what the store holds.

    Raises:
        StoreError: no latent store, or a damaged one.
    """

    def __init__(self, path: Path, mode: str = "r") -> None:
        self.path = path
        self._codec: Codec | None = None
        self.group = open_kind(path, mode, KIND)
        names = ("latents", "texts", "caption_of", "image_of", "captions", "status")
        self.arrays = find_arrays(self.group, path, names)
        found = {name: json_attribute(self.group, path, name, dict) for name in NEEDED}
        lacking = [
            f"{name}: {key}" for name, keys in NEEDED.items() for key in keys if key not in found[name]
        ]
        if lacking or "digest" not in self.group.attrs:
            raise StoreError(f"{path} is damaged: its attributes lack {(*lacking, 'digest')[0]}")
        self.encoding: dict[str, Any] = found["encoding"]
        self.source: dict[str, Any] = found["source"]
        self.codec_document: dict[str, Any] = found["codec"]
        self.text_document: dict[str, Any] = found["text_encoder"]
        self.digest = str(self.group.attrs["digest"])
        try:
            self.caption_of = np.asarray(self.arrays["caption_of"][:], np.int64)
            self.image_of = np.asarray(self.arrays["image_of"][:], np.int64)
            self.captions = tuple(str(text) for text in np.asarray(self.arrays["captions"][:]))
        except UNREADABLE as error:
            raise StoreError(f"{path} is damaged: its captions cannot be read") from error

    @cached_property
    def caption_places(self) -> dict[str, int]:
        """The place of every caption in `captions`."""
        return {caption: place for place, caption in enumerate(self.captions)}

    @property
    def parts(self) -> list[tuple[str, int]]:
        """The shards, as array and number, in the order of their status."""
        return [
            (name, number)
            for name in ("latents", "texts")
            for number in range(-(-self.arrays[name].shape[0] // self._rows(name)))
        ]

    def _rows(self, name: str) -> int:
        shards = self.arrays[name].shards
        if shards is None:
            raise StoreError(f"{self.path}: {name} is not laid out in shards")
        return shards[0]

    def rows(self, part: tuple[str, int]) -> range:
        """The rows of a shard."""
        name, number = part
        first = number * self._rows(name)
        return range(first, min(first + self._rows(name), self.arrays[name].shape[0]))

    def is_done(self, place: int) -> bool:
        """Whether a shard was written, and is still there as a whole."""
        name, number = self.parts[place]
        try:
            done = int(np.asarray(self.arrays["status"][place])) == DONE
        except UNREADABLE:
            return False
        return done and ShardedRows(self.path, self.arrays[name]).holds(number)

    def remaining(self) -> list[int]:
        """Shards that are still to be written, or were lost, as places in `parts`."""
        return [place for place in range(len(self.parts)) if not self.is_done(place)]

    def write(self, place: int, values: NDArray[np.float16]) -> None:
        """Write a shard, and then that it is done.

        Raises:
            StoreError: no room, or another error of the file system; the shard then stays to do.
        """
        part, status = self.parts[place], self.arrays["status"]
        rows = self.rows(part)
        try:
            write_chunk(self.path, status, place, np.array([TODO], np.int8))
            # what a killed process left of it, which Zarr would read first
            chunk_path(self.path, self.arrays[part[0]], part[1]).unlink(missing_ok=True)
            self.arrays[part[0]].with_config({"write_empty_chunks": True})[rows.start : rows.stop] = values
            write_chunk(self.path, status, place, np.array([DONE], np.int8))
        except OSError as error:
            raise StoreError(
                f"{self.path}: shard {place} could not be written ({error.strerror}) and stays to do: "
                "put that right and go on with --resume"
            ) from error

    def codec(self) -> Codec:
        """The codec of the latents, from its parameters in the store.

        Raises:
            ValueError: a codec whose weights lie elsewhere, and are not there or others.
        """
        if self._codec is None:
            tensors = {
                name.removeprefix(CODEC_ARRAY): np.asarray(array[...])
                for name, array in self.group.arrays()
                if name.startswith(CODEC_ARRAY)
            }
            self._codec = stored_codec(self.codec_document, tensors)
        return self._codec

    def text_encoder(self, *, device: str = "cpu") -> TextEncoder:
        """The encoder of the texts.

        Raises:
            ValueError: one whose weights are not there, or others.
        """
        return stored_text_encoder(self.text_document, device=device)

    def images(self, *, held_out: bool = False) -> Images:
        """The images that the latents were made of, or those held out.

        Raises:
            ValueError: they are not there, or are no longer those.
        """
        spec, side = self.encoding["images"], self.source["side"]
        try:
            images = images_of(spec, side=side)
        except ValueError as error:
            raise ValueError(f"the images that {self.path} was made of are not there: {error}") from error
        if {"side": side, **images.document()} != self.source:
            raise ValueError(f"the images {spec} are no longer those that {self.path} was made of")
        return images_of(spec, side=side, held_out=True) if held_out else images
