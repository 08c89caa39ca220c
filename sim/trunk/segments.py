"""Segments of a token sequence (image, text), their means, and token replication."""

import torch
from jaxtyping import Float
from torch import Tensor

Segments = tuple[int, ...]


class Replicated(tuple[int, ...]):
    """Segments in which each token is repeated `copies` times in a row, at one position (law X1)."""

    copies: int

    def __new__(cls, segments: Segments, copies: int) -> "Replicated":
        """Segments of the replicated sequence; `segments` are those of a single copy."""
        found = super().__new__(cls, (copies * length for length in segments))
        found.copies = copies * getattr(segments, "copies", 1)
        return found


def segment_mean(x: Float[Tensor, "*B T D"], segments: Segments) -> Float[Tensor, "*B T D"]:
    """J_seg X: every token replaced by the mean of its segment (arXiv:2605.06169 App. E).

    Empty segments are skipped.

    Raises:
        ValueError: the segments do not add up to the number of tokens.
    """
    if sum(segments) != x.shape[-2]:
        raise ValueError(f"segments {segments} hold {sum(segments)} tokens, the trunk has {x.shape[-2]}")
    parts = x.split([length for length in segments if length], dim=-2)
    return torch.cat([part.mean(-2, keepdim=True).expand_as(part) for part in parts], dim=-2)


def replicate_tokens(
    x: Float[Tensor, "*B T D"], segments: Segments, copies: int
) -> tuple[Float[Tensor, "*B kT D"], Segments]:
    """Repeat every token `copies` times in a row; return the tokens and their segments (law X1).

    Token i of the result has the position of token i // copies. If the targets are replicated too, the mean
    loss, all parameter gradients and the optimiser's steps are unchanged, while the amplification of every
    writer is multiplied by `copies`.

    Raises:
        ValueError: fewer than one copy, or the segments do not add up to the number of tokens.
    """
    if copies < 1:
        raise ValueError(f"copies must be at least 1, got {copies}")
    if sum(segments) != x.shape[-2]:
        raise ValueError(f"segments {segments} hold {sum(segments)} tokens, the input has {x.shape[-2]}")
    return x.repeat_interleave(copies, dim=-2), Replicated(segments, copies)
