"""The processes that train a model together (DDP, FSDP2), and what they agree on at each measured step."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from meanmode.sim.anatomy.untouched import sharded_modules
from meanmode.sim.observe.process_sums import is_sharded, least_of_processes
from meanmode.sim.observe.record import Record
from meanmode.sim.watch.watch_plan import WatchPlan

OPTIMIZED = "OptimizedModule"

WRAPPERS = (OPTIMIZED, "DistributedDataParallel")
"""Classes that wrap a model, of `torch.compile` and of DDP."""


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside the wrappers of `torch.compile` and `DistributedDataParallel`."""
    for name in ("_orig_mod", "module"):
        inner = getattr(model, name, None)
        if isinstance(inner, nn.Module) and type(model).__name__ in WRAPPERS:
            return unwrapped(inner)
    return model


class TrainingProcesses:
    """All processes of the training, as they are when this is made.

    Args:
        model: the model, unwrapped.

    Attributes:
        group: the processes; None for a single one.
        first: whether this one writes and reports.
        sharded: whether FSDP2 shards the weights.
        device: where they exchange numbers.

    Raises:
        ValueError: the model is cut in another way than FSDP2 does over all processes.
    """

    def __init__(self, model: nn.Module) -> None:
        running = dist.is_available() and dist.is_initialized()
        self.sharded = any(is_sharded(parameter) for parameter in model.parameters())
        several = running and (dist.get_world_size() > 1 or self.sharded)
        self.group = dist.group.WORLD if several else None
        self.first = not several or dist.get_rank() == 0
        self.device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
            raise ValueError("the model is sharded by FSDP1, whose weights cannot be told: use `fully_shard`")
        inside = {id(of) for module in sharded_modules(model) for of in module.parameters()}
        parameters: Iterable[tuple[str, Any]] = model.named_parameters() if self.sharded else ()
        for name, parameter in parameters:
            if not is_sharded(parameter):
                continue
            cuts = [placement for placement in parameter.placements if placement.is_shard()]
            if id(parameter) not in inside or len(cuts) > 1:
                raise ValueError(
                    f"{name} is cut by tensor parallelism: a watch measures data parallelism "
                    "(DDP, `fully_shard`)"
                )
            if parameter.device_mesh.size() != dist.get_world_size():
                raise ValueError(
                    f"{name} is sharded over {parameter.device_mesh.size()} of {dist.get_world_size()} "
                    "processes: a watch measures data parallelism over all of them"
                )

    def verdict(self, *, ok: bool, called: bool, plan: WatchPlan | None) -> str:
        """What is wrong with a step in any process: an error, other models, "not called" or nothing (empty).

        Collective, and so are the other methods.
        """
        if self.group is None:
            return "there is an error" if not ok else "" if called else "not called"
        own = plan.fingerprint if plan is not None and called else 0
        fine, all_called, least, most = least_of_processes(
            [int(ok), int(called), own, -own], self.group, self.device
        )
        if not fine:
            return "there is an error in another process"
        if not all_called:
            return "not called"
        if least != -most:
            return "processes hold different models, as in pipeline parallelism, or watch different things"
        return ""

    def common(self, marks: Sequence[bool]) -> list[bool]:
        """Which marks are set in every process."""
        if self.group is None or not marks:
            return list(marks)
        return [bool(mark) for mark in least_of_processes([int(of) for of in marks], self.group, self.device)]

    def keep_common_writers(self, plan: WatchPlan, record: Record, lost: dict[int, str]) -> None:
        """Give up the gradients of writers that some process cannot measure.

        Args:
            plan: what is measured.
            record: the record of the step.
            lost: number of a writer -> why its gradient is given up; added to.
        """
        known = [number not in plan.broken and number not in lost for number in plan.writers]
        summed = [of.place in record.writers for of in plan.writers.values()]
        agreed = self.common([*known, *summed])
        for number, mine, everywhere in zip(plan.writers, known, agreed[: len(known)], strict=True):
            if mine and not everywhere:
                lost[number] = "another process cannot measure it"
        places = (of.place for of in plan.writers.values())
        record.keep_writers({of for of, kept in zip(places, agreed[len(known) :], strict=True) if kept})
