"""A callback for `transformers.Trainer`, by duck typing."""

from typing import TYPE_CHECKING, Any

from meanmode.sim.watch.forms.driven_steps import DrivenSteps

if TYPE_CHECKING:
    from meanmode.sim.watch.watch import Watch


class TrainerCallback:
    """Opens and closes the steps of a watch, and adds its scalars to the logs.

    Args:
        watch: the watch.
        trainer: the trainer whose callbacks this one joins.

    Attributes:
        steps: the steps of the watch.
        trainer: the trainer.
    """

    def __init__(self, watch: "Watch", trainer: Any) -> None:
        self.steps, self.trainer = DrivenSteps(watch), trainer
        trainer.callback_handler.callbacks.insert(0, self)  # before those that report the logs

    def __getattr__(self, name: str) -> Any:
        """Do nothing at every other event."""
        if name.startswith("on_"):
            return lambda *_, **__: None
        raise AttributeError(name)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the step before its first micro-batch."""
        scaler = getattr(getattr(self.trainer, "accelerator", None), "scaler", None)
        self.steps.open(state.global_step + 1, scaler)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the step after its last backward pass."""
        self.steps.close()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Add what was measured since the last time to the logs and the history; take loss, norm and rate."""
        if not logs or "loss" not in logs:
            return
        watch = self.steps.watch
        watch.log(loss=logs["loss"], grad_norm=logs.get("grad_norm"), lr=logs.get("learning_rate"))
        shown = self.steps.fresh()
        logs.update(shown)
        history = getattr(state, "log_history", None)
        if history and history[-1].get("step") == state.global_step:
            history[-1].update(shown)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write what is left."""
        self.steps.watch.close()
