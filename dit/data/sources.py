"""Sources of training data: the built-in digits, or an encoded latent store."""

# B batch, N samples, C channels, H height, W width of a latent, S text tokens

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from meanmode.dit.config.architecture import DiTConfig
from meanmode.dit.config.run_config import RunConfig
from meanmode.dit.data.latents import Latents
from meanmode.sim.train.data_order import data_order

TEXT_SEED = 20260501
"""Seed of the frozen text tokens, the same for every run."""


CLASSES = 10


@runtime_checkable
class Source(Protocol):
    """An indexed set of latents with their texts.

    Attributes:
        size: number of samples.
        empty_text: tokens of the empty text [S, W_text].
    """

    size: int
    empty_text: Tensor

    def latents(self, indices: NDArray[np.int64]) -> Float[Tensor, "B C H W"]:
        """Return the latents of the samples at `indices`."""
        ...

    def texts(self, indices: NDArray[np.int64]) -> Float[Tensor, "B S W_text"]:
        """Return the text tokens of the samples at `indices`."""
        ...


class Digits:
    """scikit-learn's 1797 handwritten digits as latents, with frozen random text tokens for every class.

    Every 8 x 8 image is enlarged bilinearly to the side of the latents and normalised to mean 0 and variance
    1 over the whole set. The empty text has random tokens of its own.

    Args:
        config: configuration of the network that is trained on them.

    Raises:
        ValueError: the network reads latents of more than one channel.
    """

    def __init__(self, config: DiTConfig) -> None:
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ValueError("the data `digits` need scikit-learn: pip install '.[train]'") from error
        if config.channels != 1:
            raise ValueError(f"digits have 1 channel but the network reads {config.channels}: set channels=1")
        found = load_digits()
        images = torch.from_numpy(found.images).float()[:, None]
        images = interpolate(images, size=config.side, mode="bilinear", align_corners=False)
        self.mean, self.std = images.double().mean().item(), images.double().std(correction=0).item()
        self._latents = (images - self.mean) / self.std
        self.labels = torch.from_numpy(found.target)
        generator = torch.Generator().manual_seed(TEXT_SEED)
        shape = (CLASSES + 1, config.text_tokens, config.text_width)
        self._tokens = torch.randn(shape, generator=generator)
        self.empty_text = self._tokens[CLASSES]
        self.size = len(images)

    def latents(self, indices: NDArray[np.int64]) -> Float[Tensor, "B C H W"]:
        return self._latents[torch.from_numpy(indices)]

    def texts(self, indices: NDArray[np.int64]) -> Float[Tensor, "B S W_text"]:
        return self._tokens[self.labels[torch.from_numpy(indices)]]

    def prompts(self, classes: Int[Tensor, " B"]) -> Float[Tensor, "B S W_text"]:
        """Return the text tokens of classes 0 to 9.

        Raises:
            ValueError: a class is out of range.
        """
        for label in classes.tolist():
            if not 0 <= label < CLASSES:
                raise ValueError(f"digits have the classes 0 to {CLASSES - 1}, got {label}")
        return self._tokens[classes]

    def images(self, latents: Float[Tensor, "B 1 H W"]) -> Float[Tensor, "B H W"]:
        """Invert the normalisation: grey values in [0, 1] of latents."""
        return ((latents[:, 0] * self.std + self.mean) / 16).clamp(0, 1)


def source_of(run: RunConfig) -> Source:
    """Open the training data of a run.

    Raises:
        ValueError: the run has no data, or data that do not fit the network or batch or have changed.
        StoreError: the latent store is damaged or incomplete.
    """
    if run.data == "none":
        raise ValueError("this preset has no data: encode some (mms encode) and --set data=latents:PATH")
    source: Source = Digits(run.model) if run.latents is None else Latents(run.latents, run)
    if run.training.batch > source.size:
        raise ValueError(
            f"a batch of {run.training.batch} is larger than the data, {source.size} samples: reduce batch"
        )
    return source


def samples_of(
    source: Source, step: int, batch: int, chosen: Sequence[tuple[int, NDArray[np.int64]]]
) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B S W_text"]]:
    """Latents and texts of a step, determined by seed of the data, step and position in the batch alone.

    Args:
        source: source of latents and texts.
        step: training step, counted from 1.
        batch: samples per step.
        chosen: seeds, and positions in the batch of each.

    Raises:
        ValueError: a sample contains NaN or infinities.
    """
    own = [data_order(seed, step, source.size, batch)[positions] for seed, positions in chosen]
    indices = np.concatenate(own)
    latents, texts = source.latents(indices), source.texts(indices)
    for name, values in (("latent", latents), ("text", texts)):
        if not values.isfinite().all():
            finite = values.flatten(1).isfinite().all(1)
            raise ValueError(f"the {name} of sample {indices[~finite.numpy()][0]} contains non-finite values")
    return latents, texts
