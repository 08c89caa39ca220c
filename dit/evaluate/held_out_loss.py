"""The loss of a network on held-out images, with noise and times that are the same for every network."""

# N images, C channels, H height, W width of a latent, S text tokens

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from meanmode.dit.config.run_config import RunConfig
from meanmode.dit.data.encoding import evenly_spaced
from meanmode.dit.data.images import batch
from meanmode.dit.data.latents import Latents
from meanmode.dit.evaluate.subject import Subject
from meanmode.dit.model.flow import draw, flow_losses, noised
from meanmode.dit.model.network import DiT

AT_ONCE = 64
"""Images whose losses are computed together."""

STREAM = 1
"""Seed of the noise and the times."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """Held-out images with their captions, noised once.

    Attributes:
        noisy: noised latents [N, C, H, W].
        texts: tokens of the captions [N, S, W_text].
        clean: latents [N, C, H, W].
        noise: the noise [N, C, H, W].
    """

    noisy: Float[Tensor, "N C H W"]
    texts: Float[Tensor, "N S W_text"]
    clean: Float[Tensor, "N C H W"]
    noise: Float[Tensor, "N C H W"]

    @classmethod
    def of(cls, subject: Subject, run: RunConfig, count: int) -> "HeldOut":
        """Evenly spaced held-out images of the data of a run, captioned by their classes.

        Raises:
            ValueError: images without classes, or fewer than `count` of them.
        """
        source, images = subject.source, subject.images(True)
        assert isinstance(source, Latents)  # others have no held-out images
        if not images.classes or images.size < count:
            raise ValueError(
                f"a held-out loss needs {count} held-out images with classes, got {images.size} with "
                f"{len(images.classes)} classes"
            )
        chosen = evenly_spaced(images.size, count)
        clean = source.store.codec().encode(batch(images, chosen))
        shape = tuple(clean.shape[1:])
        drawn = draw(STREAM, 0, range(count), shape, time_shift=run.training.time_shift, null_text=0.0)
        texts, _ = subject.texts([images.classes[images.label(int(index)) or 0] for index in chosen])
        return cls(noisy=noised(clean, drawn.noise, drawn.times), texts=texts, clean=clean, noise=drawn.noise)

    @torch.no_grad()
    def loss(self, network: DiT) -> float:
        """Mean loss over the images."""
        whole = (self.noisy, self.texts, self.clean, self.noise)
        losses = [
            flow_losses(network(noisy, texts), clean, noise)
            for noisy, texts, clean, noise in zip(*(of.split(AT_ONCE) for of in whole), strict=True)
        ]
        return float(torch.cat(losses).double().mean())
