"""The samples of a latent store as a source of training, and what a run must have in common with it."""

# B batch, K captions, C channels, H height, W width of a latent, S text tokens

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from meanmode.dit.config.run_config import RunConfig
from meanmode.dit.data.latent_store import LatentStore
from meanmode.sim.store.files import StoreError
from meanmode.sim.store.sharded_rows import ShardedRows

TEXTS_HELD = 2**28
"""Bytes of texts that are read as a whole; of more, single rows are read when they are asked for."""


class Latents:
    """The samples of a complete latent store, read when they are asked for.

    Args:
        path: of the store.
        run: that is trained on them.

    Attributes:
        size: samples.
        empty_text: of the empty caption [S, W_text].

    Raises:
        StoreError: no latent store, or one that is not complete.
        ValueError: one that does not fit the network, or is not the one that is meant.
    """

    def __init__(self, path: Path, run: RunConfig) -> None:
        self.store, config = LatentStore(path), run.model
        if run.data_digest not in ("", self.store.digest):
            raise ValueError(
                f"{path} is no longer the latent store that this run began with: it was encoded anew"
            )
        left, parts = len(self.store.remaining()), len(self.store.parts)
        if left:
            raise StoreError(f"{path} lacks {left} of {parts} shards: go on with mms encode --resume")
        wrong = [
            f"{name}={value} (the network has {getattr(config, name)})"
            for name, value in sizes_of(self.store).items()
            if getattr(config, name) != value
        ]
        if wrong:
            made = f"latents of the codec {self.store.codec_document['name']}"
            raise ValueError(f"{path} holds {made}, which do not fit the network: set {', '.join(wrong)}")
        arrays = self.store.arrays
        self.size = arrays["latents"].shape[0]
        self._latents = ShardedRows(path, arrays["latents"])
        self._texts = ShardedRows(path, arrays["texts"])
        texts = arrays["texts"]
        everything = np.arange(texts.shape[0])
        held = texts.nbytes <= TEXTS_HELD
        self._held = torch.from_numpy(self._texts(everything)) if held else None
        self.empty_text = torch.from_numpy(self._texts(everything[:1])[0]).float()

    def latents(self, indices: NDArray[np.int64]) -> Float[Tensor, "B C H W"]:
        """Latents of these samples.

        Raises:
            StoreError: a shard that is missing or damaged.
        """
        return torch.from_numpy(self._latents(indices)).float()

    def texts(self, indices: NDArray[np.int64]) -> Float[Tensor, "B S W_text"]:
        """Text tokens of these samples.

        Raises:
            StoreError: a shard that is missing or damaged.
        """
        return self._tokens(self.store.caption_of[indices])

    def caption_tokens(self, captions: Sequence[str]) -> Float[Tensor, "K S W_text"]:
        """Text tokens of some of the captions in the store.

        Raises:
            KeyError: another caption.
            StoreError: a shard that is missing or damaged.
        """
        places = self.store.caption_places
        return self._tokens(np.array([places[caption] for caption in captions]))

    def _tokens(self, places: NDArray[np.int64]) -> Float[Tensor, "B S W_text"]:
        if self._held is not None:
            return self._held[torch.from_numpy(places)].float()
        return torch.from_numpy(self._texts(places)).float()


def encoders_of(source: Any) -> dict[str, str]:
    """What encoded latents and texts of a source, name and digest of each; nothing where it is no store."""
    if not isinstance(source, Latents):
        return {}
    documents = {"codec": source.store.codec_document, "text encoder": source.store.text_document}
    return {kind: f"{of['name']} {of['digest'][:16]}" for kind, of in documents.items()}


def check_encoders(source: Any, known: Mapping[str, str], checkpoint: Path) -> None:
    """Refuse data of another codec or text encoder than a checkpoint was trained on.

    Args:
        source: the data.
        known: `encoders_of` the data of the checkpoint.
        checkpoint: which.

    Raises:
        StoreError: naming the store and both encoders.
    """
    for kind, found in encoders_of(source).items():
        if known.get(kind, found) != found:
            raise StoreError(
                f"{source.store.path} was encoded by the {kind} {found}, {checkpoint} was trained on "
                f"{known[kind]}: encode the data with that (a codec: mms encode --codec store:PATH)"
            )


def with_data(run: RunConfig, options: Mapping[str, str]) -> RunConfig:
    """A run with fields set from text, and, on a latent store, with the sizes that the store has.

    Args:
        run: the configuration.
        options: of `RunConfig.with_options`; they come first.

    Raises:
        ValueError: an unknown field, or a value that is none of its type.
        StoreError: no latent store.
    """
    data = RunConfig(data=options.get("data", run.data))
    if data.latents is None:
        return run.with_options(options)
    place = data.latents.expanduser().resolve()  # for a later command from another folder
    store = LatentStore(place)
    options = {**options, "data": f"latents:{place}"}
    found = {**sizes_of(store), "data_digest": store.digest}
    return run.with_options({**{name: str(value) for name, value in found.items()}, **options})


def sizes_of(store: LatentStore) -> dict[str, int]:
    """Fields of the network that the data determine."""
    _, channels, side, _ = store.arrays["latents"].shape
    _, tokens, width = store.arrays["texts"].shape
    return {"channels": channels, "side": side, "text_tokens": tokens, "text_width": width}
