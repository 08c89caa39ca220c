"""Carry the training state of one network over to another that shares most of its parameters."""

# P parameters of a run

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from meanmode.sim.train.parameter_rules import is_matrix

MOMENTS = ("exp_avg", "exp_avg_sq")


@torch.no_grad()
def carried_over(state: Mapping[str, Tensor], before: nn.Module, after: nn.Module) -> dict[str, Tensor]:
    """Return the state of a run for another network: parameters with the same name and shape keep theirs.

    Other parameters of the new network keep their initial values, with moments of zero.

    Args:
        state: weights and moments of a run of `before`, from
            `meanmode.sim.train.ensemble_optimiser.EnsembleOptimiser.state`.
        before: stacked network that the state belongs to.
        after: stacked network with the parameters at which new ones begin, one run.
    """
    known = _places(before)
    whole = {"values": state["values"]}
    whole |= {
        name: torch.cat([state[f"{half}.{name}"] for half in ("matrices", "vectors")]) for name in MOMENTS
    }
    start = torch.cat([weight[0].flatten() for _, weight in _ordered(after)])
    found = {"values": start.clone(), **{name: torch.zeros_like(start) for name in MOMENTS}}
    for name, (begin, end, shape) in _places(after).items():
        if name in known and known[name][2] == shape:
            old = slice(*known[name][:2])
            for part, row in found.items():
                row[begin:end] = whole[part][old]
    cut = sum(weight[0].numel() for _, weight in _ordered(after) if is_matrix(weight, stacked=True))
    halves = {"matrices": slice(None, cut), "vectors": slice(cut, None)}
    moved = {"values": found["values"]}
    for half, entries in halves.items():
        moved |= {f"{half}.{name}": found[name][entries].clone() for name in MOMENTS}
        moved[f"{half}.step"] = state[f"{half}.step"].clone()
    return moved


def _ordered(network: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Names and trained parameters, matrices first, as an ensemble's optimiser holds them."""
    trained = [(name, weight) for name, weight in network.named_parameters() if weight.requires_grad]
    return sorted(trained, key=lambda entry: entry[1].ndim)


def _places(network: nn.Module) -> dict[str, tuple[int, int, torch.Size]]:
    """Name of a parameter -> its first entry, the one after its last, and its shape."""
    found, start = {}, 0
    for name, weight in _ordered(network):
        found[name] = (start, start + weight[0].numel(), weight.shape[1:])
        start += weight[0].numel()
    return found
