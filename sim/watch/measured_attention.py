"""The largest logit and the entropy of the softmax attentions of a measured step."""

# B batch, H heads, T queries, S keys

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from meanmode.sim.observe.record import Record
from meanmode.sim.observe.token_parts import measuring
from meanmode.sim.observe.token_sets import TokenSets
from meanmode.sim.watch.intercepted import logits, peak_and_entropy
from meanmode.sim.watch.watch_plan import WatchPlan


class MeasuredAttention:
    """Records `max_logit` and `attention_entropy` of the blocks that are measured.

    Args:
        record: receives the values.
        plan: what is measured.
    """

    def __init__(self, record: Record, plan: WatchPlan) -> None:
        self._record = record
        self._blocks = plan.readers.keys() & set(plan.blocks)

    def fused(self, block: int, known: Iterable[TokenSets], *args: Any, **options: Any) -> None:
        """Record an attention from the arguments of `scaled_dot_product_attention`.

        Args:
            block: number of the block that it is in.
            known: token sets of the streams, which tell padding.
            args: arguments of the function.
            options: named arguments of the function.
        """
        query = args[0] if args else options["query"]
        if block in self._blocks and query.ndim == 4:
            with measuring(query.device):
                found, taken = logits(*args, **options)
                kept = _queries(known, query)
                self._put(block, found.detach(), None if kept is None else kept[:, taken])

    def softmax(self, block: int, known: Iterable[TokenSets], found: Tensor) -> None:
        """Record an attention from its logits [B, H, T, S]; other arguments as those of `fused`."""
        if block in self._blocks and found.ndim == 4:
            with measuring(found.device):
                self._put(block, found, _queries(known, found))

    def _put(self, block: int, found: Tensor, kept: Tensor | None) -> None:
        peak, entropy, there = peak_and_entropy(found, kept)
        self._record.put("max_logit", (block,), peak)
        self._record.put("attention_entropy", (block,), entropy, there)


def _queries(known: Iterable[TokenSets], found: Tensor) -> Tensor | None:
    """Which queries are not padding; None if all are."""
    for sets in known:
        if sets.groups is not None and sets.groups.shape == (found.shape[0], found.shape[-2]):
            return sets.groups > 0
    return None
