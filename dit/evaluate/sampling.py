"""Draw samples of a trained network, and arrange them in a figure."""

# K conditions, E samples of each, B batch, C channels, H height, W width of a latent, S text tokens

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from meanmode.dit.config.field_ranges import Range, check_fields
from meanmode.dit.data.bounds import BOUNDS, GUIDANCE, TIME_SHIFT
from meanmode.dit.model.flow import euler_states, random_stream
from meanmode.dit.model.network import DiT

if TYPE_CHECKING:
    from matplotlib.figure import Figure


SAMPLING_STREAM = 2
"""First word of the key of every random stream that gives the noise of a sample."""


TILE_PIXELS = 64
"""Approximate side of a sample in the figure."""


LARGEST_FIGURE = 2**16 - 1
"""Largest width and height of a figure in pixels."""


MARGIN = 2000
"""Pixels of a figure that are left to labels and caption."""


MINIMAL_PIXELS = 320
"""Smallest width of the figure, to leave room for its caption."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig:
    """How samples are drawn.

    Attributes:
        each: number of samples per condition.
        steps: Euler steps (NFE, not counting guidance).
        cfg_scale: guidance scale w; 1 disables guidance.
        time_shift: shift a of the sampling times.
        seed: seed of the noise.
        batch: samples computed together; it affects samples only by rounding.

    Raises:
        ValueError: a value is out of range.
    """

    each: Annotated[int, Range(*BOUNDS["each"])] = 8
    steps: Annotated[int, Range(*BOUNDS["steps"])] = 25
    cfg_scale: Annotated[float, Range(*GUIDANCE)] = 2.0
    time_shift: Annotated[float, Range(*TIME_SHIFT)] = 4.0
    seed: Annotated[int, Range(*BOUNDS["seed"])] = 0
    batch: Annotated[int, Range(*BOUNDS["batch"])] = 64

    def __post_init__(self) -> None:
        check_fields(self)

    def evaluations(self, conditions: int) -> int:
        """Total number of Euler steps over all batches."""
        return self.steps * math.ceil(conditions * self.each / self.batch)


def start_noise(seed: int, label: int, number: int, shape: Sequence[int]) -> Float[Tensor, "C H W"]:
    """Standard normal noise x1 of a sample, determined by the seed, the label and the sample number."""
    return torch.randn(*shape, generator=random_stream(seed, SAMPLING_STREAM, label, number))


def draw_samples(
    network: DiT,
    prompts: Float[Tensor, "K S W_text"],
    empty_text: Float[Tensor, "S0 W_text"],
    config: SamplingConfig,
    *,
    labels: Sequence[int],
    step_done: Callable[[], object] = lambda: None,
) -> Float[Tensor, "K E C H W"]:
    """Draw samples of every condition in batches, and return them on the CPU.

    Up to rounding, sample e of a condition does not depend on the other conditions, the number of samples or
    the batch size.

    Args:
        network: network on the device that computes.
        prompts: text tokens of every condition.
        empty_text: text tokens of the unconditional velocity.
        config: how samples are drawn.
        labels: number that selects the noise of each condition, such as its class.
        step_done: called after every Euler step of a batch.
    """
    sizes, device = network.config, next(network.parameters()).device
    shape = (sizes.channels, sizes.side, sizes.side)
    wanted = [(row, number) for row in range(len(prompts)) for number in range(config.each)]
    done = []
    for first in range(0, len(wanted), config.batch):
        part = wanted[first : first + config.batch]
        noise = [start_noise(config.seed, labels[row], number, shape) for row, number in part]
        latents = torch.stack(noise).to(device)
        states = euler_states(
            network,
            latents,
            prompts[[row for row, _ in part]].to(device),
            empty_text.to(device).expand(len(part), -1, -1),
            steps=config.steps,
            cfg_scale=config.cfg_scale,
            time_shift=config.time_shift,
        )
        for state in states:
            latents = state
            step_done()
        done.append(latents.cpu())
    return torch.cat(done).unflatten(0, (len(prompts), config.each))


def check_figure(rows: int, each: int, side: int) -> None:
    """Refuse more samples than `samples_figure` can draw, before they are computed.

    Args:
        rows: number of conditions.
        each: number of samples per condition.
        side: height and width of a sample in values.

    Raises:
        ValueError: the figure would be too large.
    """
    tile = (side + 1) * _scale(side)
    for count, what in ((each, "samples side by side"), (rows, "rows of samples")):
        most = (LARGEST_FIGURE - MARGIN) // tile
        if count > most:
            raise ValueError(f"a figure has room for at most {most} {what} of side {side}, got {count:,}")


def _scale(side: int) -> int:
    """Pixels of the figure per value, along each side."""
    return max(1, round(TILE_PIXELS / side))


def samples_figure(
    images: Float[Tensor, "K E H W *rgb"], labels: Sequence[str], caption: str = ""
) -> "Figure":
    """Figure with one labelled row of images per condition; every image value is a square of pixels.

    Args:
        images: grey or RGB values in [0, 1].
        labels: label of every row.
        caption: text above the images, wrapped to the width.
    """
    from matplotlib.figure import Figure

    height, width = images.shape[2:4]
    scale, font, gap = _scale(width), 6, 1
    dpi = 128  # a power of two, so that sizes in inches convert exactly to whole pixels
    margins = [(0, 0), (0, 0), (0, gap), (0, gap), *[(0, 0)] * (images.ndim - 4)]
    tiles = np.pad(images.numpy(), margins, constant_values=1.0)
    mosaic = np.concatenate([np.concatenate(list(row), axis=1) for row in tiles], axis=0)
    rows, columns = (scale * size for size in mosaic.shape[:2])

    letter = font * dpi / 72  # height of a line in pixels; letters are about 0.6 of that wide
    left = 10 + round(0.6 * letter * max(map(len, labels)))
    total_width = max(left + columns + 6, MINIMAL_PIXELS)
    lines = textwrap.wrap(caption, int((total_width - 8) / (0.6 * letter)))
    top = 6 + round(1.35 * letter * len(lines))
    total_height = top + rows + 6
    figure = Figure(figsize=(total_width / dpi, total_height / dpi), dpi=dpi)
    axes = figure.add_axes((left / total_width, 6 / total_height, columns / total_width, rows / total_height))
    axes.imshow(mosaic, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    axes.set_xticks([])
    axes.set_yticks(
        [(height + gap) * row + (height - 1) / 2 for row in range(len(tiles))],
        labels,
        fontsize=font,
        parse_math=False,  # dollar signs are text
    )
    axes.tick_params(length=0, pad=3)
    for spine in axes.spines.values():
        spine.set_visible(False)
    corner = 4 / total_width, 1 - 4 / total_height
    figure.text(*corner, "\n".join(lines), fontsize=font, va="top", parse_math=False)
    return figure
