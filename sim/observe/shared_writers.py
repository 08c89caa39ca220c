"""The gradients of writers over several processes: their parts from token means and the reduced gradient."""

# S samples of all passes and processes, T tokens, M features written, N features read, K random vectors

import functools
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor

from meanmode.sim.observe.process_sums import (
    OwnPart,
    counts_of_processes,
    mean_of_processes,
    own_part,
    rows_of_processes,
)
from meanmode.sim.observe.writer_gradients import WriterModes, joined_means, token_means
from meanmode.sim.trunk.precision import single

VECTORS = 16
"""Number of random bilinear forms by which the error of a gradient is estimated; to about 18 %."""


ROUNDED, CHANGED = 0.2, 0.02
"""Largest error of a gradient relative to its centered part. Rounding is random, so that .2 leaves an error
of 2 % in G_ctr; anything else may point along DW_c."""


DIGITS = 8.0
"""Errors up to this many times the resolution of the numbers that a gradient is made of are rounding."""


Place = tuple[int, int]
"""(block, writer)."""


class SharedWriterSum:
    """The gradient of a writer, summed over the passes of a step and averaged over processes (DDP, FSDP2).

    Of each pass only the token means are kept, S (M + N) numbers, and K random bilinear forms of its sum of
    products. The rest is taken from the gradient of the weight, which the processes have averaged themselves.
    """

    def __init__(self) -> None:
        self._means: list[tuple[Tensor, Tensor]] = []
        self._forms: Tensor | None = None
        self._resolution = 0.0
        self._own: OwnPart | None = None

    def add(
        self,
        y: Float[Tensor, "B T N"],
        delta: Float[Tensor, "B T M"],
        kept: Bool[Tensor, "B T 1"] | None = None,
    ) -> None:
        """Add the products of one pass.

        Args:
            y: inputs of the writer.
            delta: cotangents of its outputs.
            kept: tokens that count; the others must be zero in both. None keeps all.
        """
        self._means.append(token_means(y, delta, kept))
        self._resolution = max(self._resolution, resolution(y), resolution(delta))
        y, delta = single(y), single(delta)
        seen = [
            x.flatten(0, -2) @ _signs(x.shape[-1], side, x.dtype, x.device)
            for side, x in enumerate((y, delta))
        ]
        forms = (seen[0].double() * seen[1].double()).sum(0)
        self._forms = forms if self._forms is None else self._forms + forms

    def read(self, gradient: Any) -> None:
        """Keep this process's part of the averaged gradient of the weight, which later changes do not reach.

        Args:
            gradient: gradient [M, N], whole or sharded; None if the weight has none.
        """
        own = None if gradient is None else own_part(gradient.detach())
        self._own = None if own is None else own._replace(part=own.part.clone())

    def error_of(self, gradient: Float[Tensor, "M N"]) -> float:
        """Estimated size of the error of a gradient of this process, beside its passes; to about 18 %."""
        assert self._forms is not None
        read, written = (
            _signs(gradient.shape[1 - side], side, gradient.dtype, gradient.device) for side in (0, 1)
        )
        forms = (written * (gradient @ read)).double().sum(0)
        return float((forms - self._forms).square().mean().sqrt())

    def means(self) -> Float[Tensor, "S F"]:
        """Token means of all passes on this process: those of y, and T times those of delta."""
        return torch.cat(joined_means(self._means), -1)

    def contributions(self, means: Float[Tensor, "S F"], group: dist.ProcessGroup) -> Float[Tensor, " C"]:
        """What this process adds, in the mean over processes, to the numbers that `shared_modes` reads.

        Args:
            means: token means of all processes.
            group: the processes.
        """
        assert self._forms is not None
        read, written = means.double().split([x.shape[-1] for x in self._means[0]], -1)
        own = self._own or OwnPart(means.new_full((written.shape[1], read.shape[1]), torch.nan), 0, 0, 1)
        digits = max(self._resolution, resolution(own.part))
        count = dist.get_world_size(group)
        if own.shards == 1:  # every process takes some of the rows
            rows = -(-len(own.part) // count)
            start = min(dist.get_rank(group) * rows, len(own.part))
            own = OwnPart(own.part[start : start + rows], 0, start, count)
        here = slice(own.start, own.start + own.part.shape[own.axis])
        sides = [slice(None), here] if own.axis == 0 else [here, slice(None)]
        vectors = [_signs(x.shape[-1], side, x.dtype, x.device) for side, x in enumerate((read, written))]
        gradient = own.part.double()
        coherent = written[:, sides[1]].mT @ read[:, sides[0]] / count
        rest = gradient - coherent
        products = ((coherent, coherent), (rest, rest), (coherent, rest), (gradient, gradient))
        energies = torch.stack([(a * b).sum() for a, b in products])
        forms = (vectors[1][sides[1]] * (gradient @ vectors[0][sides[0]])).sum(0)
        return torch.cat(
            [own.shards * energies, energies.new_tensor([digits]), self._forms, own.shards * forms]
        )


def shared_modes(
    sums: Mapping[Place, SharedWriterSum], group: dist.ProcessGroup, device: torch.device
) -> tuple[dict[Place, WriterModes], list[Place]]:
    """The modes of all writers, from the token means of all processes; collective.

    |DW_mu| follows from the token means, DW_c is the averaged gradient minus DW_mu, of which each process
    forms its own rows only; the processes exchange S (M + N) numbers and a few sums, never a matrix.

    That difference is only as good as the digits of the gradient. Its error, estimated from random bilinear
    forms v^T grad u beside the sum of (delta v) (y u) over tokens, may be .2 of G_ctr where it is rounding,
    which leaves 2 % in G_ctr: with the rounding of single precision that is reached where G_mean / G_ctr is
    about 1e6, in bf16 where it is about 100. Otherwise it may be .02 of G_ctr. Beyond, as for a gradient
    that was changed, clipped, accumulated with that of another step or not computed, G_ctr and
    <DW_mu, DW_c> are NaN.

    Returns:
        The modes, and the writers whose G_ctr is not known.
    """
    places = sorted(sums)
    counts = counts_of_processes([len(sums[place].means()) for place in places], group, device)
    rows = []
    for place, *of in zip(places, *counts, strict=True):
        means = rows_of_processes(sums[place].means(), of, group)
        rows.append(sums[place].contributions(means, group))
    modes, unknown = {}, []
    for place, row in zip(places, mean_of_processes(torch.stack(rows), group).cpu(), strict=True):
        coherent, rest, inner, total, digits = row[:5]
        expected, forms = row[5:].chunk(2)
        error = (forms - expected).square().mean().sqrt()
        allowed = torch.maximum(CHANGED * rest.sqrt(), DIGITS * digits * total.sqrt())
        known = error <= torch.minimum(ROUNDED * rest.sqrt(), allowed)
        if not bool(known) and bool(torch.isfinite(expected).all()):
            unknown.append(place)
        blank = torch.where(known, 1.0, torch.nan)
        modes[place] = WriterModes(coherent.sqrt(), blank * rest.sqrt(), blank * inner)
    return modes, unknown


def resolution(x: Tensor) -> float:
    """Relative resolution of the numbers of which products with `x` are made."""
    coarse = x.is_cuda and x.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
    return 2.0**-10 if coarse else torch.finfo(x.dtype).eps


@functools.lru_cache(maxsize=16)
def _signs(features: int, side: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "F K"]:
    """Random signs, the same on every process: the mean square of v^T E u is |E|_F^2."""
    generator = torch.Generator().manual_seed(side)
    with torch.inference_mode(False):
        drawn = torch.randint(2, (features, VECTORS), generator=generator)
        return (2 * drawn - 1).to(device, dtype)
