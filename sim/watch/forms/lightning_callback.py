"""A callback for the Trainer of `lightning` or `pytorch_lightning`, by duck typing."""

from typing import TYPE_CHECKING, Any

from torch.nn.utils import get_total_norm

from meanmode.sim.watch.forms.driven_steps import DrivenSteps, MeanLoss

if TYPE_CHECKING:
    from meanmode.sim.watch.watch import Watch

MANUAL = (
    "a watch cannot be attached to manual optimisation: in `training_step`, use "
    "`with watch.step(self.global_step + 1):` around the forward and backward passes of each update"
)
"""Why a module that steps its optimisers itself is refused."""


class LightningCallback:
    """Opens a step at its first micro-batch, closes it before the clip, and logs the scalars of the watch.

    Sanity checks and validation open no step.

    Args:
        watch: the watch.
        trainer: the trainer whose callbacks this one joins.

    Attributes:
        steps: the steps of the watch.
        trainer: the trainer.
        state_key: name under which a checkpoint would keep the state of the callback, which has none.
    """

    state_key = _legacy_state_key = "meanmode.Watch"

    def __init__(self, watch: "Watch", trainer: Any) -> None:
        self.steps, self.trainer = DrivenSteps(watch), trainer
        self._loss = MeanLoss()
        trainer.callbacks.insert(0, self)  # before others that change the gradients

    def __getattr__(self, name: str) -> Any:
        """Do nothing at every other event."""
        if name.startswith("on_") or name in ("setup", "teardown", "load_state_dict"):
            return _nothing
        raise AttributeError(name)

    def state_dict(self) -> dict[str, Any]:
        """Nothing for the checkpoint."""
        return {}

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Refuse modules that step their optimisers themselves.

        Raises:
            ValueError: the module has manual optimisation.
        """
        if not module.automatic_optimization:
            raise ValueError(MANUAL)

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        """Open the step at its first micro-batch."""
        if not self.steps.is_open:
            self._loss.take()
            self.steps.open(trainer.global_step + 1, _scaler(trainer))

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        """Close the step after its last backward pass; gradients are unscaled and not yet clipped."""
        if not self.steps.is_open:
            return
        watch = self.steps.watch
        measured = self.steps.close()
        watch.log(lr=optimizer.param_groups[0]["lr"])
        scaled = _scaler(trainer) is not None and getattr(optimizer, "_step_supports_amp_scaling", False)
        if measured and not scaled:
            gradients = [of.grad for of in watch.model.parameters() if of.grad is not None]
            watch.log(grad_norm=get_total_norm(gradients))

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        """Add the loss of the micro-batch, and after the last one show the scalars to the loggers."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        # Lightning hands out the loss divided by the number of micro-batches of a full step
        self._loss.add(None if loss is None else loss * trainer.accumulate_grad_batches)
        if self.steps.is_open:
            return
        self.steps.watch.log(loss=self._loss.take())
        shown = self.steps.fresh()
        if index < trainer.accumulate_grad_batches:  # Lightning keeps what was logged until the epoch ends
            shown = self.steps.shown()
        if shown:
            module.log_dict(shown, on_step=True, on_epoch=False, batch_size=1)

    def on_train_end(self, trainer: Any, module: Any) -> None:
        """Write what is left."""
        self.steps.watch.close()

    def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
        """Write what is left when training breaks off."""
        self.steps.watch.close()


def _scaler(trainer: Any) -> Any:
    """The gradient scaler of the trainer's precision; None without mixed half precision."""
    return getattr(getattr(trainer, "precision_plugin", None), "scaler", None)


def _nothing(*_: Any, **__: Any) -> None:
    """Answer an event."""
