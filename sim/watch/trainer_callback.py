"""A callback for `transformers.Trainer`, by duck typing."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meanmode.sim.watch.watch import Watch

PREFIX = "meanmode/"
"""Prefix of the keys in the logs of a trainer."""


class WatchCallback:
    """Opens and closes the steps of a watch, and adds its scalars to the logs.

    Args:
        watch: the watch.
        trainer: the trainer, whose gradient scaler is read.
    """

    def __init__(self, watch: "Watch", trainer: Any) -> None:
        self._watch = watch
        self._trainer = trainer
        self._step: Any = None

    def __getattr__(self, name: str) -> Any:
        """Do nothing at every other event."""
        if name.startswith("on_"):
            return lambda *_, **__: None
        raise AttributeError(name)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the step before its first micro-batch."""
        self._close()
        scaler = getattr(getattr(self._trainer, "accelerator", None), "scaler", None)
        self._step = self._watch.step(state.global_step + 1, scaler=scaler)
        self._step.__enter__()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the step after its last backward pass."""
        self._close()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Add the scalars to what the other callbacks log, and to the history; take loss, norm and rate."""
        if not logs or "loss" not in logs:
            return
        self._watch.log(loss=logs["loss"], grad_norm=logs.get("grad_norm"), lr=logs.get("learning_rate"))
        shown = {f"{PREFIX}{name}": value for name, value in self._watch.latest.items()}
        logs.update(shown)
        history = getattr(state, "log_history", None)
        if history and history[-1].get("step") == state.global_step:
            history[-1].update(shown)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write what is left."""
        self._close()
        self._watch.close()

    def _close(self) -> None:
        if self._step is not None:
            self._step.__exit__(None, None, None)
            self._step = None
