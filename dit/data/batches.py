"""What a step is trained on: samples, their noise, times and dropped texts, a function of seed and place."""

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
    places: NDArray[np.int64] | None = None,
    seed: int | None = None,
) -> Batch:
    """The batch of a step of a run.

    Args:
        source: of latents and texts.
        run: its configuration.
        step: from 1.
        places: in the batch, of the samples that are asked for; None for all.
        seed: of the data; None for that of the configuration.

    Raises:
        ValueError: a sample that holds NaN or infinities.
    """
    training, model = run.training, run.model
    step, seed = training.data_step(step), training.data_seed if seed is None else seed
    places = np.arange(training.batch) if places is None else places
    clean, texts = samples_of(source, seed, step, training.batch, places)
    drawn = draw(
        seed,
        step,
        places,
        (model.channels, model.side, model.side),
        time_shift=training.time_shift,
        null_text=training.null_text,
    )
    texts = torch.where(drawn.dropped[:, None, None], source.empty_text, texts)
    return noised(clean, drawn.noise, drawn.times), texts, clean, drawn.noise
