"""Segments of a token sequence, their means, and replicated tokens."""

import torch
from jaxtyping import Float
from torch import Tensor

Segments = tuple[int, ...]


class Replicated(tuple[int, ...]):
    """Segments whose every token stands `copies` times in a row, at one position (law X1)."""

    copies: int

    def __new__(cls, segments: Segments, copies: int) -> "Replicated":
        """The segments of a replicated sequence, `segments` being those of one copy."""
        found = super().__new__(cls, (copies * length for length in segments))
        found.copies = copies * getattr(segments, "copies", 1)
        return found


def segment_mean(x: Float[Tensor, "*B T D"], segments: Segments) -> Float[Tensor, "*B T D"]:
    """J_seg X: every token replaced by the mean of its segment (arXiv:2605.06169 App. E); empty segments are
    skipped.

    Raises:
        ValueError: the segments do not add up to the tokens.
    """
    if sum(segments) != x.shape[-2]:
        raise ValueError(f"segments {segments} hold {sum(segments)} tokens, the trunk has {x.shape[-2]}")
    parts = x.split([length for length in segments if length], dim=-2)
    return torch.cat([part.mean(-2, keepdim=True).expand_as(part) for part in parts], dim=-2)


def replicate_tokens(
    x: Float[Tensor, "*B T D"], segments: Segments, copies: int
) -> tuple[Float[Tensor, "*B kT D"], Segments]:
    """Every token `copies` times in a row, and the segments that go with it (law X1).

    Positions go with the tokens: token i of the result stands where token i // copies stood. Where the
    targets of the tokens are replicated too, the mean loss, all parameter gradients and what an optimiser
    makes of them stay what they are, while the amplification of every writer is multiplied.

    Raises:
        ValueError: fewer than one copy, or segments that do not add up to the tokens.
    """
    if copies < 1:
        raise ValueError(f"copies must be at least 1, got {copies}")
    if sum(segments) != x.shape[-2]:
        raise ValueError(f"segments {segments} hold {sum(segments)} tokens, the input has {x.shape[-2]}")
    return x.repeat_interleave(copies, dim=-2), Replicated(segments, copies)
