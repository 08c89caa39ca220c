"""What every observable starts from: the centered part of a set of tokens, its norm, and token directions."""

# B batch, T tokens, D width

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def need_pair(x: Float[Tensor, "*B T D"]) -> None:
    """Refuse a single token where pairs of tokens are compared.

    Raises:
        ValueError: fewer than two tokens.
    """
    if x.shape[-2] < 2:
        raise ValueError(f"a token pair is needed: tokens must be at least 2, got {x.shape[-2]}")


def single(x: Tensor) -> Tensor:
    """The tensor in float32 or better: half-precision trunks are measured in single precision."""
    return x.float() if x.dtype.itemsize < 4 else x


def centered(x: Float[Tensor, "*B T D"]) -> Float[Tensor, "*B T D"]:
    """c(X) = P X: every token less the token mean (arXiv:2605.06169 Eq. 3).

    The mean is taken twice, so that nearly equal tokens keep a centered part accurate to its own size.
    """
    x = single(x)
    first = x - x.mean(-2, keepdim=True)
    return first - first.mean(-2, keepdim=True)


def norm(x: Float[Tensor, "*B T D"]) -> Float[Tensor, "*B"]:
    """|X|_F of every sample."""
    return torch.linalg.vector_norm(single(x), dim=(-2, -1))


def directions(x: Float[Tensor, "B T D"]) -> tuple[Float[Tensor, "B T D"], Bool[Tensor, "B T 1"]]:
    """Unit tokens, and which tokens have a direction; zero tokens have none and stay zero.

    Tokens are first divided by their largest entry, so that none overflows or underflows on the way.
    """
    x = single(x)
    largest = x.abs().amax(-1, keepdim=True)
    directed = largest != 0  # true of NaN, which must not pass for a zero token
    scaled = x / largest
    unit = torch.where(directed, scaled / torch.linalg.vector_norm(scaled, dim=-1, keepdim=True), 0.0)
    return unit, directed
