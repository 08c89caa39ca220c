"""Train several runs of one network as one batched network."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from meanmode.sim.train.ensemble_optimiser import EnsembleOptimiser
from meanmode.sim.train.schedule import Schedule

Batch = TypeVar("Batch")


@dataclass(frozen=True, kw_only=True)
class Training:
    """What an ensemble went through.

    Attributes:
        losses: [R, N], before each update; NaN after a run has ended.
        rates: [R, N], of each update; NaN after a run has ended.
        gradient_norms: [R, N], before clipping; NaN after a run has ended.
        steps: [R], the last update made; 0 for none.
    """

    losses: NDArray[np.float64]
    rates: NDArray[np.float64]
    gradient_norms: NDArray[np.float64]
    steps: NDArray[np.int64]


def train_ensemble(
    optimiser: EnsembleOptimiser,
    loss: Callable[[nn.Module, Batch], Tensor],
    batches: Callable[[int, Sequence[int]], Batch],
    schedules: Sequence[Schedule],
    *,
    steps: int,
    first: int = 1,
    ended: Callable[[int, Sequence[int], Tensor], Iterable[int]] | None = None,
    updated: Callable[[int, Sequence[int]], object] | None = None,
) -> Training:
    """Train all members of an ensemble at once.

    Args:
        optimiser: of stacked members (`meanmode.sim.trunk.ensemble.stack_members`); left with the runs that did not end.
        loss: losses [R] of the runs in the network on a batch.
        batches: the batch of a step, from 1, for the runs that go on, in this order; its tensors have an axis
            of runs. Samples of a run should be those of `data_order` with its own seed; a step at which a run
            ends is asked for again, for the others.
        schedules: of the learning rate, one a run.
        steps: the last step.
        first: the step it begins with.
        ended: given the step, the runs that go on and their losses, before the update: which of them end
            there. A run whose loss is not finite always ends.
        updated: told the step and the runs that made it, after the update.

    Returns:
        Steps 1 to `steps`, of which those before `first` are NaN.

    Raises:
        ValueError: not one schedule a run.
    """
    network, members = optimiser.network, len(optimiser.values)
    if len(schedules) != members:
        raise ValueError(f"{members} runs need as many schedules, got {len(schedules)}")
    losses, rates, norms = (np.full((members, steps), np.nan) for _ in range(3))
    made = np.zeros(members, np.int64)
    running = list(range(members))
    for step in range(first, steps + 1):
        optimiser.zero_grad()
        found = loss(network, batches(step, running))
        values = found.detach().double().cpu().numpy()
        losses[running, step - 1] = values
        gone = {run for run, value in zip(running, values, strict=True) if not math.isfinite(value)}
        gone |= set(ended(step, running, found.detach())) if ended else set()
        if gone:
            kept = [place for place, run in enumerate(running) if run not in gone]
            running = [running[place] for place in kept]
            if not running:
                break
            del found
            optimiser.keep(kept)
            found = loss(network, batches(step, running))
        found.sum().backward()
        now = [schedules[run].rate(step) for run in running]
        optimiser.step(now)
        rates[running, step - 1] = now
        norms[running, step - 1] = optimiser.gradient_norms.double().cpu().numpy()
        made[running] = step
        if updated is not None:
            updated(step, running)
    return Training(losses=losses, rates=rates, gradient_norms=norms, steps=made)
