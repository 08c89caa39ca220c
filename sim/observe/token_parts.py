"""The basis of every observable: mean and centered part of a set of tokens, and token directions."""

# B batch (after a leading axis of runs in an ensemble), T tokens, D width

import contextlib
import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from meanmode.sim.trunk.precision import single

EPS = 1e-12
"""Keeps ratios finite if a centered part is zero; far below every norm of a normalised trunk."""


TRUSTED_SHARE = 0.1
"""Least share of the energy for which the spread may be a difference of sums; below, rounding would show."""


SAFE_NORMS = (1e-15, 1e15)
"""Between these bounds, squares and fourth powers of norms stay within the range of single precision."""


def need_pair(x: Float[Tensor, "*B T D"]) -> None:
    """Require at least two tokens, for observables that compare pairs.

    Raises:
        ValueError: fewer than two tokens.
    """
    if x.shape[-2] < 2:
        raise ValueError(f"a token pair is needed: tokens must be at least 2, got {x.shape[-2]}")


def centered(
    x: Float[Tensor, "*B T D"], kept: Bool[Tensor, "*B T 1"] | None = None
) -> Float[Tensor, "*B T D"]:
    """c(X) = P X: every token minus the token mean (arXiv:2605.06169 Eq. 3).

    The mean is subtracted twice, so that the centered part of nearly equal tokens stays accurate.

    Args:
        x: tokens.
        kept: tokens that count; the others must be zero, and stay so. None keeps all.
    """
    x = single(x)
    if kept is not None:
        count = kept.sum(-2, keepdim=True).clamp_min(1).to(x.dtype)
        first = (x - x.sum(-2, keepdim=True) / count) * kept
        return (first - first.sum(-2, keepdim=True) / count) * kept
    first = x - x.mean(-2, keepdim=True)
    return first - first.mean(-2, keepdim=True)


