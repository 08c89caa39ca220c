"""Token mixers: softmax, linear and uniform attention, with QK-Norm and optional 2-D rotary positions."""

# B batch, T tokens, D width, H heads, F features of a head, R rotary pairs

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import elu, rms_norm, scaled_dot_product_attention

from sim.merges import Segments
from theory.setting import MIXERS

ROPE_THETA = 10000.0
QK_EPS = 1e-6


def rope_angles(
    segments: Segments, head_width: int, device: torch.device | None = None
) -> Float[Tensor, "T R"]:
    """Rotation angles of every token: rows of the image square in the first half of the R pairs, columns in
    the second.

    With h = head_width / 2 pairs, the frequencies are theta^(-2 k / h), k < h / 2. Text tokens are not
    rotated.

    Raises:
        ValueError: image tokens that form no square, or a head width that is not a multiple of 4.
    """
    image, side = segments[0], math.isqrt(segments[0])
    if side * side != image:
        raise ValueError(f"2-D rope needs a square number of image tokens, got {image}")
    if head_width % 4:
        raise ValueError(f"2-D rope needs a head width divisible by 4, got {head_width}")
    pairs = head_width // 2
    frequency = ROPE_THETA ** (-2.0 * torch.arange(pairs // 2, dtype=torch.float64, device=device) / pairs)
    place = torch.arange(image, dtype=torch.float64, device=device)
    rows, columns = torch.div(place, side, rounding_mode="floor"), place % side
    angles = torch.cat([rows[:, None] * frequency, columns[:, None] * frequency], dim=1)
    return torch.cat([angles, angles.new_zeros(sum(segments[1:]), pairs)])


def rotate(x: Float[Tensor, "B H T F"], angles: Float[Tensor, "T R"]) -> Float[Tensor, "B H T F"]:
    """Rotate each head's first half against its second half (the layout of the published checkpoint)."""
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos + second * sin, second * cos - first * sin], dim=-1)


class Mixer(nn.Module):
    """A row-stochastic token mixer per head: values, mixed by a matrix A with A 1 = 1, written by `proj`.

    Args:
        width: features of a token.
        heads: attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.v_proj = nn.Linear(width, width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)

    @property
    def readers(self) -> tuple[nn.Linear, ...]:
        """The projections that read the trunk, in the order in which their weights are drawn."""
        return (self.v_proj,)

    def _split(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _written(self, mixed_BHTF: Tensor) -> Tensor:
        return self.proj(mixed_BHTF.transpose(1, 2).flatten(2))

    def mixed(self, x: Float[Tensor, "B T D"], segments: Segments) -> Float[Tensor, "B H T F"]:
        """The values of every head, mixed without forming the matrix where there is a faster way."""
        return self.matrix(x, segments) @ self._split(self.v_proj(x))

    def matrix(self, x: Float[Tensor, "B T D"], segments: Segments) -> Float[Tensor, "B H T T"]:
        """The row-stochastic mixing matrices A."""
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "B T D"], segments: Segments) -> Float[Tensor, "B T D"]:
        """The branch output, on the fast path."""
        return self._written(self.mixed(x, segments))

    def forward_with_matrix(
        self, x: Float[Tensor, "B T D"], segments: Segments
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B H T T"]]:
        """The branch output and the matrices that mixed it."""
        matrix = self.matrix(x, segments)
        return self._written(matrix @ self._split(self.v_proj(x))), matrix


class UniformAttention(Mixer):
    """A = J: every token reads the mean of the values of all tokens; no queries, keys or positions."""

    def mixed(self, x: Float[Tensor, "B T D"], segments: Segments) -> Float[Tensor, "B H T F"]:
        values = self._split(self.v_proj(x))
        return values.mean(-2, keepdim=True).expand_as(values)

    def matrix(self, x: Float[Tensor, "B T D"], segments: Segments) -> Float[Tensor, "B H T T"]:
        batch, tokens, _ = x.shape
        return x.new_full((batch, self.heads, tokens, tokens), 1 / tokens)


class QueryKeyMixer(Mixer):
    """A mixer that compares queries with keys: RoPE, then non-affine QK-Norm (arXiv:2605.06169).

    Args:
        width: features of a token.
        heads: attention heads.
        rope: rotate the queries and keys of image tokens.
    """

    def __init__(self, width: int, heads: int, *, rope: bool = False) -> None:
        super().__init__(width, heads)
        self.rope = rope
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)

    @property
    def readers(self) -> tuple[nn.Linear, ...]:
        return (self.q_proj, self.k_proj, self.v_proj)

    def _positioned(self, x_BHTF: Tensor, segments: Segments) -> Tensor:
        if self.rope:
            x_BHTF = rotate(x_BHTF, rope_angles(segments, x_BHTF.shape[-1], x_BHTF.device))
        return rms_norm(x_BHTF, (x_BHTF.shape[-1],), eps=QK_EPS)

    def _queries_keys(self, x: Tensor, segments: Segments) -> tuple[Tensor, Tensor]:
        queries, keys = self._split(self.q_proj(x)), self._split(self.k_proj(x))
        return self._positioned(queries, segments), self._positioned(keys, segments)


class SoftmaxAttention(QueryKeyMixer):
    """A = softmax(q k^T / sqrt(head width)), no biases (arXiv:2605.06169)."""

    def mixed(self, x: Float[Tensor, "B T D"], segments: Segments) -> Float[Tensor, "B H T F"]:
        queries, keys = self._queries_keys(x, segments)
        return scaled_dot_product_attention(queries, keys, self._split(self.v_proj(x)))

    def matrix(self, x: Float[Tensor, "B T D"], segments: Segments) -> Float[Tensor, "B H T T"]:
        queries, keys = self._queries_keys(x, segments)
        return torch.softmax(queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1]), dim=-1)


class LinearAttention(QueryKeyMixer):
    """A_ij = phi(q_i) . phi(k_j) / sum_j phi(q_i) . phi(k_j), phi = elu + 1, in O(T).

    After QK-Norm an entry is at least -sqrt(head width), so that phi, and every entry of A, is positive.
    """

    def _features(self, x: Tensor, segments: Segments) -> tuple[Tensor, Tensor]:
        queries, keys = self._queries_keys(x, segments)
        return elu(queries) + 1, elu(keys) + 1

    def mixed(self, x: Float[Tensor, "B T D"], segments: Segments) -> Float[Tensor, "B H T F"]:
        queries, keys = self._features(x, segments)
        weight = queries @ keys.sum(-2).unsqueeze(-1)
        return queries @ (keys.transpose(-1, -2) @ self._split(self.v_proj(x))) / weight

    def matrix(self, x: Float[Tensor, "B T D"], segments: Segments) -> Float[Tensor, "B H T T"]:
        queries, keys = self._features(x, segments)
        products = queries @ keys.transpose(-1, -2)
        return products / products.sum(-1, keepdim=True)


def make_mixer(name: str, width: int, heads: int, *, rope: bool = False) -> Mixer:
    """The mixer of a name: softmax, uniform or linear.

    Args:
        name: one of `theory.setting.MIXERS`.
        width: features of a token.
        heads: attention heads.
        rope: rotate the queries and keys of image tokens; `uniform` has none.

    Raises:
        ValueError: an unknown name.
    """
    if name == "uniform":
        return UniformAttention(width, heads)
    compared = {"softmax": SoftmaxAttention, "linear": LinearAttention}
    if name not in compared:
        raise ValueError(f"unknown mixer {name!r}: choose one of {', '.join(MIXERS)}")
    return compared[name](width, heads, rope=rope)
