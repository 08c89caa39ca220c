"""What a watch can be attached to, recognised by what it answers to."""

from typing import TYPE_CHECKING, Any

from meanmode.sim.watch.forms.accelerated_steps import AcceleratedSteps
from meanmode.sim.watch.forms.lightning_callback import LightningCallback
from meanmode.sim.watch.forms.trainer_callback import TrainerCallback

if TYPE_CHECKING:
    from meanmode.sim.watch.watch import Watch

Form = TrainerCallback | LightningCallback | AcceleratedSteps


def form_of(watch: "Watch", trainer: Any) -> Form:
    """Attach a watch to what trains its model.

    Raises:
        ValueError: it is none of the known forms.
    """
    if hasattr(trainer, "callback_handler"):
        return TrainerCallback(watch, trainer)
    if hasattr(trainer, "fit") and isinstance(getattr(trainer, "callbacks", None), list):
        return LightningCallback(watch, trainer)
    if hasattr(trainer, "accumulate") and hasattr(trainer, "backward"):
        return AcceleratedSteps(watch, trainer)
    raise ValueError(
        f"a watch cannot be attached to {type(trainer).__name__}, only to a Trainer of transformers or "
        "Lightning and to an Accelerator: use `with watch.step(step):` in the training loop"
    )
