"""What a watch can be attached to, recognised by what it answers to, and what a model may be wrapped in."""

from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import nn

from meanmode.sim.watch.accelerated_steps import AcceleratedSteps
from meanmode.sim.watch.lightning_callback import LightningCallback
from meanmode.sim.watch.trainer_callback import TrainerCallback

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


def need_one_process() -> None:
    """Refuse training over several processes.

    Raises:
        ValueError: a process group of several is there.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise ValueError(
            f"a watch measures one process, this training has {dist.get_world_size()}: "
            "watch a run of one process, without DDP or FSDP"
        )


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside the wrappers of `torch.compile` and `DistributedDataParallel`."""
    for name in ("_orig_mod", "module"):
        inner = getattr(model, name, None)
        if isinstance(inner, nn.Module) and type(model).__name__ in (
            "OptimizedModule",
            "DistributedDataParallel",
        ):
            return unwrapped(inner)
    return model
