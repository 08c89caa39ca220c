"""Segments of a token sequence (image, text), their means, and token replication."""

import functools
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

Segments = tuple[int, ...]

Division = Segments | Mapping[str, int] | None
"""Token counts of the segments in order, or name -> count; None for one segment."""


class Replicated(tuple[int, ...]):
    """Segments in which each token is repeated `copies` times in a row, at one position (law X1)."""

    copies: int

    def __new__(cls, segments: Segments, copies: int) -> "Replicated":
        """Segments of the replicated sequence; `segments` are those of a single copy."""
        found = super().__new__(cls, (copies * length for length in segments))
        found.copies = copies * getattr(segments, "copies", 1)
        return found


def token_counts(division: Division, tokens: int) -> Segments:
    """The token counts of a division; those of one segment for None."""
    if division is None:
        return (tokens,)
    return tuple(division.values()) if isinstance(division, Mapping) else division


def segment_mean(
    x: Float[Tensor, "*B T D"], segments: Segments, kept: Tensor | None = None
) -> Float[Tensor, "*B T D"]:
    """J_seg X: every token replaced by the mean of its segment (arXiv:2605.06169 App. E).

    Empty segments are skipped.

    Args:
        x: tokens.
        segments: their counts.
        kept: tokens that count [*B, T], the others being padding; None keeps all. A segment without any has
            the mean 0.

    Raises:
        ValueError: the segments do not add up to the number of tokens, or `kept` has another number.
    """
    if sum(segments) != x.shape[-2]:
        raise ValueError(f"segments {segments} hold {sum(segments)} tokens, the trunk has {x.shape[-2]}")
    lengths = [length for length in segments if length]
    parts = x.split(lengths, dim=-2)
    if kept is None:
        return torch.cat([part.mean(-2, keepdim=True).expand_as(part) for part in parts], dim=-2)
    if kept.shape[-1] != x.shape[-2]:
        raise ValueError(f"kept marks {kept.shape[-1]} tokens, the trunk has {x.shape[-2]}")
    means = [
        (part.masked_fill(~there, 0.0).sum(-2, keepdim=True) / there.sum(-2, keepdim=True).clamp_min(1))
        for part, there in zip(parts, kept[..., None].split(lengths, dim=-2), strict=True)
    ]
    return torch.cat([mean.expand_as(part) for mean, part in zip(means, parts, strict=True)], dim=-2)


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
    return x.repeat_interleave(copies, dim=-2), _replicated(
        tuple(segments), getattr(segments, "copies", 1), copies
    )


@functools.lru_cache(maxsize=64)
def _replicated(segments: Segments, before: int, copies: int) -> Replicated:
    """One object for equal segments: compilers tell objects of a class of ours apart."""
    found = Replicated(segments, copies)
    found.copies *= before
    return found
