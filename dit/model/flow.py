"""Rectified flow: noising, velocity loss, time shift, and the Euler sampler with guidance."""

# B batch (after a leading axis of runs in an ensemble), C channels, H height, W width, S text tokens

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

SAMPLES_STREAM = 1
"""First word of the key of every random stream that gives times, noise and dropped texts."""


Velocity = Callable[[Tensor, Tensor], Tensor]
"""(latents [*B C H W], text [*B S W_text]) -> velocity [*B C H W]."""


Time = TypeVar("Time", Tensor, float)


def shifted_time(t: Time, shift: float) -> Time:
    """t' = a t / (1 + (a - 1) t), which for a > 1 moves times towards the noise, t = 1 (arXiv:2605.06169).

    Raises:
        ValueError: the shift is not positive.
    """
    if not shift > 0:
        raise ValueError(f"the time shift must be positive, got {shift}")
    return shift * t / (1 + (shift - 1) * t)


@dataclass(frozen=True, kw_only=True)
class Draws:
    """The random quantities of a training step, one per sample.

    Attributes:
        times: time t in [0, 1], after the shift.
        dropped: True where the sample is trained with the empty text.
        noise: x1, standard normal.
    """

    times: Float[Tensor, " B"]
    dropped: Bool[Tensor, " B"]
    noise: Float[Tensor, "B C H W"]


def random_stream(seed: int, *key: int) -> torch.Generator:
    """Return an independent random generator on the CPU for a seed and key."""
    (word,) = np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(word))


def draw(
    seed: int | Sequence[int],
    step: int,
    positions: Sequence[int] | NDArray[np.int64],
    shape: Sequence[int],
    *,
    time_shift: float = 4.0,
    null_text: float = 0.1,
) -> Draws:
    """Draw times, dropped texts and noise for samples of a step, each from its own position in the batch.

    The result therefore does not depend on the number of micro-batches or processes.

    Args:
        seed: seed of the data stream, or one for each sample.
        step: training step, counted from 1.
        positions: index of each sample in the batch of the step, counted from 0.
        shape: [C, H, W] of a latent.
        time_shift: a of `shifted_time`, applied to uniform times.
        null_text: probability that the text of a sample is dropped.
    """
    uniform, noise = torch.empty(len(positions), 2), torch.empty(len(positions), *shape)
    seeds = seed if isinstance(seed, Sequence) else [seed] * len(positions)
    for of, position, pair, own in zip(seeds, positions, uniform, noise, strict=True):
        generator = random_stream(of, SAMPLES_STREAM, step, int(position))
        torch.rand(2, generator=generator, out=pair)
        torch.randn(*shape, generator=generator, out=own)
    times, coins = uniform.unbind(1)
    return Draws(times=shifted_time(times, time_shift), dropped=coins < null_text, noise=noise)


def noised(
    clean: Float[Tensor, "*B C H W"], noise: Float[Tensor, "*B C H W"], times: Float[Tensor, "*B"]
) -> Float[Tensor, "*B C H W"]:
    """z_t = (1 - t) x0 + t x1 (arXiv:2605.06169 section 3)."""
    t = times[..., None, None, None]
    return (1 - t) * clean + t * noise


def flow_losses(
    velocity: Float[Tensor, "*B C H W"],
    clean: Float[Tensor, "*B C H W"],
    noise: Float[Tensor, "*B C H W"],
) -> Float[Tensor, "*B"]:
    """Per-sample mean squared error of the velocity against v = x0 - x1 (Eq. 2), in single precision.

    The loss of a batch is the mean over its samples.
    """
    return (velocity.float() - (clean - noise)).square().mean((-3, -2, -1))


def sampling_times(steps: int, shift: float) -> Float[Tensor, " {steps}+1"]:
    """Shifted times of an Euler sampler from 1 (noise) to 0 (data), in double precision.

    Raises:
        ValueError: fewer than one step.
    """
    if steps < 1:
        raise ValueError(f"a sampler needs at least 1 step, got {steps}")
    return shifted_time(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift)


def guided(
    velocity: Velocity,
    latents: Float[Tensor, "B C H W"],
    text: Float[Tensor, "B S W_text"],
    empty_text: Float[Tensor, "B S0 W_text"],
    scale: float,
) -> Float[Tensor, "B C H W"]:
    """Classifier-free guidance, v_u + w (v_c - v_u) (arXiv:2605.06169); w = 1 computes v_c alone."""
    conditioned = velocity(latents, text)
    if scale == 1:
        return conditioned
    free = velocity(latents, empty_text)
    return free + scale * (conditioned - free)


def euler_states(
    velocity: Velocity,
    noise: Float[Tensor, "B C H W"],
    text: Float[Tensor, "B S W_text"],
    empty_text: Float[Tensor, "B S0 W_text"],
    *,
    steps: int = 25,
    cfg_scale: float = 2.0,
    time_shift: float = 4.0,
) -> Iterator[Float[Tensor, "B C H W"]]:
    """Yield z after every Euler step, z <- z + dt v with dt = t - t_next, at the times of `sampling_times`.

    With v = x0 - x1 the flow runs from noise to data as t falls; diffusers' schedulers use the other sign.
    Each step evaluates the velocity once, or twice with guidance.

    Args:
        velocity: the network.
        noise: x1, the initial state.
        text: text tokens of the condition.
        empty_text: text tokens of the unconditional velocity.
        steps: number of function evaluations (NFE), not counting guidance.
        cfg_scale: w of `guided`.
        time_shift: a of `shifted_time`.
    """
    latents = noise
    times = sampling_times(steps, time_shift).tolist()
    for now, after in itertools.pairwise(times):
        with torch.no_grad():  # a decorator would not cover the body of a wrapped generator
            latents = latents + (now - after) * guided(velocity, latents, text, empty_text, cfg_scale)
        yield latents


def sample(
    velocity: Velocity,
    noise: Float[Tensor, "B C H W"],
    text: Float[Tensor, "B S W_text"],
    empty_text: Float[Tensor, "B S0 W_text"],
    *,
    steps: int = 25,
    cfg_scale: float = 2.0,
    time_shift: float = 4.0,
) -> Float[Tensor, "B C H W"]:
    """Draw samples: the last of `euler_states`, which documents the arguments."""
    states = euler_states(
        velocity, noise, text, empty_text, steps=steps, cfg_scale=cfg_scale, time_shift=time_shift
    )
    return deque(states, maxlen=1).pop()
