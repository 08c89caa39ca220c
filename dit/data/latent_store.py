"""The latent store: latents and text tokens, encoded once and kept in Zarr shard by shard."""

# N samples, M captions, C channels, H height, W width of a latent, S text tokens

import hashlib
import json
import math
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
    put_in_place,
    write_chunk,
)
from meanmode.sim.store.opening import find_arrays, json_attribute, open_kind
from meanmode.sim.store.provenance import provenance
from meanmode.sim.store.sharded_rows import ShardedRows, add_sharded

KIND = "mean-mode latents"


LARGEST_SHARD, SMALLEST_SHARD, SHARDS = 1024, 64, 64
"""Bounds on the rows of a shard, and the number of shards aimed at between them."""


TODO, DONE = 0, 1


NEEDED: dict[str, dict[str, type]] = {
    "encoding": {"images": str},
    "source": {"side": int, "digest": str},
    "codec": {"name": str, "digest": str, "colours": int},
    "text_encoder": {"name": str, "digest": str},
}
"""Attributes that every store must have, and the keys that each must contain, with their types."""


DIMENSIONS = {"latents": 4, "texts": 3, "caption_of": 1, "image_of": 1, "captions": 1, "status": 1}
"""Arrays that every store must have, and their numbers of dimensions."""


CODEC_ARRAY = "codec_"
"""Prefix of the names of the arrays that hold codec parameters."""


def rows_of_a_shard(count: int) -> int:
    """Rows per shard for an array of `count` rows."""
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
    """Create an empty latent store; it appears under `path` complete or not at all.

    Args:
        path: path of the new store.
        latent: shape [C, H, W] of a latent.
        text: shape [S, W_text] of the tokens of a caption.
        captions: distinct captions, the empty one first.
        caption_of: index in `captions` of every sample [N].
        image_of: index in the source of every sample's image [N].
        codec: codec of the latents, whose parameters are kept in the store.
        text_encoder: encoder of the captions.
        attributes: further attributes that describe the source, JSON-serialisable.

    Raises:
        StoreExistsError: the path already exists.
        StoreError: the store cannot be written.
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
    shards = _add_encoded(group, len(caption_of), latent, len(captions), text)
    _add_samples(group, captions, caption_of, image_of)
    for name, parameters in codec.tensors().items():
        dims = tuple(f"{name}_{axis}" for axis in range(parameters.ndim))
        array = group.create_array(CODEC_ARRAY + name, data=parameters, dimension_names=dims)
        array.attrs["long_name"] = f"{name} of the codec"
    done = {"long_name": "state of a shard: of latents first, then of texts", "flag_meanings": "to_do done"}
    add_array(group, "status", (shards,), "int8", TODO, ("shard",), done)
    put_in_place(files, path)


def _add_encoded(
    group: zarr.Group, samples: int, latent: Sequence[int], captions: int, text: Sequence[int]
) -> int:
    """Add the arrays that are filled shard by shard, and return the number of their shards."""
    rows = {"latents": rows_of_a_shard(samples), "texts": rows_of_a_shard(captions)}
    for name, shape, dims, definition in (
        (
            "latents",
            (samples, *latent),
            ("sample", "channel", "row", "column"),
            "latent, as the codec gives it",
        ),
        ("texts", (captions, *text), ("caption", "token", "feature"), "text tokens of a caption"),
    ):
        add_sharded(group, name, shape, rows[name], dims, definition)
    return math.ceil(samples / rows["latents"]) + math.ceil(captions / rows["texts"])


def _add_samples(
    group: zarr.Group, captions: Sequence[str], caption_of: NDArray[np.int64], image_of: NDArray[np.int64]
) -> None:
    """Add the captions, and every sample's caption and image."""
    count, texts = len(caption_of), len(captions)
    for name, values, definition in (
        ("caption_of", caption_of, "caption of the sample"),
        ("image_of", image_of, "image of the sample, as a place in the source"),
    ):
        long_name = {"long_name": definition}
        array = add_array(group, name, (count,), "int32", -1, ("sample",), long_name, rows=count)
        array[:] = values.astype("int32")
    long_name = {"long_name": "distinct captions"}
    array = add_array(group, "captions", (texts,), "string", "", ("caption",), long_name, rows=texts)
    array[:] = np.array(captions, dtype=object)


