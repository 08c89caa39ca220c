"""Launches the kernels of the gate of SwiGLU."""

# N tokens, M hidden features

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from meanmode.sim.kernels import gate_kernels as kernels
from meanmode.sim.kernels.gate_operator import new_gated

TILE = 1024
"""Numbers of each half that a program holds."""


def forward(x: Tensor) -> Tensor:
    """The gated values [*N, M]."""
    x, y = x.contiguous(), new_gated(x)
    if y.numel():
        grid, sizes, constants = _sizes(y)
        with torch.cuda.device_of(x):
            kernels.gate_rows[grid](x, y, *sizes, **constants)
    return y


def backward(gradient: Tensor, x: Tensor) -> Tensor:
    """The gradient of x."""
    gradient, x = gradient.contiguous(), x.contiguous()
    of_x = torch.empty_like(x)
    if gradient.numel():
        grid, sizes, constants = _sizes(gradient)
        with torch.cuda.device_of(x):
            kernels.gate_backward_rows[grid](gradient, x, of_x, *sizes, **constants)
    return of_x


def _sizes(gated: Tensor) -> tuple[tuple[int, int], tuple[int, int], dict[str, Any]]:
    """Grid, sizes and constants of a kernel."""
    tokens, hidden = gated.shape[:-1].numel(), gated.shape[-1]
    columns = min(TILE, triton.next_power_of_2(hidden))
    rows = max(1, min(TILE // columns, triton.next_power_of_2(tokens)))
    grid = triton.cdiv(tokens, rows), triton.cdiv(hidden, columns)
    computed = tl.float64 if gated.dtype == torch.float64 else tl.float32
    return grid, (tokens, hidden), {"ROWS": rows, "COLUMNS": columns, "COMPUTED": computed}
