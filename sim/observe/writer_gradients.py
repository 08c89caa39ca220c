"""The observables of a residual writer's gradient (G1, A1-A5), exact over the whole batch."""

# B batch (after a leading axis R of runs in an ensemble), T tokens, M features written, N features read,
# S samples at a time

from collections.abc import Sequence
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


class WriterSum:
    """The gradient of a writer and its parts DW_mu and DW_c (G1), summed over backward passes.

    |grad|^2 = G_mean^2 + 2 <DW_mu, DW_c> + G_ctr^2. DW_mu is never formed: it is kept as the token means that
    it is computed from, which are far fewer numbers, and G_mean^2 is the sum of the elementwise product of
    two Gram matrices of samples. DW_c is formed from the centered parts, so that nothing cancels when the
    gradient is nearly coherent; if nothing does, it is the weight's own gradient minus DW_mu.
    """

    def __init__(self) -> None:
        self._means: list[tuple[Tensor, Tensor]] = []
        self._centered: Tensor | None = None
        self._scale: Tensor | None = None
        # a single gradient from which DW_mu was not subtracted yet, and the modes that follow from it
        self._whole: tuple[Tensor, WriterModes] | None = None

    def add(
        self,
        y: Float[Tensor, "*R B T N"],
        delta: Float[Tensor, "*R B T M"],
        kept: Bool[Tensor, "*R B T 1"] | None = None,
    ) -> None:
        """Add the products of one pass.

        Args:
            y: inputs of the writer.
            delta: cotangents of its outputs.
            kept: tokens that count; the others must be zero in both. None keeps all.
        """
        part, scale = centered_gradient(y, delta, kept), None
        if not within(torch.linalg.vector_norm(part, dim=(-2, -1))):  # products could underflow or overflow
            y_scale, delta_scale = (_scale(x)[..., None, None, None] for x in (y, delta))
            part = centered_gradient(single(y) / y_scale, single(delta) / delta_scale, kept)
            scale = (y_scale.double() * delta_scale)[..., 0, 0, 0]
        self._add_part(part, scale)
        self._means.append(token_means(y, delta, kept))

    def add_gradient(self, gradient: Float[Tensor, "*R M N"], pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Add a gradient that a backward pass has computed, which is faster; where it cancels, as `add` does.

        Args:
            gradient: gradient of the weight in this backward pass alone, over all tokens.
            pairs: (y, delta) of all calls of the writer whose products the gradient is the sum of.
        """
        found = [token_means(y, delta) for y, delta in pairs]
        modes = _modes_of_whole(gradient, pairs, found)
        if modes is None:
            for pair in pairs:
                self.add(*pair)
            return
        if self._means:
            self._add_part(_without_mean(gradient, *joined_means(found)))
        else:
            self._whole = gradient.clone(), modes  # a later pass is added to the gradient in place
        self._means += found

    def _add_part(self, part: Float[Tensor, "*R M N"], scale: Tensor | None = None) -> None:
        if self._whole is not None:
            self._centered, self._whole = _without_mean(self._whole[0], *joined_means(self._means)), None
        if self._centered is None:
            self._centered, self._scale = part, scale
            return
        self._centered, self._scale = _unscaled(self._centered, self._scale), None
        self._centered.add_(_unscaled(part, scale))

    def modes(self) -> WriterModes:
        """The modes of the sum, in double precision."""
        if self._whole is not None:
            return self._whole[1]
        assert self._centered is not None
        # in double precision, since samples can cancel
        y, delta = (means.double() for means in joined_means(self._means))
        part, scale = self._centered, 1.0 if self._scale is None else self._scale
        largest = _largest(delta)
        seen = (delta / largest[..., None, None]).to(part.dtype) @ part
        inner = largest * (seen.double() * y).sum((-2, -1))
        size = torch.linalg.vector_norm(part, dim=(-2, -1), dtype=torch.float64)
        return WriterModes(_coherent_square(y, delta).clamp_min(0.0).sqrt(), scale * size, scale * inner)

    def total(self) -> Float[Tensor, "*R M N"]:
        """The gradient: both parts together, in single precision or better."""
        if self._whole is not None:
            return self._whole[0]
        assert self._centered is not None
        y, delta = (means.double() for means in joined_means(self._means))
        return (delta.mT @ y).to(self._centered.dtype) + _unscaled(self._centered, self._scale)


def token_means(
    y: Float[Tensor, "*R B T N"],
    delta: Float[Tensor, "*R B T M"],
    kept: Bool[Tensor, "*R B T 1"] | None = None,
) -> tuple[Float[Tensor, "*R B N"], Float[Tensor, "*R B M"]]:
    """ybar and T dbar of every sample, the sum of whose products is DW_mu (G1, Eq. 13).

    Args:
        y: inputs of the writer.
        delta: cotangents of its outputs.
        kept: tokens that count; the others must be zero in both. None keeps all.
    """
    y_mean, delta_mean = (single(x).mean(-2) for x in (y, delta))
    if kept is not None:
        y_mean = y_mean * (y.shape[-2] / kept.sum(-2).clamp_min(1).to(y_mean.dtype))
    return y_mean, y.shape[-2] * delta_mean


def joined_means(found: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Token means of several passes as those of one batch."""
    if len(found) == 1:
        return found[0]
    y, delta = (torch.cat(means, -2) for means in zip(*found, strict=True))
    return y, delta


def _largest(x: Tensor) -> Tensor:
    """Largest magnitude in the last two axes, 1 where all vanish; dividing by it prevents underflow."""
    largest = x.abs().amax((-2, -1))
    return torch.where(largest > 0, largest, 1.0)


def _scale(x: Float[Tensor, "*R B T F"]) -> Tensor:
    """Largest magnitude per run, 1 where all vanish."""
    return _largest(single(x).flatten(-3, -2))


def _unscaled(part: Float[Tensor, "*R M N"], scale: Tensor | None) -> Tensor:
    return part if scale is None else part * scale[..., None, None].to(part.dtype)


def _coherent_square(y: Tensor, delta: Tensor) -> Tensor:
    """|DW_mu|^2 from token means in double precision, by whichever product is smaller."""
    samples, read, written = y.shape[-2], y.shape[-1], delta.shape[-1]
    if samples * (read + written) > read * written:
        return (delta.mT @ y).square().sum((-2, -1))
    return ((y @ y.mT) * (delta @ delta.mT)).sum((-2, -1))


def _without_mean(gradient: Tensor, y: Tensor, delta: Tensor) -> Tensor:
    """DW_c = grad - DW_mu."""
    product = torch.addmm if gradient.ndim == 2 else torch.baddbmm
    return product(gradient, delta.to(gradient.dtype).mT, y.to(gradient.dtype), alpha=-1)


def modes_from_means(
    gradient: Float[Tensor, "*R M N"], y: Float[Tensor, "*R B N"], delta: Float[Tensor, "*R B M"]
) -> tuple[WriterModes, Bool[Tensor, "*R"]]:
    """Modes by |DW_c|^2 = |grad|^2 - 2 <grad, DW_mu> + |DW_mu|^2 from token means; whether it is exact."""
    shared = ((delta.to(gradient.dtype) @ gradient).double() * y.double()).sum((-2, -1))
    coherent = _coherent_square(y.double(), delta.double())
    total = torch.linalg.vector_norm(gradient, dim=(-2, -1), dtype=torch.float64).square()
    rest = total - 2 * shared + coherent
    safe = (total > SAFE_NORMS[0]) & (total < SAFE_NORMS[1])
    modes = WriterModes(coherent.clamp_min(0.0).sqrt(), rest.sqrt(), shared - coherent)
    return modes, safe & (rest > TRUSTED_SHARE * (total + coherent))


def _modes_of_whole(
    gradient: Tensor, pairs: Sequence[tuple[Tensor, Tensor]], means: Sequence[tuple[Tensor, Tensor]]
) -> WriterModes | None:
    """The same over all pairs; None if it cancels, in half precision."""
    if not whole_tells(gradient, pairs):
        return None
    modes, trusted = modes_from_means(gradient, *joined_means(means))
    return modes if bool(trusted.all()) else None


def whole_tells(gradient: Tensor, pairs: Sequence[tuple[Tensor, Tensor]]) -> bool:
    """Whether a gradient and the products it sums have the precision that `modes_from_means` needs."""
    return min(x.dtype.itemsize for x in (gradient, *(x for pair in pairs for x in pair))) >= 4


def modes_from_gradient(
    gradient: Float[Tensor, "*R M N"], pairs: Sequence[tuple[Tensor, Tensor]]
) -> WriterModes:
    """The modes of `WriterSum.add_gradient` for one backward pass, without a copy of the gradient."""
    modes = _modes_of_whole(gradient, pairs, [token_means(y, delta) for y, delta in pairs])
    if modes is None:
        summed = WriterSum()
        for pair in pairs:
            summed.add(*pair)
        modes = summed.modes()
    return modes


def writer_modes(y: Float[Tensor, "*R B T N"], delta: Float[Tensor, "*R B T M"]) -> WriterModes:
    """G_mean, G_ctr and <DW_mu, DW_c> of a writer gradient sum_t,b delta y^T over a batch (G1, Eq. 11-17).

    DW_mu = T sum_b dbar_b ybar_b^T, DW_c = grad - DW_mu, formed from the centered parts as `WriterSum` does.

    Args:
        y: inputs of the writer.
        delta: cotangents of its outputs.
    """
    summed = WriterSum()
    summed.add(y, delta)
    return WriterModes(*(mode.to(single(y).dtype) for mode in summed.modes()))


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