class LatentStore:
    """A latent store, complete or not.

    Args:
        path: path of the store.
        mode: `r` to read, `r+` to write shards as well.

    Attributes:
        encoding: the `meanmode.dit.data.encoding.EncodingConfig` that it was created with, as a dictionary.
        source, codec_document, text_document: descriptions of the images, the codec and the text encoder.
        captions: distinct captions, the empty one first.
        caption_of, image_of: indices of every sample's caption and image [N].
        digest: SHA-256 of everything that determines the contents of the store.

    Raises:
        StoreError: the path holds no latent store, or a damaged one.
    """

    def __init__(self, path: Path, mode: str = "r") -> None:
        self.path = path
        self._codec: Codec | None = None
        self.group = open_kind(path, mode, KIND)
        self.arrays = find_arrays(self.group, path, DIMENSIONS)
        found = {name: json_attribute(self.group, path, name, dict) for name in NEEDED}
        lacking = [
            f"{name}: {key}"
            for name, keys in NEEDED.items()
            for key, kind in keys.items()
            if type(found[name].get(key)) is not kind
        ]
        if lacking or "digest" not in self.group.attrs:
            raise StoreError(f"{path} is damaged: its attributes lack {(*lacking, 'digest')[0]}")
        self.encoding: dict[str, Any] = found["encoding"]
        self.source: dict[str, Any] = found["source"]
        self.codec_document: dict[str, Any] = found["codec"]
        self.text_document: dict[str, Any] = found["text_encoder"]
        self.digest = str(self.group.attrs["digest"])
        self._check_shapes()
        try:
            self.caption_of = np.asarray(self.arrays["caption_of"][:], np.int64)
            self.image_of = np.asarray(self.arrays["image_of"][:], np.int64)
            self.captions = tuple(str(text) for text in np.asarray(self.arrays["captions"][:]))
        except UNREADABLE as error:
            raise StoreError(f"{path} is damaged: its captions cannot be read") from error
        for name, indices, most in (
            ("caption_of", self.caption_of, len(self.captions)),
            ("image_of", self.image_of, np.iinfo(np.int32).max),
        ):
            if not ((indices >= 0) & (indices < most)).all():
                raise StoreError(f"{path} is damaged: {name} holds numbers of nothing")

    def _check_shapes(self) -> None:
        """Refuse arrays whose shapes contradict each other.

        Raises:
            StoreError: the store is damaged.
        """
        shapes = {name: array.shape for name, array in self.arrays.items()}
        wrong = [
            name for name, count in DIMENSIONS.items() if len(shapes[name]) != count or 0 in shapes[name]
        ]
        if not wrong:
            samples, captions = shapes["caption_of"][0], shapes["captions"][0]
            counts = {"latents": samples, "image_of": samples, "texts": captions, "status": len(self.parts)}
            wrong = [name for name, count in counts.items() if shapes[name][0] != count]
        if not wrong and shapes["latents"][2] != shapes["latents"][3]:
            wrong = ["latents"]
        if wrong:
            raise StoreError(
                f"{self.path} is damaged: {wrong[0]} has the shape {shapes[wrong[0]]}, which does not fit "
                "the other arrays"
            )

    @cached_property
    def caption_indices(self) -> dict[str, int]:
        """Index of every caption in `captions`."""
        return {caption: index for index, caption in enumerate(self.captions)}

    @property
    def parts(self) -> list[tuple[str, int]]:
        """All shards as pairs of array name and shard number, in the order of `status`."""
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
        """Return the rows of a shard."""
        name, number = part
        first = number * self._rows(name)
        return range(first, min(first + self._rows(name), self.arrays[name].shape[0]))

    def is_done(self, index: int) -> bool:
        """Whether the shard at `index` in `parts` was written and its file is still intact."""
        name, number = self.parts[index]
        try:
            done = int(np.asarray(self.arrays["status"][index])) == DONE
        except UNREADABLE:
            return False
        return done and ShardedRows(self.path, self.arrays[name]).holds(number)

    def remaining(self) -> list[int]:
        """Return the indices in `parts` of the shards that are missing or were lost."""
        return [index for index in range(len(self.parts)) if not self.is_done(index)]

    def write(self, index: int, values: NDArray[np.float16]) -> None:
        """Write a shard and then mark it as done.

        Raises:
            StoreError: the shard cannot be written; it is then still to do.
        """
        part, status = self.parts[index], self.arrays["status"]
        rows = self.rows(part)
        try:
            write_chunk(self.path, status, index, np.array([TODO], np.int8))
            # Zarr would first read what a killed process left of the shard
            chunk_path(self.path, self.arrays[part[0]], part[1]).unlink(missing_ok=True)
            self.arrays[part[0]].with_config({"write_empty_chunks": True})[rows.start : rows.stop] = values
            write_chunk(self.path, status, index, np.array([DONE], np.int8))
        except OSError as error:
            raise StoreError(
                f"{self.path}: shard {index} could not be written ({error.strerror}): "
                "fix that and continue with --resume"
            ) from error

    def codec(self) -> Codec:
        """Rebuild the codec of the latents from its parameters in the store.

        Raises:
            ValueError: the codec keeps its weights outside the store, and they are missing or have changed.
        """
        if self._codec is None:
            try:
                names = [name for name in self.group.array_keys() if name.startswith(CODEC_ARRAY)]
                found = find_arrays(self.group, self.path, names)
                tensors = {name.removeprefix(CODEC_ARRAY): np.asarray(of[...]) for name, of in found.items()}
            except UNREADABLE as error:
                raise StoreError(f"{self.path} is damaged: its codec cannot be read") from error
            self._codec = stored_codec(self.codec_document, tensors)
        return self._codec

    def text_encoder(self, *, device: str = "cpu") -> TextEncoder:
        """Load the text encoder of the captions.

        Raises:
            ValueError: its weights are missing or have changed.
        """
        return stored_text_encoder(self.text_document, device=device)

    def images(self, *, held_out: bool = False) -> Images:
        """Open the images that were encoded, or the held-out images of the same source.

        Raises:
            ValueError: the images are missing or have changed.
        """
        spec, side = self.encoding["images"], self.source["side"]
        try:
            images = images_of(spec, side=side)
        except ValueError as error:
            raise ValueError(f"the images that {self.path} was made from are missing: {error}") from error
        if {"side": side, **images.document()} != self.source or self.image_of.max() >= images.size:
            raise ValueError(f"the images {spec} have changed since {self.path} was made from them")
        return images_of(spec, side=side, held_out=True) if held_out else images
