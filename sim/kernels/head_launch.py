"""Launches the kernels of rotary positions with QK-Norm."""

# N samples, T tokens, H heads, F features per head

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from meanmode.sim.kernels import head_kernels as kernels
from meanmode.sim.kernels.head_operator import new_heads

TILE = 1024
"""Numbers of each half of a head that a program holds, at least one token's."""


def forward(x: Tensor, cos: Tensor | None, sin: Tensor | None, heads: int, eps: float) -> Tensor:
    """The normed heads [*B, H, T, F]."""
    x, y = x.contiguous(), new_heads(x, heads)
    if x.numel():
        grid, sizes, constants = _sizes(x, cos, heads, eps)
        with torch.cuda.device_of(x):
            kernels.head_rows[grid](x, y, *_angles(x, cos, sin), *sizes, **constants)
    return y


def backward(
    gradient: Tensor, x: Tensor, cos: Tensor | None, sin: Tensor | None, heads: int, eps: float
) -> Tensor:
    """The gradient of x."""
    x = x.contiguous()
    of_x = torch.empty_like(x)
    if x.numel():
        # attention hands back gradients in layouts of its own; samples may need a copy to lie evenly
        given = gradient.reshape(-1, *gradient.shape[-3:])
        given = given if given.stride(-1) == 1 else given.contiguous()
        grid, sizes, constants = _sizes(x, cos, heads, eps)
        with torch.cuda.device_of(x):
            kernels.head_backward_rows[grid](
                given, x, of_x, *_angles(x, cos, sin), *sizes, *given.stride()[:3], **constants
            )
    return of_x


def _angles(x: Tensor, cos: Tensor | None, sin: Tensor | None) -> tuple[Tensor, Tensor]:
    """Cosine and sine; without, any pointer, which is not read."""
    return (x, x) if cos is None or sin is None else (cos.contiguous(), sin.contiguous())


def _sizes(
    x: Tensor, cos: Tensor | None, heads: int, eps: float
) -> tuple[tuple[int, int], tuple[int, ...], dict[str, Any]]:
    """Grid, sizes and constants of a kernel."""
    tokens, features = x.shape[-2], x.shape[-1] // heads
    pairs = (features + 1) // 2
    block = triton.next_power_of_2(pairs)
    rows = max(1, min(TILE // block, triton.next_power_of_2(tokens)))
    blocks = triton.cdiv(tokens, rows)
    constants = {
        "EPS": eps,
        "ROTATED": cos is not None,
        "ROWS": rows,
        "PAIRS": block,
        "COMPUTED": tl.float64 if x.dtype == torch.float64 else tl.float32,
    }
    samples = x.shape[:-2].numel()
    return (samples * blocks, heads), (tokens, heads, features, pairs, blocks), constants
