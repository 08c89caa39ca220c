"""Measurements that wait, to be run in batches which make better use of a CPU's caches."""

from collections.abc import Callable

from torch import Tensor

from meanmode.sim.observe.token_parts import measuring

HELD_BYTES = 2**25
"""Bytes of activations that deferred measurements may keep alive."""


def version(x: Tensor) -> int:
    """How often a tensor has been written to; always 0 for tensors of inference mode, which keep no count."""
    return 0 if x.is_inference() else x._version


class Queue:
    """Deferred measurements.

    Only CPU work is deferred, and the memory it keeps alive is bounded by `HELD_BYTES`.
    """

    def __init__(self) -> None:
        self._work: list[tuple[Callable[[], None], tuple[tuple[Tensor, int], ...]]] = []
        self._held = 0

    def add(self, work: Callable[[], None], *held: Tensor, now: bool = False) -> None:
        """Do the work now or later; until then the tensors it reads, `held`, must not be modified."""
        self._work.append((work, tuple((tensor, version(tensor)) for tensor in held)))
        self._held += sum(tensor.numel() * tensor.itemsize for tensor in held)
        if now or self._held > HELD_BYTES or held[0].device.type != "cpu":
            self.flush()

    def flush(self) -> None:
        """Run all deferred measurements.

        Raises:
            ValueError: a tensor was modified in place in the meantime.
        """
        work, self._work, self._held = self._work, [], 0
        for measure, held in work:
            if any(version(tensor) != before for tensor, before in held):
                raise ValueError(
                    "an activation was changed in place before the probe measured it: change a copy instead"
                )
            with measuring(held[0][0].device):
                measure()
