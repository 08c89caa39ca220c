"""The token sets of the streams of one forward pass: which tokens are padding, and which belong together."""

import inspect
from collections.abc import Collection
from typing import Any

from torch import Tensor, nn

from meanmode.sim.observe.token_sets import TokenSets, groups_of
from meanmode.sim.watch.watch_plan import WatchedWriter, WatchPlan


class StreamSets:
    """Token sets by stream, from the arguments of the model and the shapes of the states.

    Args:
        plan: what is measured.
    """

    def __init__(self, plan: WatchPlan) -> None:
        self._plan = plan
        self._arguments: dict[str, object] = {}
        self._known: dict[str, TokenSets] = {}

    def begin(self, model: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        """Start a forward pass with these arguments."""
        self._known.clear()
        try:
            bound = inspect.signature(model.forward).bind_partial(*args, **options).arguments
        except TypeError:
            bound = {}
        self._arguments = {**bound, **bound.get("kwargs", {}), **options}

    def known(self, stream: str) -> TokenSets | None:
        """The sets of a stream; None if no state of it was seen yet."""
        return self._known.get(stream)

    def all(self) -> Collection[TokenSets]:
        """The sets of all streams that were seen."""
        return self._known.values()

    def of(self, stream: str, x: Tensor) -> TokenSets:
        """The sets of a state of a stream."""
        known = self._known.get(stream)
        if known is not None and known.shape == tuple(x.shape):
            return known
        found = self._plan.anatomy.stream(stream)
        sets = TokenSets(found.layout, tuple(x.shape))
        sets = sets.masked(groups_of(self._arguments, stream))
        parts = {part.stream: part.tokens for part in found.parts if part.stream}
        for segments in (self._plan.segments, parts):
            sets = sets.divided(segments) if segments and not sets.segments else sets
        self._known[stream] = sets
        return sets

    def of_writer(self, of: WatchedWriter, output: Tensor) -> TokenSets | None:
        """The sets of the stream of a writer; from its output if no state was seen yet."""
        sets = self._known.get(of.writer.stream)
        layout = self._plan.anatomy.stream(of.writer.stream).layout
        if sets is None and output.ndim == len(layout) and layout[-1] == "D":
            sets = self.of(of.writer.stream, output)
        return sets
