"""Where a network without a time embedding represents time: linear probes of its states (App. H, Fig. 11)."""

# B batch, N images, R rows (one image at one time), C channels, H height, W width of a latent,
# T tokens, D width, A ridge parameters

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from numpy.typing import NDArray
from torch import Tensor

from meanmode.dit.data.sources import Source
from meanmode.dit.model.flow import noised, random_stream
from meanmode.dit.model.network import DiT
from meanmode.sim.observe.token_parts import centered, measuring
from meanmode.sim.trunk.precision import single

TIMES_EACH = 8


PROBE_STREAM = 3
"""First word of the key of every random stream that gives the images, times and noise of a probe."""


FOLDS = 4
"""Groups of images: the last is held out; the others choose the ridge parameter by cross-validation."""


RIDGES = 10.0 ** np.arange(-3, 7)
"""Candidate ridge parameters for standardised features; the largest leave little more than the mean."""


STATISTICS = "input_statistics"


CHANNEL_STATISTICS = "input_channel_statistics"


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeRow:
    """How well t is decoded from one feature of a state, on held-out images.

    Attributes:
        block: 0 for the input state X_0, l for the state after block l.
        feature: `image_mean` and `text_mean`, token means [D]; `image_centered_rms`, root mean square over
            the image tokens after subtracting their mean [D]; or, at block 0, a control of the noisy latent
            without any network: `input_statistics`, its mean and standard deviation, and
            `input_channel_statistics`, those per channel if there are several.
        r2: explained share of the variance of t.
        mae: mean absolute error of t; 0.25 for a constant prediction.
        shuffled_r2: `r2` with the training times permuted across images; near 0.
    """

    block: int
    feature: str
    r2: float
    mae: float
    shuffled_r2: float


@dataclass(frozen=True, kw_only=True, slots=True)
class TimestepProbe:
    """Results of a timestep probe.

    Attributes:
        rows: one row per block and feature, ordered by block.
        images: number of images.
        held_out: number of images that were held out and give the errors.
        times_each: number of times per image.
        seed: seed of images, times, noise and permutation.
    """

    rows: tuple[ProbeRow, ...]
    images: int
    held_out: int
    times_each: int
    seed: int

    def document(self) -> dict[str, Any]:
        """Return the results as JSON, with null for values that are not finite."""
        rows = [
            {
                name: None if isinstance(value, float) and not math.isfinite(value) else value
                for name, value in asdict(row).items()
            }
            for row in self.rows
        ]
        numbers = {name: getattr(self, name) for name in ("images", "held_out", "times_each", "seed")}
        return {**numbers, "rows": rows}


def probe_timestep(
    network: DiT,
    source: Source,
    *,
    images: int,
    times_each: int = TIMES_EACH,
    seed: int = 0,
    blocks: Sequence[int] | None = None,
    batch: int = 64,
    step_done: Callable[[], object] = lambda: None,
) -> TimestepProbe:
    """Ridge regression of t on the states of a network, split by image (arXiv:2605.06169 App. H).

    Every image is noised at several times uniform in [0, 1], each with its own noise; all rows of an image
    are on the same side of the split. For the untrained control pass an untrained network. Three features
    per block are held in memory, 12 D bytes per row and block.

    Args:
        network: network on the device that computes.
        source: source of latents and texts.
        images: number of images, chosen at random.
        times_each: number of times per image.
        seed: seed of images, times, noise and permutation.
        blocks: states to probe, 0 for X_0; None probes all.
        batch: rows computed together.
        step_done: called after every batch.

    Raises:
        ValueError: too few images, more than the source has, no times, or an unknown block.
    """
    depth = len(network.blocks)
    wanted = range(depth + 1) if blocks is None else sorted(set(blocks))
    for block in wanted:
        if not 0 <= block <= depth:
            raise ValueError(f"states are numbered 0 (the input) to {depth}, got {block}")
    if not 2 * FOLDS <= images <= source.size:
        raise ValueError(
            f"images must be at least {2 * FOLDS} and at most the {source.size} in the data, got {images}"
        )
    if times_each < 1 or batch < 1:
        raise ValueError(f"times_each and batch must be at least 1, got {times_each} and {batch}")
    times, found = [], {}
    for part, features in _passes(network, source, wanted, images, times_each, seed, batch):
        times.append(part)
        for name, values in features.items():
            found.setdefault(name, []).append(values)
        step_done()
    t = np.concatenate(times)
    numbers = np.repeat(np.arange(images), times_each)
    rows = []
    for block, feature in sorted(found, key=lambda name: name[0]):
        r2, mae, shuffled_r2 = decoded_times(np.concatenate(found[block, feature]), t, numbers, seed=seed)
        rows.append(ProbeRow(block=block, feature=feature, r2=r2, mae=mae, shuffled_r2=shuffled_r2))
    return TimestepProbe(
        rows=tuple(rows), images=images, held_out=images // FOLDS, times_each=times_each, seed=seed
    )


