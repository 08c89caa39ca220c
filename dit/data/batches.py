"""Training batches: samples, times, noise and dropped texts as a function of seed, step and position."""

# B batch, C channels, H height, W width of a latent, S text tokens

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from meanmode.dit.config.run_config import RunConfig
from meanmode.dit.data.sources import Source, samples_of
from meanmode.dit.model.flow import draw, noised

Batch = tuple[Tensor, Tensor, Tensor, Tensor]
"""Noisy latents [B C H W], texts [B S W_text], clean latents and noise [B C H W]."""


def batch_of(
    source: Source,
    run: RunConfig,
    step: int,
    *,
    positions: NDArray[np.int64] | None = None,
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
    training, model = run.training, run.model
    step, seed = training.data_step(step), training.data_seed if seed is None else seed
    positions = np.arange(training.batch) if positions is None else positions
    clean, texts = samples_of(source, seed, step, training.batch, positions)
    drawn = draw(
        seed,
        step,
        positions,
        (model.channels, model.side, model.side),
        time_shift=training.time_shift,
        null_text=training.null_text,
    )
    texts = torch.where(drawn.dropped[:, None, None], source.empty_text, texts)
    return noised(clean, drawn.noise, drawn.times), texts, clean, drawn.noise
