"""Steps of a watch that somebody else's events open and close, instead of a `with` block."""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meanmode.sim.watch.watch import Watch

PREFIX = "meanmode/"
"""Prefix of the scalars of a watch in the logs of a trainer."""


class DrivenSteps:
    """The open step of a watch; what a trainer, Lightning and accelerate have in common.

    Args:
        watch: the watch.

    Attributes:
        watch: the watch.
    """

    def __init__(self, watch: "Watch") -> None:
        self.watch = watch
        self._opened: AbstractContextManager[None] | None = None
        self._shown: dict[str, float] = {}

    @property
    def is_open(self) -> bool:
        """Whether a step is open."""
        return self._opened is not None

    def open(self, step: int, scaler: Any = None) -> None:
        """Open a step; one that was never closed, because its training broke off, is discarded."""
        self.discard()
        opened = self.watch.step(step, scaler=scaler)
        opened.__enter__()
        self._opened = opened

    def close(self) -> bool:
        """Close the step after its last backward pass, if one is open; returns whether it was measured."""
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.__exit__(None, None, None)
        return opened is not None and not isinstance(opened, nullcontext)

    def discard(self) -> None:
        """Remove the hooks of a step that did not come to its update, without recording anything."""
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.__exit__(GeneratorExit, GeneratorExit(), None)

    def fresh(self) -> dict[str, float]:
        """Scalars of the last measured step as a trainer logs them; none if they were handed out before."""
        if self.watch.latest is self._shown:
            return {}
        self._shown = self.watch.latest
        return self.shown()

    def shown(self) -> dict[str, float]:
        """Scalars of the last measured step as a trainer logs them."""
        return {f"{PREFIX}{name}": value for name, value in self.watch.latest.items()}


class MeanLoss:
    """Mean loss over the micro-batches of a step, without waiting for a device."""

    def __init__(self) -> None:
        self._sum: Any = 0.0
        self._count = 0

    def add(self, loss: Any) -> None:
        """Add the loss of a micro-batch; what is no number is left out."""
        if loss is not None:
            self._sum = self._sum + (loss.detach() if hasattr(loss, "detach") else loss)
            self._count += 1

    def take(self) -> Any:
        """The mean since the last call; None if there was no loss."""
        total, count = self._sum, self._count
        self._sum, self._count = 0.0, 0
        return total / count if count else None
