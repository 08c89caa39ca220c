"""Which tokens of a block's input are no padding, from the masks that its forward pass is given."""

# B batch, T tokens, S tokens that look

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

MASKS = {"attention_mask": False, "src_key_padding_mask": True, "key_padding_mask": True}
"""Argument of a block -> whether a boolean mask of [B, T] is true at padding."""

MASKED = -1e4
"""Floating masks are added to the logits; below this they hide a token, whatever finite number they use."""

HOLDER = "kept_tokens"
"""Attribute under which converted modules hold the `KeptTokens` of their block."""


def kept_of(mask: Tensor | None, *, padding: bool) -> Tensor | None:
    """True at tokens, false at padding [B, T]; a token that no other one sees is padding. None keeps all.

    Args:
        mask: [B, T], or [B, 1, T], [B, 1, S, T] and the like: boolean, true where a token is seen, or
            floating and added to the logits.
        padding: whether a boolean mask [B, T] is true at padding, and a floating one is added.
    """
    if mask is None:
        return None
    if mask.ndim == 2:
        if padding:
            return mask > MASKED if mask.is_floating_point() else ~mask.bool()
        return mask > 0
    seen = mask > MASKED if mask.is_floating_point() else mask.bool()
    return seen.flatten(1, -2).any(1)


class KeptTokens:
    """What a block was told of padding in the pass that runs.

    Attributes:
        now: true at tokens, false at padding [B, T]; None keeps all.
    """

    def __init__(self) -> None:
        self.now: Tensor | None = None


def telling(forward: Callable[..., Any]) -> Callable[..., Any] | None:
    """A block's forward that tells the `KeptTokens` of its module first; None if it is given no mask.

    The mask is read inside the forward pass, where activation checkpointing runs it again with the arguments
    of its own micro-batch.
    """
    names = list(inspect.signature(forward).parameters)
    name = next((name for name in MASKS if name in names), "")
    if not name:
        return None
    place, padding = names.index(name) - 1, MASKS[name]

    @functools.wraps(forward)
    def told(self: nn.Module, *args: Any, **options: Any) -> Any:
        mask = args[place] if len(args) > place else options.get(name)
        tokens: Any = getattr(self, HOLDER)
        tokens.now = kept_of(mask if isinstance(mask, torch.Tensor) else None, padding=padding)
        output = forward(self, *args, **options)
        tokens.now = None
        return output

    return told
