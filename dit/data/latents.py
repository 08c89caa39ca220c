"""A latent store as a source of training data, and the checks that a run fits its store."""

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
"""Texts of at most this many bytes are kept in memory; larger ones are read row by row on request."""


class Latents:
    """The samples of a complete latent store, read on request.

    Args:
        path: path of the store.
        run: configuration of the run that is trained on it.

    Attributes:
        size: number of samples.
        empty_text: tokens of the empty caption [S, W_text].

    Raises:
        StoreError: the path holds no latent store, or an incomplete one.
        ValueError: the store does not fit the network, or is not the one the run began with.
    """

    def __init__(self, path: Path, run: RunConfig) -> None:
        self.store, config = LatentStore(path), run.model
        if run.data_digest not in ("", self.store.digest):
            raise ValueError(
                f"{path} is no longer the latent store that this run began with: it was encoded again"
            )
        left, parts = len(self.store.remaining()), len(self.store.parts)
        if left:
            raise StoreError(f"{path} lacks {left} of {parts} shards: resume it with mms encode --resume")
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
        """Return the latents of the samples at `indices`.

        Raises:
            StoreError: a shard is missing or damaged.
        """
        return torch.from_numpy(self._latents(indices)).float()

    def texts(self, indices: NDArray[np.int64]) -> Float[Tensor, "B S W_text"]:
        """Return the text tokens of the samples at `indices`.

        Raises:
            StoreError: a shard is missing or damaged.
        """
        return self._tokens(self.store.caption_of[indices])

    def caption_tokens(self, captions: Sequence[str]) -> Float[Tensor, "K S W_text"]:
        """Return the text tokens of captions in the store.

        Raises:
            KeyError: a caption is not in the store.
            StoreError: a shard is missing or damaged.
        """
        rows = self.store.caption_indices
        return self._tokens(np.array([rows[caption] for caption in captions]))

    def _tokens(self, rows: NDArray[np.int64]) -> Float[Tensor, "B S W_text"]:
        if self._held is not None:
            return self._held[torch.from_numpy(rows)].float()
        return torch.from_numpy(self._texts(rows)).float()


def encoders_of(source: Any) -> dict[str, str]:
    """Name and digest of the codec and text encoder of a latent store; empty for any other source."""
    if not isinstance(source, Latents):
        return {}
    documents = {"codec": source.store.codec_document, "text encoder": source.store.text_document}
    return {kind: f"{of['name']} {of['digest'][:16]}" for kind, of in documents.items()}


def check_encoders(source: Any, known: Mapping[str, str], checkpoint: Path) -> None:
    """Refuse data encoded by a different codec or text encoder than a checkpoint was trained on.

    Args:
        source: the data to check.
        known: `encoders_of` the data of the checkpoint.
        checkpoint: path of the checkpoint, for the message.

    Raises:
        StoreError: the encoders differ; the message names the store and both encoders.
    """
    for kind, found in encoders_of(source).items():
        if known.get(kind, found) != found:
            raise StoreError(
                f"{source.store.path} was encoded by the {kind} {found}, but {checkpoint} was trained on "
                f"{known[kind]}: encode the data with that (for a codec: mms encode --codec store:PATH)"
            )


def with_data(run: RunConfig, options: Mapping[str, str]) -> RunConfig:
    """Set fields of a run from text and, if it trains on a latent store, take the sizes from that store.

    Args:
        run: the configuration to change.
        options: field -> value as for `RunConfig.with_options`; they override the sizes of the store.

    Raises:
        ValueError: an unknown field, or a value of the wrong type.
        StoreError: the path holds no latent store.
    """
    data = RunConfig(data=options.get("data", run.data))
    if data.latents is None:
        return run.with_options(options)
    path = data.latents.expanduser().resolve()  # absolute, so that it holds in other working folders
    store = LatentStore(path)
    options = {**options, "data": f"latents:{path}"}
    found = {**sizes_of(store), "data_digest": store.digest}
    return run.with_options({**{name: str(value) for name, value in found.items()}, **options})


def sizes_of(store: LatentStore) -> dict[str, int]:
    """Fields of the network configuration that a latent store determines."""
    _, channels, side, _ = store.arrays["latents"].shape
    _, tokens, width = store.arrays["texts"].shape
    return {"channels": channels, "side": side, "text_tokens": tokens, "text_width": width}
