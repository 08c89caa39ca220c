"""Attention as a token mixer: softmax, linear, uniform, blended, gated; QK-Norm and 2-D rotary positions."""

# B batch (after a leading axis of runs in an ensemble), T tokens, D width, H heads, F features per head,
# R rotary pairs

import functools
import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import elu, scaled_dot_product_attention

from meanmode.sim.kernels.choice import computed_type, fused
from meanmode.sim.kernels.head_operator import normed_heads, takes_heads
from meanmode.sim.trunk.closed_forms import normed
from meanmode.sim.trunk.constants import QK_EPS
from meanmode.sim.trunk.linear import Linear, dot_products
from meanmode.sim.trunk.precision import single
from meanmode.sim.trunk.segments import Segments

ROPE_THETA = 10000.0


def rope_angles(
    segments: Segments, head_width: int, device: torch.device | None = None
) -> Float[Tensor, "T R"]:
    """2-D rotary angles: the image row sets the first half of the R pairs, the column the second half.

    With h = head_width / 2 pairs, the frequencies are theta^(-2 k / h), k < h / 2. Text tokens are not
    rotated.

    Raises:
        ValueError: the image tokens do not form a square, or the head width is not a multiple of 4.
    """
    image, side = segments[0], math.isqrt(segments[0])
    if side * side != image:
        raise ValueError(f"2-D rope needs a square number of image tokens, got {image}")
    if head_width % 4:
        raise ValueError(f"2-D rope needs a head width divisible by 4, got {head_width}")
    pairs = head_width // 2
    frequency = ROPE_THETA ** (-2.0 * torch.arange(pairs // 2, dtype=torch.float64, device=device) / pairs)
    index = torch.arange(image, dtype=torch.float64, device=device)
    rows, columns = torch.div(index, side, rounding_mode="floor"), index % side
    angles = torch.cat([rows[:, None] * frequency, columns[:, None] * frequency], dim=1)
    return torch.cat([angles, angles.new_zeros(sum(segments[1:]), pairs)])


def rotation(
    segments: Segments, copies: int, head_width: int, device: torch.device, dtype: torch.dtype
) -> tuple[Float[Tensor, "T R"], Float[Tensor, "T R"]]:
    """Cosine and sine of the angles, shared by all heads and by all copies of a token; constants."""
    return _kept_rotation(segments, copies, head_width, device, dtype)


@functools.lru_cache(maxsize=16)
def _kept_rotation(
    segments: Segments, copies: int, head_width: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):  # autograd cannot save tensors created in inference mode
        once = rope_angles(tuple(length // copies for length in segments), head_width, device)
        angles = once.repeat_interleave(copies, dim=0)
        return angles.cos().to(dtype), angles.sin().to(dtype)


def token_rotation(
    segments: Segments, copies: int, heads: int, head_width: int, device: torch.device, dtype: torch.dtype
) -> tuple[Float[Tensor, "T D"], Float[Tensor, "T D"]]:
    """The factors of a token's features in `rotate`, all heads side by side; constants."""
    return _kept_token_rotation(segments, copies, heads, head_width, device, dtype)


@functools.lru_cache(maxsize=4)
def _kept_token_rotation(
    segments: Segments, copies: int, heads: int, head_width: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    cos, sin = rotation(segments, copies, head_width, device, dtype)
    with torch.inference_mode(False):
        return torch.cat([cos, cos], dim=-1).repeat(1, heads), torch.cat([sin, -sin], dim=-1).repeat(1, heads)


def rotate(x: Float[Tensor, "*B T D"], segments: Segments, heads: int) -> Float[Tensor, "*B T D"]:
    """Rotate each head's first half against its second half, the layout of the published checkpoint.

    On whole tokens, whose features lie side by side: a half of a head is too short for fast passes.
    """
    copies, features = getattr(segments, "copies", 1), x.shape[-1] // heads
    own, other = token_rotation(segments, copies, heads, features, x.device, x.dtype)
    exchanged = x.unflatten(-1, (heads, features)).roll(features // 2, -1).flatten(-2)
    return x * own + exchanged * other


class Mixer(nn.Module):
    """A token mixer: each head mixes its values with a T x T matrix A, and `proj` writes the result.

    A is computed from the `operands`, a few features per token. The matrix itself is formed only on request,
    for as many heads at a time as fit in memory. A holds all mixing between tokens; anything a mixer then
    does token by token (`gated`) is not part of it.

    Args:
        width: features per token.
        heads: number of attention heads.

    Attributes:
        heads: number of attention heads.
        seen: if set, called with the operands in every forward pass (`meanmode.sim.observe.probe`).
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.seen: Callable[[tuple[Tensor, ...]], None] | None = None
        self.v_proj = Linear(width, width)
        self.proj = Linear(width, width)

    @property
    def form(self) -> tuple[object, ...]:
        """Equal for mixers whose matrices are the same function of their operands."""
        return type(self), self.heads

    @property
    def sources(self) -> tuple[Linear, ...]:
        """The projections from which A is computed, in the order in which their weights are drawn."""
        return ()

    @property
    def readers(self) -> tuple[Linear, ...]:
        """All projections that read the trunk, in the order in which their weights are drawn."""
        return (*self.sources, self.v_proj)

    def _split(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unflatten(-1, (self.heads, -1)).transpose(-3, -2)

    def operands(
        self, x: Float[Tensor, "*B T D"], segments: Segments
    ) -> tuple[Float[Tensor, "*B H T _"], ...]:
        """The per-head features of the tokens from which A is computed."""
        raise NotImplementedError

    def matrix_of(self, *operands: Float[Tensor, "*N T _"]) -> Float[Tensor, "*N T T"]:
        """The mixing matrices A of any number of heads, from their operands; callers may overwrite them."""
        raise NotImplementedError

    def rows_of(self, rows: slice, *operands: Float[Tensor, "*N T _"]) -> Float[Tensor, "*N R T"]:
        """Some rows of the mixing matrices, for matrices too large to form; callers may overwrite them."""
        return self.matrix_of(*operands)[..., rows, :]

    def mix(
        self, values: Float[Tensor, "*B H T F"], *operands: Float[Tensor, "*B H T _"]
    ) -> Float[Tensor, "*B H T F"]:
        """A times the values, without forming A where a faster path exists."""
        return self.matrix_of(*operands) @ values

    def matrix(self, x: Float[Tensor, "*B T D"], segments: Segments) -> Float[Tensor, "*B H T T"]:
        """The mixing matrices A of all heads."""
        return self.matrix_of(*self.operands(x, segments))

    def mixed(self, x: Float[Tensor, "*B T D"], segments: Segments) -> Float[Tensor, "*B H T F"]:
        """The mixed values of every head."""
        operands = self.operands(x, segments)
        if self.seen is not None:
            self.seen(operands)
        return self.mix(self._split(self.v_proj(x)), *operands)

    def forward(self, x: Float[Tensor, "*B T D"], segments: Segments) -> Float[Tensor, "*B T D"]:
        """The branch output."""
        return self.proj(self.mixed(x, segments).transpose(-3, -2).flatten(-2))


class UniformAttention(Mixer):
    """A = J: every token reads the mean value over all tokens; no queries, keys or positions."""

    def operands(
        self, x: Float[Tensor, "*B T D"], segments: Segments
    ) -> tuple[Float[Tensor, "*B H T _"], ...]:
        return (self._split(x)[..., :1],)

    def matrix_of(self, *operands: Float[Tensor, "*N T _"]) -> Float[Tensor, "*N T T"]:
        (like,) = operands
        tokens = like.shape[-2]
        return like.new_full((*like.shape[:-1], tokens), 1 / tokens)

    def rows_of(self, rows: slice, *operands: Float[Tensor, "*N T _"]) -> Float[Tensor, "*N R T"]:
        (like,) = operands
        tokens = like.shape[-2]
        return like.new_full((*like.shape[:-2], rows.stop - rows.start, tokens), 1 / tokens)

    def mix(
        self, values: Float[Tensor, "*B H T F"], *operands: Float[Tensor, "*B H T _"]
    ) -> Float[Tensor, "*B H T F"]:
        return values.mean(-2, keepdim=True).expand_as(values)


class QueryKeyMixer(Mixer):
    """A mixer that compares queries with keys: RoPE, then non-affine QK-Norm (arXiv:2605.06169).

    Args:
        width: features per token.
        heads: number of attention heads.
        rope: rotate the queries and keys of image tokens.
        eps: added to the mean square in QK-Norm.
    """

    def __init__(self, width: int, heads: int, *, rope: bool = False, eps: float = QK_EPS) -> None:
        super().__init__(width, heads)
        self.rope = rope
        self.eps = eps
        self.q_proj = Linear(width, width)
        self.k_proj = Linear(width, width)

    @property
    def sources(self) -> tuple[Linear, ...]:
        return (self.q_proj, self.k_proj)

    def _positioned(self, x_BTD: Tensor, segments: Segments) -> Tensor:
        if fused(x_BTD) and takes_heads(x_BTD, self.heads):
            features, copies = x_BTD.shape[-1] // self.heads, getattr(segments, "copies", 1)
            turn = (segments, copies, features, x_BTD.device, computed_type(x_BTD))
            return normed_heads(x_BTD, rotation(*turn) if self.rope else None, self.heads, self.eps)
        x = single(x_BTD)  # autocast runs norms in the precision of their input
        if self.rope:
            x = rotate(x, segments, self.heads)
        x_BTHF = x.unflatten(-1, (self.heads, -1))
        return normed(x_BTHF, self.eps).to(x_BTD.dtype).transpose(-3, -2)

    def operands(
        self, x: Float[Tensor, "*B T D"], segments: Segments
    ) -> tuple[Float[Tensor, "*B H T _"], ...]:
        return self._positioned(self.q_proj(x), segments), self._positioned(self.k_proj(x), segments)

    def compared(self, queries: Float[Tensor, "*N R F"], keys: Float[Tensor, "*N T F"]) -> Tensor:
        """The rows of A [*N, R, T] of some queries; callers may overwrite them."""
        raise NotImplementedError

    def matrix_of(self, *operands: Float[Tensor, "*N T _"]) -> Float[Tensor, "*N T T"]:
        queries, keys = operands
        return self.compared(queries, keys)

    def rows_of(self, rows: slice, *operands: Float[Tensor, "*N T _"]) -> Float[Tensor, "*N R T"]:
        queries, keys = operands
        return self.compared(queries[..., rows, :], keys)


class SoftmaxAttention(QueryKeyMixer):
    """A = softmax(q k^T / sqrt(head width)), no biases (arXiv:2605.06169)."""

    def compared(self, queries: Float[Tensor, "*N R F"], keys: Float[Tensor, "*N T F"]) -> Tensor:
        scores = dot_products(queries / math.sqrt(queries.shape[-1]), keys)
        return torch.softmax(scores, dim=-1, out=None if scores.requires_grad else scores)

    def mix(
        self, values: Float[Tensor, "*B H T F"], *operands: Float[Tensor, "*B H T _"]
    ) -> Float[Tensor, "*B H T F"]:
        queries, keys = operands
        if values.ndim == 4:
            return scaled_dot_product_attention(queries, keys, values)
        flat_queries, flat_keys, flat_values = (part.flatten(0, -4) for part in (queries, keys, values))
        mixed = scaled_dot_product_attention(flat_queries, flat_keys, flat_values)
        return mixed.unflatten(0, values.shape[:-3])


class LinearAttention(QueryKeyMixer):
    """A_ij = phi(q_i) . phi(k_j) / sum_j phi(q_i) . phi(k_j), phi = elu + 1, in O(T).

    After QK-Norm an entry is at least -sqrt(head width), so phi and every entry of A are positive.
    """

    def operands(
        self, x: Float[Tensor, "*B T D"], segments: Segments
    ) -> tuple[Float[Tensor, "*B H T _"], ...]:
        queries, keys = super().operands(x, segments)
        return elu(queries) + 1, elu(keys) + 1

    def compared(self, queries: Float[Tensor, "*N R F"], keys: Float[Tensor, "*N T F"]) -> Tensor:
        products = dot_products(queries, keys)
        return products / products.sum(-1, keepdim=True)

    def mix(
        self, values: Float[Tensor, "*B H T F"], *operands: Float[Tensor, "*B H T _"]
    ) -> Float[Tensor, "*B H T F"]:
        queries, keys = operands
        weight = queries @ keys.sum(-2).unsqueeze(-1)
        return queries @ (keys.transpose(-1, -2) @ values) / weight


class BlendedAttention(SoftmaxAttention):
    """B = e I + l A with softmax attention A: A - I, I - A and (1 - l) I + l A (N2, N3).

    Args:
        width: features per token.
        heads: number of attention heads.
        identity: e, the weight of the identity.
        share: l, the weight of softmax attention.
        rope: rotate the queries and keys of image tokens.
        eps: added to the mean square in QK-Norm.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        identity: float,
        share: float,
        rope: bool = False,
        eps: float = QK_EPS,
    ) -> None:
        super().__init__(width, heads, rope=rope, eps=eps)
        self.identity = identity
        self.share = share

    @property
    def form(self) -> tuple[object, ...]:
        return (*super().form, self.identity, self.share)

    def matrix_of(self, *operands: Float[Tensor, "*N T _"]) -> Float[Tensor, "*N T T"]:
        attention = super().matrix_of(*operands)
        one = torch.eye(attention.shape[-1], dtype=attention.dtype, device=attention.device)
        return self.identity * one + self.share * attention

    def rows_of(self, rows: slice, *operands: Float[Tensor, "*N T _"]) -> Float[Tensor, "*N R T"]:
        band = self.share * super().rows_of(rows, *operands)
        band.diagonal(offset=rows.start, dim1=-2, dim2=-1).add_(self.identity)
        return band

    def mix(
        self, values: Float[Tensor, "*B H T F"], *operands: Float[Tensor, "*B H T _"]
    ) -> Float[Tensor, "*B H T F"]:
        return self.identity * values + self.share * super().mix(values, *operands)


class GatedAttention(SoftmaxAttention):
    """Softmax attention with an elementwise output gate, sigmoid(W_g x_t) * (A V)_t (App. J, N4).

    There is one gate per feature, between the heads and the residual writer. One gate per head is the special
    case of equal rows of W_g, so whatever these gates cannot prevent, per-head gates cannot either. `matrix`
    is A, before the gate; the writer reads the gated values.
    """

    def __init__(self, width: int, heads: int, *, rope: bool = False, eps: float = QK_EPS) -> None:
        super().__init__(width, heads, rope=rope, eps=eps)
        self.gate_proj = Linear(width, width)

    @property
    def readers(self) -> tuple[Linear, ...]:
        return (*super().readers, self.gate_proj)

    def mixed(self, x: Float[Tensor, "*B T D"], segments: Segments) -> Float[Tensor, "*B H T F"]:
        return torch.sigmoid(self._split(self.gate_proj(x))) * super().mixed(x, segments)
