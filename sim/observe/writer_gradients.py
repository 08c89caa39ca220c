"""The observables of a residual writer's gradient (G1, A1-A5), exact over the whole batch."""

# B batch (after a leading axis R of runs in an ensemble), T tokens, M features written, N features read,
# S samples at a time

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from meanmode.sim.observe.token_parts import SAFE_NORMS, centered, directions, need_pair, within
from meanmode.sim.trunk.linear import dot_products, matrix_times
from meanmode.sim.trunk.precision import single

MATRIX_ENTRIES = {"cpu": 3 * 2**14, "cuda": 2**27}
"""Entries of a token-pair matrix formed at a time: few enough for a CPU's cache, enough to fill a GPU."""


BATCH_ENTRIES = {"cpu": 2**18, "cuda": 2**27}
"""Entries of several whole matrices formed at a time: more, since every call costs time."""


TRUSTED_SHARE = 0.01
"""Least share of the energies for which |DW_c|^2 may be their difference; below, rounding would show."""


LEAST_BAND = 64
"""Least number of rows of such a matrix formed at a time: thinner products are slow."""


SHORTEST = 1e-8
"""Fourth powers of tokens shorter than this, relative to the longest, would underflow."""


class WriterModes(NamedTuple):
    """The two parts of a writer's gradient over a batch (G1), each [] or one per run.

    Attributes:
        g_mean: |DW_mu|_F, the size of the mean-coherent part.
        g_ctr: |DW_c|_F, the size of the centered part.
        g_inner: <DW_mu, DW_c>, their inner product.
    """

    g_mean: Tensor
    g_ctr: Tensor
    g_inner: Tensor


class Coherence(NamedTuple):
    """How coherent the per-token gradients of a writer are, each [*B].

    Attributes:
        amplification: A, the squared gradient over its diagonal sum (A2).
        kappa: mean of cos(y) cos(delta) over token pairs (A4).
        kappa_abs: khat, the mean of |cos(y)||cos(delta)| (A5); NaN if it was not requested.
    """

    amplification: Tensor
    kappa: Tensor
    kappa_abs: Tensor


def _scale(x: Tensor) -> Tensor:
    """Largest magnitude per run, 1 where all vanish; dividing by it prevents underflow."""
    largest = x.abs().amax((-3, -2, -1))
    return torch.where(largest > 0, largest, 1.0)


def mean_coherent(y: Float[Tensor, "*R B T N"], delta: Float[Tensor, "*R B T M"]) -> Float[Tensor, "*R M N"]:
    """DW_mu = T sum_b dbar_b ybar_b^T, the mean-coherent part of a weight's gradient (G1, Eq. 13)."""
    return y.shape[-2] * (single(delta).mean(-2).mT @ single(y).mean(-2))


def centered_gradient(
    y: Float[Tensor, "*R B T N"],
    delta: Float[Tensor, "*R B T M"],
    kept: Bool[Tensor, "*R B T 1"] | None = None,
) -> Float[Tensor, "*R M N"]:
    """DW_c = sum_t,b c(delta)_t c(y)_t^T, computed from the centered parts (G1, Eq. 14).

    Args:
        y: inputs of the writer.
        delta: cotangents of its outputs.
        kept: tokens that count; the others must be zero in both. None keeps all.
    """
    return centered(delta, kept).flatten(-3, -2).mT @ centered(y, kept).flatten(-3, -2)


def writer_modes(y: Float[Tensor, "*R B T N"], delta: Float[Tensor, "*R B T M"]) -> WriterModes:
    """G_mean, G_ctr and <DW_mu, DW_c> of a writer gradient sum_t,b delta y^T over a batch (G1, Eq. 11-17).

    DW_mu = T sum_b dbar_b ybar_b^T, DW_c = grad - DW_mu, and |grad|^2 = G_mean^2 + 2 <DW_mu, DW_c> + G_ctr^2.
    G_mean^2 is the sum of the elementwise product of two B x B Gram matrices. DW_c is formed from the
    centered parts, as one M x N matrix, so nothing cancels when the gradient is nearly coherent.

    Args:
        y: inputs of the writer.
        delta: cotangents of its outputs.
    """
    y, delta = single(y), single(delta)
    y_scale, delta_scale = _scale(y), _scale(delta)
    y, delta = y / y_scale[..., None, None, None], delta / delta_scale[..., None, None, None]
    tokens, scale = y.shape[-2], y_scale * delta_scale
    y_mean, delta_mean = y.mean(-2), delta.mean(-2)
    part = centered_gradient(y, delta)
    inner = tokens * ((delta_mean @ part) * y_mean).sum((-2, -1))
    # in double precision, since samples can cancel
    y_mean, delta_mean = y_mean.double(), delta_mean.double()
    gram = (y_mean @ y_mean.mT) * (delta_mean @ delta_mean.mT)
    g_mean = (tokens * gram.sum((-2, -1)).clamp_min(0.0).sqrt()).to(y.dtype)
    g_ctr = torch.linalg.vector_norm(part, dim=(-2, -1))
    return WriterModes(scale * g_mean, scale * g_ctr, scale.square() * inner)


