"""Measurements that wait, to be made for several blocks at once: fewer calls on small tensors."""

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from meanmode.sim.observe.token_parts import measuring

HELD_BYTES = 2**23
"""Bytes of tensors that deferred measurements may keep alive."""


STACKED_BYTES = 2**21
"""Bytes of tensors that are stacked for one call; more would leave a CPU's cache."""

Place = tuple[int, ...]
"""(block,) or (block, writer)."""

Work = Callable[..., None]
"""Measures some places, given a list of them and each tensor held, stacked over them."""


class _Waiting(NamedTuple):
    """A measurement that waits.

    Attributes:
        work: makes it.
        place: where.
        held: tensors that it reads.
        beside: tensors that it seldom reads.
        versions: how often all of them had been written to.
    """

    work: Work
    place: Place
    held: tuple[Tensor, ...]
    beside: tuple[Tensor, ...]
    versions: list[int]


def version(x: Tensor) -> int:
    """How often a tensor has been written to; always 0 for tensors of inference mode, which keep no count."""
    return 0 if x.is_inference() else x._version


def size_of(*tensors: Tensor) -> int:
    """Bytes of tensors."""
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)


class Queue:
    """Deferred measurements, made together where they are of one kind and their tensors of one shape.

    Only CPU work is deferred, and the memory it keeps alive is bounded by `HELD_BYTES`.
    """

    def __init__(self) -> None:
        self._waiting: dict[Hashable, dict[Place, _Waiting]] = {}
        self._held = 0

    def add(
        self, kind: Hashable, work: Work, place: Place, *held: Tensor, beside: tuple[Tensor, ...] = ()
    ) -> None:
        """Measure later; until then the tensors held must not be modified.

        Args:
            kind: measurements of one kind are made by the `work` of any of them.
            work: makes the measurements.
            place: where.
            held: tensors that it reads, which are stacked.
            beside: tensors that it seldom reads: its last argument is a list of them, one entry per place.
        """
        shapes = (kind, *((tensor.shape, tensor.dtype, tensor.device) for tensor in held))
        if place in self._waiting.get(shapes, ()):
            self.flush()  # of an earlier pass
        versions = [version(tensor) for tensor in (*held, *beside)]
        self._waiting.setdefault(shapes, {})[place] = _Waiting(work, place, held, beside, versions)
        self._held += size_of(*held, *beside)
        if self._held > HELD_BYTES or held[0].device.type != "cpu":
            self.flush()

    def flush(self) -> None:
        """Make all deferred measurements.

        Raises:
            ValueError: a tensor was modified in place in the meantime.
        """
        waiting, self._waiting, self._held = self._waiting, {}, 0
        for group in waiting.values():
            entries = list(group.values())
            at_once = max(1, STACKED_BYTES // max(size_of(*entries[0].held), 1))
            for start in range(0, len(entries), at_once):
                _measure(entries[start : start + at_once])


def _measure(entries: Sequence[_Waiting]) -> None:
    for entry in entries:
        if [version(tensor) for tensor in (*entry.held, *entry.beside)] != entry.versions:
            raise ValueError(
                "an activation was changed in place before the probe measured it: change a copy instead"
            )
    with measuring(entries[0].held[0].device):
        columns = zip(*(entry.held for entry in entries), strict=True)
        stacked = [of[0][None] if len(of) == 1 else torch.stack(of) for of in columns]
        beside = [[entry.beside for entry in entries]] if entries[0].beside else []
        entries[0].work([entry.place for entry in entries], *stacked, *beside)
