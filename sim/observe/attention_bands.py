"""Statistics of one attention matrix over many tokens, formed a band of rows at a time and never kept."""

# T tokens, D width, K vectors of a block, R rows of a band

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from meanmode.sim.trunk.linear import dot_products

BAND_ENTRIES = {"cpu": 2**20, "cuda": 2**27}
"""Entries of a matrix formed at a time."""


VECTORS = 32
"""Vectors that the iteration follows together: a pass over the matrix costs far more than its products."""


PASSES = 60
"""Most passes of the iteration; matrices at initialisation need about 3."""

Rows = Callable[[slice], Float[Tensor, "R T"]]
"""Forms some rows of a matrix, which the caller may overwrite."""


class BandedParts(NamedTuple):
    """Reductions of one matrix A: |P A|_F, |P A c(X)|_F, |P A P|_2 (NaN if not requested), column means."""

    apart: Tensor
    mixed: Tensor
    singular_value: Tensor
    column_means: Tensor


def banded_parts(
    rows_of: Rows, transposed: Float[Tensor, "D T"], *, singular_value: bool, tolerance: float | None = None
) -> BandedParts:
    """The reductions of one matrix, given c(X)^T, in O(T (D + K)) memory.

    One pass for the column means, one for the norms, and a few for the singular value: block Lanczos
    iteration on (P A P)^T (P A P), whose basis is kept orthogonal, until the residual of the leading
    eigenpair is below `tolerance` times its value. NaN for a matrix that is not finite.

    Args:
        rows_of: forms rows of A.
        transposed: c(X)^T.
        singular_value: whether to compute |P A P|_2.
        tolerance: relative residual; None uses the square root of the dtype's resolution.
    """
    tokens, device = transposed.shape[-1], transposed.device
    entries = BAND_ENTRIES.get(device.type, BAND_ENTRIES["cuda"])
    height = max(1, entries // tokens)
    bands = [slice(start, min(start + height, tokens)) for start in range(0, tokens, height)]
    total = torch.zeros(tokens, dtype=torch.float64, device=device)
    for band in bands:
        total += rows_of(band).sum(0, dtype=torch.float64)
    means = (total / tokens).to(transposed.dtype)
    apart, mixed = torch.zeros(2, dtype=torch.float64, device=device)
    for band in bands:
        part = rows_of(band).sub_(means)
        apart += torch.linalg.vector_norm(part, dtype=torch.float64).square()
        mixed += torch.linalg.vector_norm(dot_products(part, transposed), dtype=torch.float64).square()
    value = torch.full_like(apart, torch.nan)
    if singular_value and bool(torch.isfinite(apart)):
        resolution = torch.finfo(transposed.dtype).eps
        tolerance = resolution**0.5 if tolerance is None else tolerance
        start = torch.randn(tokens, VECTORS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        value = _leading(
            lambda block: _normal(rows_of, bands, means, block),
            start.to(device, transposed.dtype),
            tolerance,
            8 * resolution * float(apart),
        ).sqrt()
    apart, mixed, value = (part.to(transposed.dtype) for part in (apart.sqrt(), mixed.sqrt(), value))
    return BandedParts(apart, mixed, value, means)


def _centered_columns(block: Float[Tensor, "T K"]) -> Float[Tensor, "T K"]:
    return block - block.mean(0)


def _normal(
    rows_of: Rows, bands: list[slice], means: Float[Tensor, " T"], block: Float[Tensor, "T K"]
) -> Float[Tensor, "T K"]:
    """(P A P)^T (P A P) times a block, in one pass.

    The column means are subtracted from the entries, not from the products, which nearly cancel where all
    rows are nearly equal.
    """
    inner, image = _centered_columns(block), torch.zeros_like(block)
    for band in bands:
        rows = rows_of(band).sub_(means)
        image.addmm_(rows.mT, rows @ inner)
    return _centered_columns(image)


def _leading(
    normal: Callable[[Tensor], Tensor], start: Float[Tensor, "T K"], tolerance: float, floor: float
) -> Tensor:
    """Largest eigenvalue of a symmetric operator without negative ones, by block Lanczos iteration."""
    block = torch.linalg.qr(_centered_columns(start)).Q
    basis: list[Tensor] = []
    images: list[Tensor] = []
    value = start.new_zeros((), dtype=torch.float64)
    for _ in range(PASSES):
        basis.append(block)
        images.append(normal(block))
        known, seen = torch.cat(basis, 1), torch.cat(images, 1)
        core = (known.mT @ seen).double()
        values, vectors = torch.linalg.eigh(0.5 * (core + core.mT))
        value, ritz = values[-1].clamp_min(0.0), vectors[:, -1].to(start.dtype)
        residual = torch.linalg.vector_norm(seen @ ritz - value.to(start.dtype) * (known @ ritz))
        if float(residual) <= tolerance * float(value) + floor or known.shape[1] + VECTORS >= len(start):
            break
        block = images[-1]
        for _ in range(2):  # once loses digits to rounding
            block = torch.linalg.qr(block - known @ (known.mT @ block)).Q
    return value