def modes_of_parts(coherent: Float[Tensor, "*R M N"], part: Float[Tensor, "*R M N"]) -> WriterModes:
    """The modes of a gradient from its parts DW_mu and DW_c."""
    g_mean, g_ctr = (torch.linalg.vector_norm(matrix, dim=(-2, -1)) for matrix in (coherent, part))
    return WriterModes(g_mean, g_ctr, (coherent * part).sum((-2, -1)))


def modes_from_gradient(
    gradient: Float[Tensor, "*R M N"], y: Float[Tensor, "*R B T N"], delta: Float[Tensor, "*R B T M"]
) -> WriterModes:
    """`writer_modes` from an existing gradient sum_t,b delta y^T, without forming DW_c.

    Uses |DW_c|^2 = |grad|^2 - 2 <grad, DW_mu> + |DW_mu|^2 unless that cancels; then, and in half precision,
    falls back to `writer_modes`.

    Args:
        gradient: gradient of the weight on this batch alone, not accumulated with others.
        y: inputs of the writer.
        delta: cotangents of its outputs.
    """
    if min(dtype.itemsize for dtype in (gradient.dtype, y.dtype, delta.dtype)) < 4:
        return writer_modes(y, delta)
    tokens, y_mean, delta_mean = y.shape[-2], y.mean(-2), delta.mean(-2)
    shared = tokens * ((delta_mean @ gradient).double() * y_mean.double()).sum((-2, -1))
    y_mean, delta_mean = y_mean.double(), delta_mean.double()
    coherent = tokens**2 * ((y_mean @ y_mean.mT) * (delta_mean @ delta_mean.mT)).sum((-2, -1))
    total = torch.linalg.vector_norm(gradient, dim=(-2, -1), dtype=torch.float64).square()
    rest = total - 2 * shared + coherent
    if not within(total) or not bool((rest > TRUSTED_SHARE * (total + coherent)).all()):
        return writer_modes(y, delta)
    modes = (coherent.clamp_min(0.0).sqrt(), rest.sqrt(), shared - coherent)
    return WriterModes(*(mode.to(gradient.dtype) for mode in modes))


