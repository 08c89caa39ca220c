"""A watch in a loop of `accelerate`, whose steps end where its optimiser makes an update."""

from typing import TYPE_CHECKING, Any

from meanmode.sim.watch.forms.driven_steps import DrivenSteps, MeanLoss

if TYPE_CHECKING:
    from meanmode.sim.watch.watch import Watch


class AcceleratedSteps:
    """Listens to `backward`, `clip_grad_norm_` and the optimiser's `step` of an `Accelerator`.

    A step lasts from one update to the next, over all micro-batches of `accumulate`. An update that the
    gradient scaler leaves out counts as a step. The mean loss, the gradient norm before its clip and the
    learning rate are logged.

    Args:
        watch: the watch.
        accelerator: the accelerator, after its `prepare`.

    Attributes:
        steps: the steps of the watch.
        trainer: the accelerator.

    Raises:
        ValueError: not exactly one prepared optimiser updates the watched model.
    """

    def __init__(self, watch: "Watch", accelerator: Any) -> None:
        self.steps, self.trainer = DrivenSteps(watch), accelerator
        self._optimiser = _optimiser_of(watch, accelerator)
        self._loss = MeanLoss()
        self._step = 1
        self._backward, self._clip = accelerator.backward, accelerator.clip_grad_norm_
        self._update = self._optimiser.step
        accelerator.backward, accelerator.clip_grad_norm_ = self.backward, self.clip_grad_norm_
        self._optimiser.step = self.step
        self._open()

    def backward(self, loss: Any, *args: Any, **options: Any) -> Any:
        """Note the loss of a micro-batch."""
        self._loss.add(loss)
        return self._backward(loss, *args, **options)

    def clip_grad_norm_(self, *args: Any, **options: Any) -> Any:
        """Note the norm before the clip."""
        norm = self._clip(*args, **options)
        if self.trainer.sync_gradients:
            self.steps.watch.log(grad_norm=norm)
        return norm

    def step(self, *args: Any, **options: Any) -> Any:
        """End the step where the optimiser makes its update, and open the next one."""
        if not self.trainer.sync_gradients:
            return self._update(*args, **options)
        watch = self.steps.watch
        self.steps.close()
        watch.log(loss=self._loss.take(), lr=self._optimiser.param_groups[0]["lr"])
        done = self._update(*args, **options)
        self._step += 1
        self._open()
        return done

    def _open(self) -> None:
        self.steps.open(self._step, self.trainer.scaler)


def _optimiser_of(watch: "Watch", accelerator: Any) -> Any:
    """The prepared optimiser that updates the watched model."""
    watched = {id(of) for of in watch.model.parameters()}
    found = [
        optimiser
        for optimiser in accelerator._optimizers
        if any(id(of) in watched for group in optimiser.param_groups for of in group["params"])
    ]
    if len(found) != 1:
        raise ValueError(
            f"{len(found)} prepared optimisers update the watched model, and one is needed: attach the watch "
            "after `accelerator.prepare`, or use `with watch.step(step):`"
        )
    return found[0]
