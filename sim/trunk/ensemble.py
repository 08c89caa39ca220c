"""Ensembles: networks of equal shape stacked into one, each weight with a leading axis of runs."""

# R runs (members), M features written, N features read, D width

import copy
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def stack_members(members: Sequence[Network]) -> Network:
    """Stack networks into one that computes all members at once; input and output gain an axis of runs.

    Matrices become [R, M, N] (`meanmode.sim.trunk.linear`), vectors [R, 1, 1, D], so that they broadcast over
    [R, B, T, D].

    Raises:
        ValueError: no members, members whose parameters differ in name or shape, or a parameter shared under
            two names.
    """
    if not members:
        raise ValueError("an ensemble needs at least one member")
    tensors = [_tensors(member) for member in members]
    shapes = [{name: tuple(tensor.shape) for name, tensor in of.items()} for of in tensors]
    for number, shape in enumerate(shapes):
        if shape != shapes[0]:
            differing = sorted(name for name in shape | shapes[0] if shape.get(name) != shapes[0].get(name))
            raise ValueError(f"member {number} differs from member 0 in shape: {', '.join(differing)}")
    ensemble = copy.deepcopy(members[0])
    for name in tensors[0]:
        _assign(ensemble, name, torch.stack([_broadcast_over_tokens(of[name].detach()) for of in tensors]))
    return ensemble


def unstack_member(ensemble: Network, run: int) -> Network:
    """Copy one member out of an ensemble.

    Raises:
        ValueError: there is no such member, or the network is not an ensemble.
    """
    tensors = _tensors(ensemble)
    runs = {len(tensor) if tensor.ndim in (3, 4) else 0 for tensor in tensors.values()}
    if len(runs) != 1 or 0 in runs:
        raise ValueError("this network is not an ensemble: its weights have no axis of runs")
    count = runs.pop()
    if not 0 <= run < count:
        raise ValueError(f"the ensemble has members 0 to {count - 1}, got {run}")
    member = copy.deepcopy(ensemble)
    for name, tensor in tensors.items():
        own = tensor[run].detach().clone()
        _assign(member, name, own[0, 0] if tensor.ndim == 4 else own)
    return member


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    named = [
        *network.named_parameters(remove_duplicate=False),
        *network.named_buffers(remove_duplicate=False),
    ]
    first: dict[int, str] = {}
    for name, tensor in named:
        if first.setdefault(id(tensor), name) != name:
            raise ValueError(
                f"{first[id(tensor)]} and {name} are one tensor: an ensemble cannot stack shared parameters"
            )
    return dict(named)


def _broadcast_over_tokens(tensor: Tensor) -> Tensor:
    """Reshape a vector to [1, 1, D], so that once stacked it broadcasts over batch and tokens."""
    return tensor[None, None] if tensor.ndim == 1 else tensor


def _assign(network: nn.Module, name: str, value: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = network.get_submodule(path)
    old = getattr(owner, leaf)
    if isinstance(old, nn.Parameter):
        setattr(owner, leaf, nn.Parameter(value, requires_grad=old.requires_grad))
    else:
        setattr(owner, leaf, value)
