"""The collapse front of very long sequences: its limit for infinitely many tokens, and how it is reached."""

import dataclasses
from dataclasses import dataclass

from meanmode.theory.meanfield.predicted_front import deterministic_fronts
from meanmode.theory.setting import LARGEST_SIZE, Setting


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLimit:
    """The front of the mean recursion against the tokens: front(T) = limit - slope / T + O(1 / T^2).

    The recursion sees T through 1 / T alone: with the pair cosine c as its state, the energy of the token
    mean is c + (1 - c) / T, and row moments are 1 / T times functions of c and 1 / T. It is smooth in 1 / T,
    and so is its front, but for kinks where the front passes a block. What starts a collapse without a common
    part of the input is the energy 1 / T of the mean of T independent tokens, and terms of order 1 / D that
    do not depend on T: beyond T of order D only these remain.

    Attributes:
        front: front at the setting's number of tokens, in blocks.
        limit: front for infinitely many tokens.
        slope: K of the approach, in blocks times tokens; positive if fewer tokens collapse earlier.
        remainder: front - (limit - slope / T), in blocks: what the first order leaves out.
    """

    front: float
    limit: float
    slope: float
    remainder: float

    def between(self, fewer: int, more: int) -> float:
        """How far the front moves from `fewer` to `more` tokens to first order, in blocks."""
        return self.slope * (1 / fewer - 1 / more)


def token_limit(setting: Setting) -> TokenLimit | None:
    """The limit of the mean recursion's front and its approach; None if one of the fronts does not exist.

    Computed from the fronts at `LARGEST_SIZE` tokens and a quarter of that, where the second order is below
    rounding.

    Args:
        setting: the stack; `text_tokens` must be 0.

    Raises:
        ValueError: a setting that the recursion does not cover, or one with text tokens.
    """
    if setting.text_tokens:
        raise ValueError(f"only the image tokens grow: set text_tokens to 0, got {setting.text_tokens}")
    counts = (setting.tokens, LARGEST_SIZE // 4, LARGEST_SIZE)
    fronts = deterministic_fronts([dataclasses.replace(setting, tokens=count) for count in counts])
    front, fewer, more = fronts
    if front is None or fewer is None or more is None:
        return None
    slope = (more - fewer) / (1 / counts[1] - 1 / counts[2])
    limit = more + slope / counts[2]
    return TokenLimit(
        front=front, limit=limit, slope=slope, remainder=front - (limit - slope / setting.tokens)
    )
