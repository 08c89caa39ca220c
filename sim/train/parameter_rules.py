"""Rules that the optimisers of a single run and of an ensemble share: rate groups, decay, Muon, clipping."""

from typing import TypeVar

from torch import Tensor, nn

from meanmode.sim.trunk.parameter_groups import members_of
from meanmode.sim.trunk.stack import blocks_of

RATE_GROUPS = {"readers": "readers", "gains": "gates"}
"""Name of every group with its own learning rate -> name of its parameters in
`meanmode.sim.trunk.parameter_groups`."""


REST = "rest"
"""Name of the group of all other parameters."""


Norm = TypeVar("Norm", float, Tensor)


def rate_group_of(network: nn.Module) -> dict[int, str]:
    """Return the rate group of each parameter by `id`; parameters of `REST` are left out."""
    return {
        id(weight): name
        for name, group in RATE_GROUPS.items()
        for block in blocks_of(network)
        for weight in members_of(block, group)
    }


def is_matrix(weight: Tensor, *, stacked: bool = False) -> bool:
    """Whether a parameter is a matrix and thus decayed; gains and biases are vectors and are not.

    Stacked matrices are [R, M, N] (`meanmode.sim.trunk.ensemble.stack_members`).
    """
    return weight.ndim == (3 if stacked else 2)


def muon_matrices(network: nn.Module, *, stacked: bool = False) -> set[int]:
    """Return the `id`s of the parameters that Muon updates: the matrices of the blocks."""
    return {
        id(weight)
        for block in blocks_of(network)
        for weight in block.parameters()
        if is_matrix(weight, stacked=stacked)
    }


def clip_factor(norm: Norm, largest: float) -> Norm:
    """Factor that scales a gradient of this norm to the largest norm; above 1 if it is smaller already."""
    # 1e-6 as in torch.nn.utils.clip_grad_norm_
    return largest / (norm + 1e-6)
