"""Launches the kernels of a merge with its RMSNorm: sizes of blocks, cuts into chunks, memory in between."""

# N samples, R runs, T tokens, S segments, C chunks of tokens, D width

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from meanmode.sim.kernels import merge_kernels as kernels
from meanmode.sim.kernels.choice import computed_type
from meanmode.sim.kernels.merge_operator import new_gradients, new_means

TILE = 2048
"""Numbers of each tensor that a program holds, at least one token's."""

SUMMED = 64
"""Tokens that a program of the means sums at once, and its features."""

PROGRAMS = 256
"""Programs that a backward pass should have, if there are tokens enough; each sums over its own tokens."""

STEP = 32
"""Chunks that are summed at once."""

LONGEST = 64
"""Largest number of tokens that a program of a backward pass sums over."""

Gains = tuple[Tensor | None, Tensor | None, Tensor | None]
"""skip, write, alpha."""


def forward(
    trunk: Tensor, branch: Tensor, gains: Gains, segments: Sequence[int], eps: float
) -> tuple[Tensor, Tensor]:
    """The merged trunk and the means, as `meanmode.sim.kernels.merge_operator` describes them."""
    trunk, branch = trunk.contiguous(), branch.contiguous()
    alpha = gains[2]
    means = new_means(trunk, branch, alpha, segments)
    merged = torch.empty_like(trunk)
    if not trunk.numel():
        return merged, means
    shape = _Shape(trunk, branch, gains, segments)
    with torch.cuda.device_of(trunk):
        if alpha is not None:
            _take_means(shape, trunk, branch, means)
        cut = shape.cut(shape.rows)
        kernels.merge_rows[(shape.samples * cut.chunks,)](
            *(trunk, branch, merged, *shape.gains, means, shape.width, shape.per_run, *cut),
            EPS=eps,
            **shape.constants,
            num_warps=shape.warps,
        )
    return merged, means


