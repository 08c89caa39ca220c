"""The record of a whole optimiser step: several passes in several processes, measured as one batch."""

# R runs of an ensemble, B batch, T tokens, L blocks, W writers, M features written, N features read

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor, nn

from meanmode.sim.observe.observable_names import GRADIENT_MODES, GRADIENT_SIZES
from meanmode.sim.observe.record import Array, Record
from meanmode.sim.observe.writer_gradients import (
    WriterModes,
    centered_gradient,
    mean_coherent,
    modes_of_parts,
)
from meanmode.sim.trunk.precision import single


class WriterSum:
    """DW_mu and DW_c of a writer's gradient (G1), summed over passes.

    DW_c is held as a matrix, DW_mu as the token means it is computed from, which are far fewer numbers.
    """

    def __init__(self) -> None:
        self._centered: Tensor | None = None
        self._means: list[tuple[Tensor, Tensor]] = []

    def add(
        self,
        y: Float[Tensor, "*R B T N"],
        delta: Float[Tensor, "*R B T M"],
        kept: Bool[Tensor, "*R B T 1"] | None = None,
    ) -> None:
        """Add the gradient of one pass.

        Args:
            y: inputs of the writer.
            delta: cotangents of its outputs.
            kept: tokens that count; the others must be zero in both. None keeps all.
        """
        part = centered_gradient(y, delta, kept)
        self._centered = part if self._centered is None else self._centered.add_(part)
        y_mean, delta_mean = (single(x).mean(-2, keepdim=True) for x in (y, delta))
        share = 1.0 if kept is None else y.shape[-2] / kept.sum(-2, keepdim=True).clamp_min(1).to(part.dtype)
        self._means.append((y_mean * share, y.shape[-2] * delta_mean))

    def modes(self) -> WriterModes:
        """The modes of the sum over all passes, without forming DW_mu; not for an ensemble."""
        assert self._centered is not None
        # in double precision, since samples can cancel
        y, delta = (torch.cat(means)[:, 0].double() for means in zip(*self._means, strict=True))
        g_mean = ((y @ y.mT) * (delta @ delta.mT)).sum().clamp_min(0.0).sqrt()
        inner = ((delta.to(self._centered.dtype) @ self._centered).double() * y).sum()
        return WriterModes(g_mean, torch.linalg.vector_norm(self._centered, dtype=torch.float64), inner)

    def parts(self) -> Float[Tensor, "2 *R M N"]:
        """DW_mu and DW_c, summed over all passes."""
        assert self._centered is not None
        # each sample is a sequence of one token; double precision, since samples can cancel
        y, delta = (torch.cat(means, -3).double() for means in zip(*self._means, strict=True))
        return torch.stack([mean_coherent(y, delta).to(self._centered.dtype), self._centered])


