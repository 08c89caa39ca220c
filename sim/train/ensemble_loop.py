"""The training loop of an ensemble: several runs of one network, trained as one batched network."""

# R runs, N steps

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
"""Data of a step for all runs, in any form that the loss accepts."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """Losses, rates and gradient norms per run and step; NaN before the first step and after a run ends.

    Attributes:
        losses: losses before each update [R, N].
        rates: learning rates of each update [R, N].
        gradient_norms: global gradient norms before clipping [R, N].
        steps: last update of each run [R]; 0 if it made none.
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
        optimiser: optimiser of the stacked members; in the end it holds only the runs that did not end early.
        loss: returns the losses [R] of the runs in a network on a batch.
        batches: returns the batch of a step (from 1) for the running runs, in this order; its tensors have an
            axis of runs. Each run should use `data_order` with its own seed. If a run ends at a step, the
            batch is requested again for the others.
        schedules: learning-rate schedules, one per run.
        steps: last step.
        first: first step.
        ended: returns which of the running runs end before the update, given the step, the runs and their
            losses. A run whose loss is not finite always ends.
        updated: called after each update with the step and the runs that made it.

    Returns:
        The record of steps 1 to `steps`.

    Raises:
        ValueError: the number of schedules is not that of the runs.
    """
    network, members = optimiser.network, len(optimiser.values)
    if len(schedules) != members:
        raise ValueError(f"{members} runs need {members} schedules, got {len(schedules)}")
    record = _empty(members, steps)
    running = list(range(members))
    for step in range(first, steps + 1):
        optimiser.zero_grad()
        found = loss(network, batches(step, running))
        record.losses[running, step - 1] = found.detach().double().cpu().numpy()
        gone = {run for run in running if not math.isfinite(record.losses[run, step - 1])}
        gone |= set(ended(step, running, found.detach())) if ended else set()
        if gone:
            kept = [position for position, run in enumerate(running) if run not in gone]
            running = [running[position] for position in kept]
            if not running:
                break
            del found
            optimiser.keep(kept)
            found = loss(network, batches(step, running))
        found.sum().backward()
        now = [schedules[run].rate(step) for run in running]
        optimiser.step(now)
        record.rates[running, step - 1] = now
        record.gradient_norms[running, step - 1] = optimiser.gradient_norms.double().cpu().numpy()
        record.steps[running] = step
        if updated is not None:
            updated(step, running)
    return record


def _empty(members: int, steps: int) -> Training:
    losses, rates, norms = (np.full((members, steps), np.nan) for _ in range(3))
    return Training(losses=losses, rates=rates, gradient_norms=norms, steps=np.zeros(members, np.int64))
