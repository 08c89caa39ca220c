"""Exchange between the processes that share a batch: sums, and each process's part of a gradient."""

# M features written, N features read

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


def mean_of_processes(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Mean over processes; overwrites `x`."""
    if group is None:
        return x
    dist.all_reduce(x, group=group)
    return x / dist.get_world_size(group)


def largest_of_processes(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Largest value over processes; overwrites `x`."""
    if group is not None:
        dist.all_reduce(x, op=dist.ReduceOp.MAX, group=group)
    return x


def least_of_processes(own: list[int], group: dist.ProcessGroup, device: torch.device) -> list[int]:
    """The least of every number over processes."""
    found = torch.tensor(own, dtype=torch.long, device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MIN, group=group)
    least: list[int] = found.tolist()
    return least


def counts_of_processes(own: list[int], group: dist.ProcessGroup, device: torch.device) -> list[list[int]]:
    """Counts of every process, in the order of their ranks."""
    found = [
        torch.empty(len(own), dtype=torch.long, device=device) for _ in range(dist.get_world_size(group))
    ]
    dist.all_gather(found, torch.tensor(own, device=device), group=group)
    every: list[list[int]] = torch.stack(found).tolist()
    return every


def rows_of_processes(own: Tensor, counts: list[int], group: dist.ProcessGroup) -> Tensor:
    """The rows [S, F] of all processes, one after another.

    Args:
        own: rows of this process.
        counts: number of rows of each process.
        group: processes.
    """
    parts = [own.new_empty(max(counts), own.shape[1]) for _ in counts]
    dist.all_gather(parts, torch.cat([own, own.new_zeros(max(counts) - len(own), own.shape[1])]), group=group)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


class OwnPart(NamedTuple):
    """A process's part of a gradient.

    Attributes:
        part: its values.
        axis: axis along which the gradient is cut; 0 if it is whole.
        start: first row or column of the part.
        shards: number of different parts that make up the gradient; 1 if it is whole.
    """

    part: Tensor
    axis: int
    start: int
    shards: int


def is_sharded(x: Any) -> bool:
    """Whether a tensor is a `DTensor`, of which this process holds a part."""
    return hasattr(x, "device_mesh")


def own_part(gradient: Any) -> OwnPart | None:
    """This process's part of a gradient, whole or sharded by FSDP2; None if it is cut along several axes."""
    mesh = getattr(gradient, "device_mesh", None)
    if mesh is None:
        return OwnPart(gradient, 0, 0, 1)
    cuts = [
        (number, placement) for number, placement in enumerate(gradient.placements) if placement.is_shard()
    ]
    if len(cuts) > 1:
        return None
    if not cuts:
        return OwnPart(gradient.to_local(), 0, 0, 1)
    number, placement = cuts[0]
    shards, axis = mesh.size(number), placement.dim
    start = min(mesh.get_local_rank(number) * -(-gradient.shape[axis] // shards), gradient.shape[axis])
    return OwnPart(gradient.to_local(), axis, start, shards)


def mean_square(x: Any, *, runs: int = 0) -> Tensor:
    """Mean square of a weight or gradient, whose mean over processes is that of the whole.

    A part of a sharded tensor counts as many times as there are parts.

    Args:
        x: tensor, whole or sharded.
        runs: number of leading axes that are kept.
    """
    mesh = getattr(x, "device_mesh", None)
    local, shards = x, 1
    if mesh is not None:
        local = x.to_local()
        shards = prod(mesh.size(number) for number, of in enumerate(x.placements) if of.is_shard())
    energy = torch.linalg.vector_norm(local.flatten(runs), dim=-1, dtype=torch.float64).square()
    return energy * shards / max(x.shape[runs:].numel(), 1)


def mean_square_of_rows(x: Any, rows: Sequence[tuple[int, int]]) -> Tensor:
    """The same for some rows of a matrix; NaN if it is cut along several axes.

    Args:
        x: matrix, whole or sharded.
        rows: first row, and the one after the last, of each piece.
    """
    own = own_part(x)
    if own is None:
        return torch.tensor(torch.nan, dtype=torch.float64, device=x.device)
    first = own.start if own.axis == 0 else 0
    pieces = [own.part[max(start - first, 0) : max(stop - first, 0)] for start, stop in rows]
    energy = torch.stack([torch.linalg.vector_norm(piece, dtype=torch.float64).square() for piece in pieces])
    count = sum(stop - start for start, stop in rows) * x.shape[1:].numel()
    return energy.sum() * own.shards / max(count, 1)
