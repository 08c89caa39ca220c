"""The observables of a residual writer's gradient (G1, A1-A5), exact over the whole batch and by algebra."""

# B batch, T tokens, M features written, N features read

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sim.tokens import centered, directions, need_pair, norm


def _scale(x: Tensor, dim: tuple[int, ...] = ()) -> Tensor:
    """Largest magnitude over `dim` (all where empty), 1 where all vanish; divide by it against underflow."""
    largest = x.abs().amax(dim, keepdim=bool(dim))
    return torch.where(largest > 0, largest, 1.0)


def writer_modes(
    y: Float[Tensor, "B T N"], delta: Float[Tensor, "B T M"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """G_mean, G_ctr and <DW_mu, DW_c> of a writer gradient sum_t,b delta y^T over a batch (G1, Eq. 11-17).

    DW_mu = T sum_b dbar_b ybar_b^T, DW_c = grad - DW_mu, and |grad|^2 = G_mean^2 + 2 <DW_mu, DW_c> + G_ctr^2.
    G_mean^2 is the sum over a product of two B x B Gram matrices. DW_c is formed from the centered parts
    themselves, as one M x N matrix: where the gradient is nearly coherent nothing large is subtracted.

    Args:
        y: inputs of the writer.
        delta: cotangents of its outputs.
    """
    y_scale, delta_scale = _scale(y), _scale(delta)
    y, delta = y / y_scale, delta / delta_scale
    tokens, scale = y.shape[1], y_scale * delta_scale
    y_mean, delta_mean = y.mean(1), delta.mean(1)
    gram = (y_mean @ y_mean.T) * (delta_mean @ delta_mean.T)
    centered_part = centered(delta).flatten(0, 1).T @ centered(y).flatten(0, 1)
    # rounding can leave the sum of samples that cancel below zero
    g_mean = tokens * gram.sum().clamp_min(0.0).sqrt()
    inner = tokens * ((delta_mean @ centered_part) * y_mean).sum()
    return scale * g_mean, scale * torch.linalg.vector_norm(centered_part), scale.square() * inner


def _gram(x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T T"]:
    return x @ x.transpose(-1, -2)


def _pair_mean(matrix: Float[Tensor, "B T T"], paired: Bool[Tensor, "B T 1"]) -> Float[Tensor, " B"]:
    """Mean over ordered pairs of distinct tokens that both have a direction; NaN where there is none."""
    count = paired.sum((-2, -1))
    off_diagonal = matrix.clone()
    off_diagonal.diagonal(dim1=-2, dim2=-1).zero_()
    pairs = count * (count - 1)
    return torch.where(pairs > 0, off_diagonal.sum((-2, -1)) / pairs, torch.nan)


def coherence(
    y: Float[Tensor, "B T N"], delta: Float[Tensor, "B T M"]
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"], Float[Tensor, " B"]]:
    """A, kappa and khat of every sample from one pair of T x T Gram matrices (A2, A4, A5, Eq. 21-32).

    With unit tokens u, e and w_t = |delta_t| |y_t|, M_ts = <u_t, u_s> <e_t, e_s>: A = w^T M w / |w|^2; kappa
    is the mean of M_ts and khat that of |M_ts| over s != t, pairs with a zero token left out. A is NaN where
    the gradient of every token vanishes, kappa and khat where fewer than two tokens have a direction.

    Raises:
        ValueError: fewer than two tokens.
    """
    need_pair(y)
    (y_unit, y_directed), (delta_unit, delta_directed) = directions(y), directions(delta)
    matrix = _gram(y_unit) * _gram(delta_unit)
    paired = y_directed & delta_directed
    return _rayleigh(matrix, y, delta), _pair_mean(matrix, paired), _pair_mean(matrix.abs(), paired)


def _rayleigh(
    matrix: Float[Tensor, "B T T"], y: Float[Tensor, "B T N"], delta: Float[Tensor, "B T M"]
) -> Float[Tensor, " B"]:
    """w^T M w / |w|^2 with w_t = |y_t| |delta_t|."""
    lengths = [torch.linalg.vector_norm(x / _scale(x, (-2, -1)), dim=-1, keepdim=True) for x in (y, delta)]
    weight = lengths[0] * lengths[1]
    weight = weight / weight.amax(-2, keepdim=True)
    return norm(weight).square().reciprocal() * (weight.transpose(-1, -2) @ matrix @ weight)[:, 0, 0]


def writer_amplification(y: Float[Tensor, "B T N"], delta: Float[Tensor, "B T M"]) -> Float[Tensor, " B"]:
    """A = |grad_W|_F^2 / sum_t |delta_t|^2 |y_t|^2 of every sample, between 0 and T (A2-A3, Eq. 21-26).

    Exact, from the T x T Gram matrices. NaN where the gradient of every token vanishes.

    Args:
        y: inputs of the writer.
        delta: cotangents of its outputs.
    """
    matrix = _gram(directions(y)[0]) * _gram(directions(delta)[0])
    return _rayleigh(matrix, y, delta)


def kappa(
    y: Float[Tensor, "B T N"], delta: Float[Tensor, "B T M"], absolute: bool = False
) -> Float[Tensor, " B"]:
    """Mean over s != t of cos(y_t, y_s) cos(delta_t, delta_s) of every sample (A4, Eq. 27-30).

    Pairs with a zero token are left out; NaN where fewer than two tokens have a direction.

    Args:
        y: inputs of the writer.
        delta: cotangents of its outputs.
        absolute: khat, the mean of |cos||cos|, instead (A5, Eq. 31-32).

    Raises:
        ValueError: fewer than two tokens.
    """
    return coherence(y, delta)[2 if absolute else 1]
