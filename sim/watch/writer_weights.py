"""Sizes of the writers' weights, and of their change by an update."""

import math

import torch
from torch import Tensor

from meanmode.sim.observe.measurement import Measurement
from meanmode.sim.observe.process_sums import mean_square
from meanmode.sim.watch.watch_plan import WatchPlan


def recorded_weights(measurement: Measurement, plan: WatchPlan) -> dict[int, Tensor]:
    """Record the sizes of the weights; returns copies of those that learn if their change is to be measured.

    Args:
        measurement: records the sizes.
        plan: what is measured.
    """
    for of in plan.writers.values():
        if plan.wants("weight_rms"):
            measurement.root_mean_square("weight_rms", of.place, of.weight)
    if not plan.wants("update_rms"):
        return {}
    return {
        number: of.weight.detach().clone() for number, of in plan.writers.items() if of.weight.requires_grad
    }


def mean_square_updates(plan: WatchPlan, held: dict[int, Tensor]) -> Tensor:
    """Mean square of the change of every writer's weight [writers]; NaN where it does not learn.

    Args:
        plan: what is measured.
        held: number of a writer -> its weight before the update.
    """
    device = next(iter(held.values())).device
    missing = torch.tensor(math.nan, dtype=torch.float64, device=device)
    with torch.no_grad():
        found = [
            mean_square(of.weight - held[number]) if number in held else missing
            for number, of in plan.writers.items()
        ]
    return torch.stack([value.to(device) for value in found])
