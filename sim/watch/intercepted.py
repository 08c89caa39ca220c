"""Functional calls seen by parameter or by block: products, softmax, attention of `torch.nn.functional`."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Product = Callable[[Tensor, Tensor, Tensor | None, Tensor], Tensor]
"""Takes input, weight, bias and output of a product, and returns the output that the pass then uses."""

Attention = Callable[..., Tensor | None]
"""Takes the arguments of `scaled_dot_product_attention`; may return other queries to use."""

Softmax = Callable[[Tensor, Tensor], Tensor | None]
"""Takes logits and weights; may return what takes the place of the weights."""


@contextlib.contextmanager
def intercepted(
    *, product: Product | None, attention: Attention | None, softmax: Softmax | None
) -> Iterator[None]:
    """See the calls of three functions of `torch.nn.functional` inside the context; None leaves one alone."""
    replaced: dict[str, Any] = {}
    linear, sdpa, soft = functional.linear, functional.scaled_dot_product_attention, functional.softmax

    def seen_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        written = linear(input, weight, bias)
        return product(input, weight, bias, written) if product else written

    def seen_attention(*args: Any, **options: Any) -> Tensor:
        query = attention(*args, **options) if attention else None
        if query is not None and args:
            args = (query, *args[1:])
        elif query is not None:
            options["query"] = query
        return sdpa(*args, **options)

    def seen_softmax(input: Tensor, *args: Any, **options: Any) -> Tensor:
        weights = soft(input, *args, **options)
        if softmax and input.ndim == 4:
            seen = softmax(input, weights)
            return weights if seen is None else seen
        return weights

    if product:
        replaced["linear"] = (linear, seen_linear)
    if attention:
        replaced["scaled_dot_product_attention"] = (sdpa, seen_attention)
    if softmax:
        replaced["softmax"] = (soft, seen_softmax)
    for name, (_, new) in replaced.items():
        setattr(functional, name, new)
    try:
        yield
    finally:
        for name, (old, new) in replaced.items():
            if getattr(functional, name) is new:
                setattr(functional, name, old)


ENTRIES = 2**24
"""Entries of attention matrices formed per block and pass; larger ones are measured at every n-th query."""


MASKED = -1e4
"""Logits below this are masked: masks of finite numbers go down to the least number of half precision."""


def logits(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Tensor, slice]:
    """Attention logits as `scaled_dot_product_attention` forms them (-inf where masked), and the queries.

    Args: as those of `scaled_dot_product_attention`.
    """
    del value, dropout_p
    rows, columns = query.shape[-2], key.shape[-2]
    stride = slice(None, None, max(1, -(-query.shape[:-1].numel() * columns // ENTRIES)))
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    found = scale * (query[..., stride, :].float() @ key.float().mT)
    if is_causal:
        later = torch.ones(rows, columns, dtype=torch.bool, device=query.device).triu(1)
        found = found.masked_fill(later[stride], -torch.inf)
    if attn_mask is not None:
        mask = attn_mask if attn_mask.shape[-2] == 1 else attn_mask[..., stride, :]
        found = found.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else found + mask.float()
    return found, stride


def peak_and_entropy(found: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Largest logit [], entropies in nats per query [B, H, T], and the queries that have one [B, H, T].

    Args:
        found: logits [B, H, T, S]; masked ones are -inf, or as low as a mask of finite numbers makes them.
        kept: queries that are not padding [B, T]; None keeps all.
    """
    found = found.float()
    real = ~(found < MASKED)  # true for NaN, which must not count as masked
    there = real.any(-1)
    if kept is not None:
        there = there & kept[:, None]
    shown = found.masked_fill(~real, -torch.inf)
    logs = torch.log_softmax(shown, -1)
    entropy = -(logs.exp() * logs.masked_fill(~real, 0.0)).sum(-1)
    return shown.masked_fill(~there[..., None], -torch.inf).amax(), entropy, there