class StepRecord(Record):
    """Values of a step whose gradient is summed over passes and averaged over processes (DDP, FSDP2).

    Values per sample are averaged over all samples of the step. The parts of a gradient are summed over
    passes and averaged over processes before their norms are taken. Processes communicate only in `values`,
    so as not to interfere with the collectives of a backward pass.

    Args:
        dims: observable -> dimensions, from `observable_dims`; other observables are ignored.
        depth: number of blocks.
        runs: members of an ensemble; None for a single run.
        blocks: numbers of the measured blocks.
        passes: forward and backward passes of the step, the same on every process.
        group: processes that share the batch; None for a single process.
        device: device on which values are exchanged if none was measured on another.
    """

    def __init__(
        self,
        dims: Mapping[str, tuple[str, ...]],
        depth: int,
        *,
        runs: int | None = None,
        blocks: Sequence[int],
        passes: int,
        group: dist.ProcessGroup | None,
        device: torch.device,
    ) -> None:
        super().__init__(dims, depth, runs=runs)
        self.blocks = tuple(blocks)
        self.passes = passes
        self.group = group
        self._device = device
        self._over = False
        self._passed = np.zeros(depth + 1, np.int64)
        self._times = {
            name: np.zeros(taken.shape[len(self.lead) :], np.int64) for name, taken in self._taken.items()
        }
        # the last axis holds the sum over samples and their number
        self._sums: dict[str, Tensor] = {}
        self._writers: dict[tuple[int, int], WriterSum] = {}

    def passed(self, block: int) -> None:
        """Count a forward pass.

        Raises:
            ValueError: the values of the step were already read.
        """
        if self._over:
            raise ValueError(
                "the values of this step were already read: measure the next one in its own `with` block"
            )
        self._passed[block] += 1

    def _put(self, name: str, place: tuple[int, ...], values: Tensor, counted: Tensor | None) -> None:
        self._device = values.device
        number: Tensor | int = values.shape[-1]
        if counted is not None:
            values, number = torch.where(counted, values, 0.0), counted.sum(-1)
        entry = self._sum(name, values.device)[self._at(place)]
        entry[..., 0].add_(values.sum(-1, dtype=torch.float64))
        entry[..., 1].add_(number)
        self._times[name][place] += 1

    def put_writer(self, place: tuple[int, int], y: Tensor, delta: Tensor) -> None:
        """Add the gradient of one pass to the writer at (block, writer), as `WriterSum.add`."""
        self._device = y.device
        self._writers.setdefault(place, WriterSum()).add(y, delta)
        for name in GRADIENT_MODES:
            if name in self.dims:
                self._times[name][place] += 1

    def put_gradient(self, name: str, block: int, weight: nn.Parameter) -> None:
        """Record the root mean square of a weight's current gradient, replacing an earlier value."""
        if self._over or weight.grad is None:
            return
        gradient, shards = _own_shard(weight.grad.detach())
        energy = torch.linalg.vector_norm(gradient, dim=(-2, -1), dtype=torch.float64).square()
        entry = self._sum(name, gradient.device)[self._at((block,))]
        # times the number of shards, so that the mean over processes is right for copies and shards alike
        entry[..., 0] = energy * shards / weight.shape[-2:].numel()
        entry[..., 1] = 1.0
        self._times[name][block] = self.passes

    def _sum(self, name: str, device: torch.device) -> Tensor:
        if name not in self._sums:
            shape = (*self._taken[name].shape, 2)
            self._sums[name] = torch.zeros(shape, dtype=torch.float64, device=device)
        return self._sums[name]

    def _at(self, place: tuple[int, ...]) -> tuple[Any, ...]:
        return (slice(None),) * len(self.lead) + place

    def values(self) -> dict[str, Array]:
        """Values of the whole step, as `Record.values`; the first call is collective over all processes.

        Raises:
            ValueError: on every process, if any of them has not made exactly `passes` passes.
        """
        if not self._over:
            self._average()
            for place in sorted(self._writers):
                coherent, centered = self._mean_of_processes(self._writers.pop(place).parts()).double()
                for name, mode in zip(GRADIENT_MODES, modes_of_parts(coherent, centered), strict=True):
                    if name in self.dims:
                        self._take(name, place, mode.cpu().numpy())
            self._over = True
        return super().values()

    def _average(self) -> None:
        """Average over the samples of all processes in one exchange, if all have made their passes."""
        error = self._miscount()
        names = [name for name in self.dims if name not in GRADIENT_MODES]
        sums = [self._sum(name, self._device).to(self._device).flatten() for name in names]
        counts = np.concatenate([[error is not None], *(times.ravel() for times in self._times.values())])
        pieces = [*sums, torch.as_tensor(counts, dtype=torch.float64, device=self._device)]
        averaged = self._mean_of_processes(torch.cat(pieces)).cpu()
        *means, counted = averaged.split([len(piece) for piece in pieces])
        if counted[0] > 0 or not ((counted[1:] == 0) | (counted[1:] == self.passes)).all():
            raise ValueError(error or f"another process has not made the {self.passes} passes of this step")
        for name, mean in zip(names, means, strict=True):
            total, number = mean.view(*self._taken[name].shape, 2).unbind(-1)
            value = total / number
            self._taken[name][...] = value.sqrt() if name in GRADIENT_SIZES else value
        self._sums.clear()

    def _miscount(self) -> str | None:
        """Describe what is wrong with the passes of this process; None if nothing is."""
        announced, advice = f"{self.passes} passes of this step", "read the values after the last pass"
        for block in self.blocks:
            if self._passed[block] != self.passes:
                return f"block {block} has made {self._passed[block]} of the {announced}: {advice}"
        for name, times in self._times.items():
            for place in np.argwhere((times != 0) & (times != self.passes)).tolist():
                found = f"{name} of block {place[0]} was measured in {times[tuple(place)]} of the {announced}"
                return f"{found}: {advice}, backward included"
        return None

    def _mean_of_processes(self, x: Tensor) -> Tensor:
        if self.group is None:
            return x
        dist.all_reduce(x, group=self.group)
        return x / dist.get_world_size(self.group)


def _own_shard(gradient: Any) -> tuple[Tensor, int]:
    """This process's part of a gradient, and the number of shards it is split into; 1 if it is whole."""
    mesh = getattr(gradient, "device_mesh", None)
    if mesh is None:
        return gradient, 1
    cut = [mesh.size(axis) for axis, placement in enumerate(gradient.placements) if placement.is_shard()]
    return gradient.to_local(), prod(cut)
