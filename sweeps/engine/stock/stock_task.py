"""What a stock model is trained on: a model with its loss, and the digits."""

# P pixels of a side

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from meanmode.sweeps.engine.stock.stock_run import StockRun

HEADS = 4
"""Attention heads."""


PIXELS, PATCH, CLASSES = 8, 2, 10
"""Pixels of a side of a digit and of a patch, and number of classes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """A model and its task.

    Attributes:
        model: the model.
        loss: takes a generator and whether the data are the other ones; draws a batch and returns its loss.
    """

    model: nn.Module
    loss: Callable[[torch.Generator, bool], Tensor]


@cache
def _digits() -> tuple[Float[Tensor, "N 1 P P"], Int[Tensor, " N"]]:
    """The 8 x 8 digits of scikit-learn, scaled to [-1, 1], and their classes."""
    from sklearn.datasets import load_digits

    images, classes = load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32).view(-1, 1, PIXELS, PIXELS) / 8 - 1, torch.tensor(
        classes
    )


def drawn_digits(
    run: StockRun, random: torch.Generator
) -> tuple[Float[Tensor, "B 1 P P"], Int[Tensor, " B"]]:
    """A batch of digits and their classes."""
    images, classes = _digits()
    chosen = torch.randint(len(images), (run.batch,), generator=random)
    return images[chosen], classes[chosen]


def other_classes(classes: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
    """The classes of the other data."""
    return (3 * classes + 1) % CLASSES
