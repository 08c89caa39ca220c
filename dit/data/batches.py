"""Training batches: samples, times, noise and dropped texts as a function of seed, step and position."""

# B batch, C channels, H height, W width of a latent, S text tokens

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from meanmode.dit.config.run_config import RunConfig
from meanmode.dit.data.sources import Source, samples_of
from meanmode.dit.model.flow import draw, noised

Batch = tuple[Tensor, Tensor, Tensor, Tensor]
"""Noisy latents [B C H W], texts [B S W_text], clean latents and noise [B C H W]."""

Positions = NDArray[np.int64]
"""Indices in the batch of a step."""


def batch_of(
    source: Source,
    run: RunConfig,
    step: int,
    *,
    positions: Positions | None = None,
    seed: int | None = None,
) -> Batch:
    """Return the batch of a training step.

    Args:
        source: source of latents and texts.
        run: configuration of the run.
        step: training step, counted from 1.
        positions: indices in the batch of the samples to return; None returns all of them.
        seed: seed of the data; None uses the one in the configuration.

    Raises:
        ValueError: a sample contains NaN or infinities.
    """
    training = run.training
    positions = np.arange(training.batch) if positions is None else positions
    return _batch(source, run, step, [(training.data_seed if seed is None else seed, positions)])


def batch_of_runs(source: Source, runs: Sequence[RunConfig], step: int) -> Batch:
    """Batches of a training step of runs that differ in seeds and rates only, with a leading axis of runs.

    Raises:
        ValueError: a sample contains NaN or infinities.
    """
    every = np.arange(runs[0].training.batch)
    found = _batch(source, runs[0], step, [(run.training.data_seed, every) for run in runs])
    noisy, texts, clean, noise = (part.unflatten(0, (len(runs), len(every))) for part in found)
    return noisy, texts, clean, noise


def _batch(source: Source, run: RunConfig, step: int, chosen: Sequence[tuple[int, Positions]]) -> Batch:
    """Samples of a step at positions of the batches of some seeds, one after the other."""
    training, model = run.training, run.model
    step = training.data_step(step)
    clean, texts = samples_of(source, step, training.batch, chosen)
    drawn = draw(
        [seed for seed, positions in chosen for _ in positions],
        step,
        np.concatenate([positions for _, positions in chosen]),
        (model.channels, model.side, model.side),
        time_shift=training.time_shift,
        null_text=training.null_text,
    )
    texts = torch.where(drawn.dropped[:, None, None], source.empty_text, texts)
    return noised(clean, drawn.noise, drawn.times), texts, clean, drawn.noise