def backward(
    gradient: Tensor,
    trunk: Tensor,
    branch: Tensor,
    gains: Gains,
    means: Tensor,
    segments: Sequence[int],
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of trunk, branch and gains, as `meanmode.sim.kernels.merge_operator` describes them."""
    gradient, trunk, branch = gradient.contiguous(), trunk.contiguous(), branch.contiguous()
    of_trunk, of_branch, of_gains = new_gradients(trunk, branch, gains)
    if not trunk.numel():
        return of_trunk, of_branch, of_gains.zero_()
    alpha = gains[2]
    shape = _Shape(trunk, branch, gains, segments)
    size = shape.summed_rows()
    cut, parts = shape.cut(size), 2 if alpha is not None else 1
    held = shape.samples * cut.chunks * parts if of_gains.numel() else 0
    partial = trunk.new_empty(held * shape.width, dtype=shape.computed)
    with torch.cuda.device_of(trunk):
        kernels.backward_rows[(shape.samples * cut.chunks,)](
            *(gradient, trunk, branch, of_trunk, of_branch, *shape.gains, means, partial),
            *(shape.width, shape.per_run, size, *cut),
            EPS=eps,
            TWO=alpha is None and of_branch.numel() > 0,
            **shape.constants,
            num_warps=shape.warps,
        )
        if alpha is not None:
            partial = _through_means(shape, partial, means, of_trunk, of_branch, cut)
    if of_gains.numel():
        learned, runs, width = of_gains.shape
        torch.sum(partial.view(parts, runs, -1, width)[:learned], 2, out=of_gains)
    return of_trunk, of_branch, of_gains


class Cut(NamedTuple):
    """How the tokens of a sample are cut into chunks, none of which lies in two segments.

    Attributes:
        chunks: their number.
        head: number of those in the first segment.
        first: tokens of the first segment.
        tokens: tokens of all segments.
        segments: number of segments.
    """

    chunks: int
    head: int
    first: int
    tokens: int
    segments: int


class _Shape:
    """Sizes of a merge, and the constants that its kernels are compiled for."""

    def __init__(self, trunk: Tensor, branch: Tensor, gains: Gains, segments: Sequence[int]) -> None:
        self.tokens, self.width = trunk.shape[-2:]
        self.samples = trunk.shape[:-2].numel()
        # without means, all tokens are alike
        self.segments = tuple(segments) if gains[2] is not None else (self.tokens,)
        self.many = len(self.segments)
        runs = max((gain.numel() // gain.shape[-1] for gain in gains if gain is not None), default=1)
        self.per_run = self.samples // runs
        self.computed = computed_type(trunk, branch)
        block = triton.next_power_of_2(self.width)
        self.rows = max(1, min(TILE // block, triton.next_power_of_2(max(self.segments))))
        self.warps = max(1, min(16, self.rows * block // 512))
        # a gain that is missing is not read: any pointer will do
        self.gains = [trunk if gain is None else gain.contiguous() for gain in gains]
        self.constants: dict[str, Any] = {"ROWS": self.rows, "BLOCK": block, "COMPUTED": _type(self.computed)}
        for name, gain in zip(("SKIP", "WRITE", "ALPHA"), gains, strict=True):
            numbers = kernels.ONE if gain is None or gain.shape[-1] == 1 else kernels.PER_FEATURE
            self.constants[name] = kernels.ABSENT.value if gain is None else numbers.value

    def cut(self, size: int) -> Cut:
        """Chunks of at most `size` tokens."""
        chunks = [triton.cdiv(length, size) for length in self.segments]
        return Cut(sum(chunks), chunks[0], self.segments[0], self.tokens, self.many)

    def summed_rows(self) -> int:
        """Tokens that a program of the backward pass sums over: few enough that there are `PROGRAMS`."""
        found = self.rows
        while found < LONGEST and self.samples * self.tokens >= 2 * found * PROGRAMS:
            found *= 2
        return found


def _type(dtype: torch.dtype) -> Any:
    return tl.float64 if dtype == torch.float64 else tl.float32


def _take_means(shape: _Shape, trunk: Tensor, branch: Tensor, means: Tensor) -> None:
    """Fill the means of all segments."""
    cut, columns = shape.cut(SUMMED), min(SUMMED, triton.next_power_of_2(shape.width))
    across = triton.cdiv(shape.width, columns)
    partial = means.new_empty(shape.samples, cut.chunks, 2, shape.width)
    constants = {"COLUMNS": columns, "COMPUTED": _type(shape.computed)}
    kernels.chunk_sums[(shape.samples * cut.chunks, across)](
        *(trunk, branch, partial, shape.width, *cut[:4]), ROWS=SUMMED, **constants
    )
    kernels.segment_means[(shape.samples * shape.many, across)](
        *(partial, means, shape.width, *cut), STEP=STEP, **constants
    )


def _through_means(
    shape: _Shape,
    partial: Tensor,
    means: Tensor,
    of_trunk: Tensor,
    of_branch: Tensor,
    summed: Cut,
) -> Tensor:
    """Turn Delta into the gradients of trunk and branch; return the terms of the gains' [2, N, S, D]."""
    columns = min(SUMMED, triton.next_power_of_2(shape.width))
    mean_delta = means.new_empty(shape.samples, shape.many, shape.width)
    terms = means.new_empty(2, shape.samples, shape.many, shape.width)
    kernels.segment_gradients[(shape.samples * shape.many, triton.cdiv(shape.width, columns))](
        *(partial, means, mean_delta, terms, shape.width, shape.samples, *summed),
        STEP=STEP,
        COLUMNS=columns,
        COMPUTED=_type(shape.computed),
    )
    constants = {name: of for name, of in shape.constants.items() if name != "SKIP"}
    cut = shape.cut(shape.rows)
    kernels.spread_means[(shape.samples * cut.chunks,)](
        *(of_trunk, of_branch, *shape.gains[1:], mean_delta, shape.width, shape.per_run, *cut),
        **constants,
        num_warps=shape.warps,
    )
    return terms