def _passes(
    network: DiT,
    source: Source,
    blocks: Sequence[int],
    images: int,
    times_each: int,
    seed: int,
    batch: int,
) -> Iterator[tuple[NDArray[np.float64], dict[tuple[int, str], NDArray[np.float32]]]]:
    """Yield times and features of the rows of every batch; the rows of an image are consecutive."""
    order = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(PROBE_STREAM,)))
    chosen = np.repeat(order.permutation(source.size)[:images], times_each)
    weight = network.patch_embed.patch_proj.weight
    for first in range(0, len(chosen), batch):
        indices = chosen[first : first + batch]
        clean = source.latents(indices)
        streams = [
            random_stream(seed, PROBE_STREAM, int(index), row % times_each)
            for row, index in enumerate(indices, start=first)
        ]
        t = torch.stack([torch.rand((), generator=stream, dtype=torch.float64) for stream in streams])
        noise = torch.stack([torch.randn(clean.shape[1:], generator=stream) for stream in streams])
        noisy = noised(clean.float(), noise, t.float())
        with measuring(weight.device):
            states = _state_features(
                network, noisy.to(weight), source.texts(indices).to(weight.device), blocks
            )
        yield t.numpy(), _statistics(noisy) | states


def _state_features(
    network: DiT, noisy: Tensor, text: Tensor, blocks: Sequence[int]
) -> dict[tuple[int, str], NDArray[np.float32]]:
    """Features of the states, extracted block by block since all states of a deep trunk exceed memory."""
    x, segments = network.embed(noisy, text)
    found = {}
    for number in range(len(network.blocks) + 1):
        if number:
            x = network.blocks[number - 1](x, segments)
        if number in blocks:
            image, words = single(x).split(segments, dim=-2)
            features = {
                "image_mean": image.mean(-2),
                "image_centered_rms": centered(image).square().mean(-2).sqrt(),
                "text_mean": words.mean(-2),
            }
            found |= {(number, name): values.cpu().numpy() for name, values in features.items()}
    return found


def _statistics(noisy: Float[Tensor, "B C H W"]) -> dict[tuple[int, str], NDArray[np.float32]]:
    """Mean and standard deviation of noisy latents, over all values and per channel."""
    sets = {STATISTICS: noisy.flatten(1)[:, None]}
    if noisy.shape[1] > 1:
        sets[CHANNEL_STATISTICS] = noisy.flatten(2)
    return {
        (0, name): torch.cat([values.mean(-1), values.std(-1, correction=0)], dim=1).numpy()
        for name, values in sets.items()
    }


def decoded_times(
    features: Float[np.ndarray, "R D"],
    times: Float64[np.ndarray, " R"],
    images: Int[np.ndarray, " R"],
    *,
    seed: int = 0,
) -> tuple[float, float, float]:
    """R^2, mean absolute error, and R^2 under shuffled training times, of a ridge regression of t.

    The features are standardised. Image i is in group i mod `FOLDS`: the last group is held out, and the
    ridge parameter is chosen on the others, also split by image.

    Args:
        features: features of every row.
        times: time t of every row.
        images: image number of every row.
        seed: seed of the permutation.

    Returns:
        The three values on the held-out images; NaN if the features are not finite.

    Raises:
        ValueError: scikit-learn is not installed.
    """
    try:
        from sklearn.linear_model import Ridge
        from sklearn.metrics import mean_absolute_error, r2_score
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise ValueError("the timestep probe needs scikit-learn: pip install '.[train]'") from error
    if not np.isfinite(features).all():
        return math.nan, math.nan, math.nan
    x, groups = features.astype(np.float64), images % FOLDS
    training = groups != FOLDS - 1
    shuffled = times.copy()
    generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(PROBE_STREAM, 1)))
    shuffled[training] = generator.permutation(times[training])
    targets = np.stack([times, shuffled])

    def predicted(fitted: NDArray[np.bool_], on: NDArray[np.bool_]) -> Float64[np.ndarray, "2 A _"]:
        """Predict true and shuffled times for every ridge parameter, as the targets of a single fit."""
        ridge = Ridge(alpha=np.tile(RIDGES, len(targets)), solver="cholesky")
        model = make_pipeline(StandardScaler(), ridge)
        model.fit(x[fitted], np.repeat(targets[:, fitted], len(RIDGES), axis=0).T)
        return model.predict(x[on]).T.reshape(len(targets), len(RIDGES), -1)

    errors = np.zeros((len(targets), len(RIDGES)))
    for group in range(FOLDS - 1):
        aside = groups == group
        guessed = predicted(training & ~aside, aside)
        errors += np.square(guessed - targets[:, None, aside]).sum(-1)
    best = errors.argmin(1)
    found, chance = predicted(training, ~training)[range(len(targets)), best]
    true = times[~training]
    return (
        float(r2_score(true, found)),
        float(mean_absolute_error(true, found)),
        float(r2_score(true, chance)),
    )