@contextlib.contextmanager
def measuring(device: torch.device) -> Iterator[None]:
    """Disable gradients, and autocast, which would compute the products of observables in half precision."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if torch.is_autocast_enabled(device.type):
            stack.enter_context(torch.autocast(device.type, enabled=False))
        yield


def norm(x: Float[Tensor, "*B T D"]) -> Float[Tensor, "*B"]:
    """|X|_F of every sample."""
    return torch.linalg.vector_norm(single(x), dim=(-2, -1))


class TokenParts(NamedTuple):
    """Mean and squared norm of the centered part of a set of tokens.

    Attributes:
        tokens: number of tokens, per sample or one number for all.
        mean: token mean [*B, D].
        spread: |c(X)|_F^2 [*B].
    """

    tokens: Tensor | int
    mean: Tensor
    spread: Tensor

    @property
    def mean_norm(self) -> Tensor:
        """|mu(X)|_F = sqrt(T) |token mean|."""
        return self.tokens**0.5 * torch.linalg.vector_norm(self.mean, dim=-1)

    @property
    def centered_norm(self) -> Tensor:
        """|c(X)|_F."""
        return self.spread.sqrt()

    @property
    def norm(self) -> Tensor:
        """|X|_F; the two parts are orthogonal."""
        return torch.hypot(self.mean_norm, self.centered_norm)

    def joined(self, other: "TokenParts") -> "TokenParts":
        """The parts of the union of both sets, without subtracting large numbers."""
        count = self.tokens + other.tokens
        share = other.tokens / count
        apart = other.mean - self.mean
        step = apart * (share[..., None] if isinstance(share, Tensor) else share)
        between = self.tokens * share * apart.square().sum(-1)
        return TokenParts(count, self.mean + step, self.spread + other.spread + between)


def deficit(unit: TokenParts) -> Tensor:
    """1 - TCS from the parts of unit tokens; NaN for fewer than two."""
    pairs = unit.tokens - 1
    if isinstance(pairs, int):
        return unit.spread / (pairs or math.nan)
    return torch.where(pairs > 0, unit.spread / pairs, torch.nan)


def cosine(unit: TokenParts) -> Tensor:
    """TCS from the parts of unit tokens; NaN for fewer than two."""
    return 1 - deficit(unit)


def token_parts(x: Float[Tensor, "*B T D"]) -> TokenParts:
    """Mean and centered part of every sample.

    The mean of the centered tokens, zero but for rounding, corrects both, so that nearly equal tokens keep a
    spread accurate to its own size.
    """
    x = single(x)
    mean = x.mean(-2, keepdim=True)
    apart = x - mean
    drift = apart.mean(-2)
    energy = torch.linalg.vector_norm(apart, dim=(-2, -1)).square()
    spread = (energy - x.shape[-2] * drift.square().sum(-1)).clamp_min(0.0)
    return TokenParts(x.shape[-2], mean[..., 0, :] + drift, spread)


def unit_parts(unit: Float[Tensor, "*B T D"], directed: Bool[Tensor, "*B T 1"] | None) -> TokenParts:
    """Mean and centered part of the unit tokens that have a direction; `directed` None means all do."""
    if directed is None:
        return token_parts(unit)
    count = directed.sum((-2, -1)).to(unit.dtype)  # dividing by integers would happen in single precision
    mean = unit.sum(-2, keepdim=True) / count[..., None, None]
    apart = (unit - mean) * directed
    drift = apart.sum(-2) / count[..., None]
    energy = torch.linalg.vector_norm(apart, dim=(-2, -1)).square()
    spread = (energy - count * drift.square().sum(-1)).clamp_min(0.0)
    return TokenParts(count, mean[..., 0, :] + drift, spread)


def directions(x: Float[Tensor, "*B T D"]) -> tuple[Float[Tensor, "*B T D"], Bool[Tensor, "*B T 1"] | None]:
    """Unit tokens, and a mask of the tokens that have a direction (None: all); zero tokens stay zero.

    If any norm could overflow or underflow, tokens are first divided by their largest entry.
    """
    x = single(x)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    if within(length):
        return x / length, None
    largest = x.abs().amax(-1, keepdim=True)
    directed = largest != 0  # true for NaN, which must not count as a zero token
    scaled = x / largest
    unit = torch.where(directed, scaled / torch.linalg.vector_norm(scaled, dim=-1, keepdim=True), 0.0)
    return unit, directed


@functools.lru_cache(maxsize=16)
def _membership(
    segments: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Float[Tensor, " S"], Float[Tensor, "S T"]]:
    """Token count of every segment, and a 0/1 matrix of its members."""
    with torch.inference_mode(False):
        counts = torch.tensor(segments, dtype=dtype, device=device)
        return counts, torch.block_diag(*(torch.ones(1, count) for count in segments)).to(counts)


def spread_out_parts(
    x: Float[Tensor, "*B T D"], segments: tuple[int, ...], *, plain: bool = True, unit: bool = True
) -> tuple[list[TokenParts], list[TokenParts]] | None:
    """Fast path: parts of the tokens of every segment, and of their unit tokens, in two passes over them.

    Uses |c(X)|^2 = |X|^2 - T |mean|^2. Returns None if that would cancel (tokens not well spread out) or the
    norm of a token is not safe.

    Args:
        x: tokens.
        segments: lengths, none of them zero.
        plain: whether to compute the parts of the tokens; if not, their list is empty.
        unit: whether to compute the parts of the unit tokens; if not, their list is empty.
    """
    x = single(x)
    length = torch.linalg.vector_norm(x, dim=-1)
    counts, members = _membership(segments, x.dtype, x.device)
    shares = (members / counts[:, None]).expand(*x.shape[:-2], *members.shape)
    rows = [*([shares] if plain else []), *([shares / length[..., None, :]] if unit else [])]
    means = ((torch.cat(rows, dim=-2) if plain and unit else rows[0]) @ x).split(len(segments), dim=-2)
    spreads, trusted = [], []
    if plain:
        energy = length.square() @ members.mT
        spreads.append(energy - counts * means[0].square().sum(-1))
        trusted.append((spreads[0] > TRUSTED_SHARE * energy).all())
    if unit:
        spreads.append(counts * (1 - means[-1].square().sum(-1)))
        trusted.append((spreads[-1] > TRUSTED_SHARE * counts).all())
    if not (bool(trusted[0] & trusted[-1]) and within(length)):
        return None
    found = iter(
        [TokenParts(n, mean[..., s, :], spread[..., s]) for s, n in enumerate(segments)]
        for mean, spread in zip(means, spreads, strict=True)
    )
    return next(found) if plain else [], next(found) if unit else []


def within(lengths: Tensor) -> bool:
    """Whether all norms lie within `SAFE_NORMS`; false if one is zero or NaN."""
    least, most = torch.aminmax(lengths)
    return bool((least > SAFE_NORMS[0]) & (most < SAFE_NORMS[1]))