def coherence(
    y: Float[Tensor, "*B T N"], delta: Float[Tensor, "*B T M"], *, absolute: bool = True
) -> Coherence:
    """A, kappa and khat of every sample from one pair of T x T Gram matrices (A2, A4, A5, Eq. 21-32).

    With unit tokens u, e, w_t = |d_t| |y_t| and M_ts = <u_t, u_s> <e_t, e_s>: A = w^T M w / |w|^2; kappa is
    the mean of M_ts and khat the mean of |M_ts| over s != t, without pairs that contain a zero token. A is
    NaN if the gradient of every token vanishes, kappa and khat if fewer than two tokens have a direction.

    M is symmetric: only its upper triangle is formed, a band of rows at a time.

    Args:
        y: inputs of the writer.
        delta: cotangents of its outputs.
        absolute: whether to compute khat; NaN otherwise.
    """
    lead, tokens = y.shape[:-2], y.shape[-2]
    read, written = (_measured(single(x).reshape(-1, tokens, x.shape[-1])) for x in (y, delta))
    weights, inverses = read.size * written.size, read.inverse * written.inverse
    weights = weights / weights.amax(-1, keepdim=True)  # short tokens can be paired with long cotangents
    unit = written.x * inverses[..., None]  # a product of the Gram matrices of this and of `read.x` is M
    entries, of_batch = (of.get(y.device.type, of["cuda"]) for of in (MATRIX_ENTRIES, BATCH_ENTRIES))
    at_once = of_batch // tokens**2 if tokens**2 <= entries else 1
    sums = [
        _pair_sums(
            *(part[start : start + at_once] for part in (read.x, unit, weights)),
            band=max(LEAST_BAND, -(-tokens // -(-(tokens**2) // entries))),
            absolute=absolute,
        )
        for start in range(0, len(weights), at_once)
    ]
    weighted, plain, magnitudes = (torch.cat(parts) for parts in zip(*sums, strict=True))
    own = weights.square().sum(-1)
    count = (inverses > 0).sum(-1)
    pairs = torch.where(count > 1, count * (count - 1), torch.nan)
    return Coherence(
        *(values.reshape(lead) for values in (1 + weighted / own, plain / pairs, magnitudes / pairs))
    )


class _Measured(NamedTuple):
    """Tokens and their lengths, in a form in which no square overflows or underflows.

    Attributes:
        x: the tokens, or unit tokens.
        size: true length of each token, up to a common factor.
        inverse: inverse length of each token in `x`, 0 for a token without a direction.
    """

    x: Tensor
    size: Tensor
    inverse: Tensor


def _measured(x: Float[Tensor, "B T D"]) -> _Measured:
    """Keep tokens if that is safe; use unit tokens if some are much shorter than the longest."""
    length = torch.linalg.vector_norm(x, dim=-1)
    least, most = (float(bound.detach()) for bound in torch.aminmax(length))
    if most * SHORTEST < least and SAFE_NORMS[0] < least and most < SAFE_NORMS[1]:
        return _Measured(x, length, 1 / length)
    unit, directed = directions(x)
    largest = x.abs().amax(-1, keepdim=True)  # per token, since squares of short ones would underflow
    apart = torch.where(largest > 0, x / largest, 0.0)
    size = largest[..., 0] / largest.amax((-2, -1))[..., None] * torch.linalg.vector_norm(apart, dim=-1)
    return _Measured(unit, size, torch.ones_like(size) if directed is None else directed[..., 0].to(x))


def _pair_sums(
    y: Float[Tensor, "S T N"],
    delta: Float[Tensor, "S T M"],
    weights: Float[Tensor, "S T"],
    *,
    band: int,
    absolute: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over s != t of w_t w_s M_ts, M_ts and |M_ts|, M the product of the Gram matrices."""
    found = []
    for start in range(0, y.shape[1], band):
        rows, rest = slice(start, start + band), slice(start, None)
        products = dot_products(y[:, rows], y[:, rest]).mul_(dot_products(delta[:, rows], delta[:, rest]))
        if band < y.shape[1]:
            products[..., :band].triu_(1)  # every pair once
        else:
            products.diagonal(dim1=-2, dim2=-1).zero_()
        weighted = (weights[:, rows] * matrix_times(products, weights[:, rest])).sum(-1)
        plain = products.sum((-2, -1))
        found.append((weighted, plain, products.abs().sum((-2, -1)) if absolute else plain * torch.nan))
    times = 2 if band < y.shape[1] else 1
    weighted, plain, magnitudes = (times * torch.stack(sums).sum(0) for sums in zip(*found, strict=True))
    return weighted, plain, magnitudes


def writer_amplification(y: Float[Tensor, "*B T N"], delta: Float[Tensor, "*B T M"]) -> Float[Tensor, "*B"]:
    """A = |grad_W|_F^2 / sum_t |delta_t|^2 |y_t|^2 of every sample, between 0 and T (A2-A3, Eq. 21-26).

    Exact, from the T x T Gram matrices. NaN if the gradient of every token vanishes.

    Args:
        y: inputs of the writer.
        delta: cotangents of its outputs.
    """
    return coherence(y, delta, absolute=False).amplification


def kappa(
    y: Float[Tensor, "*B T N"], delta: Float[Tensor, "*B T M"], absolute: bool = False
) -> Float[Tensor, "*B"]:
    """Mean over s != t of cos(y_t, y_s) cos(delta_t, delta_s) of every sample (A4, Eq. 27-30).

    Pairs with a zero token are left out; NaN if fewer than two tokens have a direction.

    Args:
        y: inputs of the writer.
        delta: cotangents of its outputs.
        absolute: return khat, the mean of |cos||cos|, instead (A5, Eq. 31-32).

    Raises:
        ValueError: fewer than two tokens.
    """
    need_pair(y)
    found = coherence(y, delta, absolute=absolute)
    return found.kappa_abs if absolute else found.kappa
