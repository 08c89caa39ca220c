"""Evaluation: compare samples of a network, and the corresponding floors, with real images."""

# N samples, B batch, K colours, H height, W width of a picture

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from meanmode.dit.config.field_ranges import Range, check_fields
from meanmode.dit.data.bounds import BOUNDS
from meanmode.dit.data.encoding import evenly_spaced
from meanmode.dit.data.images import Images, batch
from meanmode.dit.data.latent_store import LatentStore
from meanmode.dit.data.latents import Latents
from meanmode.dit.evaluate.features import BATCH, Extractor, Features, features_of, image_key
from meanmode.dit.evaluate.sample_metrics import Reference, Row, compare
from meanmode.dit.evaluate.sampling import SamplingConfig, draw_samples
from meanmode.dit.evaluate.subject import Subject
from meanmode.dit.model.network import DiT


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """Which sets of images are compared.

    Attributes:
        samples: size of every judged set: samples of the network and held-out images.
        reference: largest number of training images, evenly spaced, that the sets are compared with.
        untrained: also judge the network with fresh weights.

    Raises:
        ValueError: a value is out of range.
    """

    samples: Annotated[int, Range(*BOUNDS["samples"])] = 500
    reference: Annotated[int, Range(*BOUNDS["reference"])] = 5000
    untrained: bool = False

    def __post_init__(self) -> None:
        check_fields(self)


def evaluate(
    subject: Subject,
    network: Extractor,
    config: EvaluationConfig,
    sampling: SamplingConfig,
    *,
    cache: Path,
    tell: Callable[[str], object],
    step_done: Callable[[], object] = lambda: None,
) -> list[Row]:
    """FID, KID and IS of a network's samples, of held-out images, and of the latter encoded and decoded.

    The captions of the samples are those of evenly spaced training samples.

    Args:
        subject: the network to evaluate, on the device that computes.
        network: feature extractor that reads the images.
        config: which sets of images are compared.
        sampling: how samples are drawn; `each` is ignored.
        cache: folder that caches features of real images.
        tell: called with a sentence about each problem of the cache.
        step_done: called after every sampling step.

    Raises:
        ValueError: the data have no images, fewer images are held out than samples are asked for, or samples
            are not finite.
    """
    held_out, trained = subject.images(True), subject.images(False)
    count = config.samples
    if held_out.size < count:
        raise ValueError(
            f"samples must be at most the {held_out.size} held-out images, got {count}: only sets of equal "
            "size can be compared"
        )
    chosen = evenly_spaced(held_out.size, count)
    given = {"cache": cache, "tell": tell}
    real = _real(network, trained, reference_images(subject, config), held_out=False, **given)
    Reference(real.values)  # fail before sampling, which takes longest

    def pictured(model: DiT) -> Features:
        return features_of(network, _sampled(subject, model, count, sampling, step_done))

    return compare(
        pictured(subject.network),
        real,
        _real(network, held_out, chosen, held_out=True, **given),
        extractor=network.name,
        nfe=sampling.steps,
        cfg=sampling.cfg_scale,
        decoded=features_of(network, _decoded(subject, held_out, chosen)),
        untrained=pictured(untrained_network(subject)) if config.untrained else None,
    )


def reference_images(subject: Subject, config: EvaluationConfig) -> NDArray[np.int64]:
    """Indices in the source of the training images that all sets are compared with."""
    trained = _store(subject).image_of
    return trained[evenly_spaced(len(trained), min(config.reference, len(trained)))]


def steps_of(config: EvaluationConfig, sampling: SamplingConfig) -> int:
    """Number of sampling steps in an evaluation."""
    return sampling.evaluations(config.samples) * (2 if config.untrained else 1)


def untrained_network(subject: Subject) -> DiT:
    """Build the same network with fresh weights of seed 0, on the device of the trained one."""
    network = DiT(subject.network.config).eval()
    return network.to(next(subject.network.parameters()).device)


def _store(subject: Subject) -> LatentStore:
    assert isinstance(subject.source, Latents)
    return subject.source.store


def _sampled(
    subject: Subject,
    network: DiT,
    count: int,
    sampling: SamplingConfig,
    step_done: Callable[[], object],
) -> Iterator[Float[Tensor, "B K H W"]]:
    """Draw and decode samples, one batch at a time.

    Raises:
        ValueError: samples are not finite.
    """
    store = _store(subject)
    captions, chosen = store.captions, store.caption_of[evenly_spaced(len(store.caption_of), count)]
    for first in range(0, count, sampling.batch):
        numbers = range(first, min(first + sampling.batch, count))
        texts, empty = subject.texts([captions[index] for index in chosen[numbers.start : numbers.stop]])
        latents = draw_samples(network, texts, empty, sampling, labels=numbers, step_done=step_done)
        broken = int((~latents.flatten(1).isfinite().all(1)).sum())
        if broken:
            raise ValueError(f"{broken} of the first {numbers.stop} samples of {subject.name} are not finite")
        yield subject.pictures(latents[:, 0])


def _real(
    network: Extractor,
    images: Images,
    chosen: NDArray[np.int64],
    *,
    held_out: bool,
    cache: Path,
    tell: Callable[[str], object],
) -> Features:
    """Features of real images, from the cache if available."""
    which = json.dumps({**images.document(), "side": images.side, "held_out": held_out}, sort_keys=True)
    return features_of(
        network, _batches(images, chosen), cache=cache, key=image_key(which, chosen), tell=tell
    )


def _batches(images: Images, chosen: NDArray[np.int64]) -> Iterator[Float[Tensor, "B K H W"]]:
    for first in range(0, len(chosen), BATCH):
        yield batch(images, chosen[first : first + BATCH])


def _decoded(
    subject: Subject, images: Images, chosen: NDArray[np.int64]
) -> Iterator[Float[Tensor, "B K H W"]]:
    """Encode and decode real images, with latents rounded to half precision as in the store."""
    codec, device = _store(subject).codec(), next(subject.network.parameters()).device
    for pictures in _batches(images, chosen):
        yield subject.pictures(codec.encode(pictures.to(device)).to(torch.float16).float())
