"""Token mixers: softmax attention with QK-Norm and optional 2-D rotary positions."""

# B batch, T tokens, D width, H heads, F features of a head, R rotary pairs

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import rms_norm, scaled_dot_product_attention

from sim.merges import Segments

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


class SoftmaxAttention(nn.Module):
    """Multi-head attention: RoPE, then non-affine QK-Norm, scale 1/sqrt(head width), no biases (REFERENCE
    section 1).

    Args:
        width: features of a token.
        heads: attention heads.
        rope: rotate the queries and keys of image tokens.
    """

    def __init__(self, width: int, heads: int, *, rope: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.rope = rope
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)

    def _split(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _positioned(self, x_BHTF: Tensor, segments: Segments) -> Tensor:
        if self.rope:
            x_BHTF = rotate(x_BHTF, rope_angles(segments, x_BHTF.shape[-1], x_BHTF.device))
        return rms_norm(x_BHTF, (x_BHTF.shape[-1],), eps=QK_EPS)

    def _queries_keys(self, x: Tensor, segments: Segments) -> tuple[Tensor, Tensor]:
        queries, keys = self._split(self.q_proj(x)), self._split(self.k_proj(x))
        return self._positioned(queries, segments), self._positioned(keys, segments)

    def _written(self, mixed_BHTF: Tensor) -> Tensor:
        return self.proj(mixed_BHTF.transpose(1, 2).flatten(2))

    def forward(self, x: Float[Tensor, "B T D"], segments: Segments) -> Float[Tensor, "B T D"]:
        """The branch output, through the fused attention kernel."""
        queries, keys = self._queries_keys(x, segments)
        return self._written(scaled_dot_product_attention(queries, keys, self._split(self.v_proj(x))))

    def forward_with_matrix(
        self, x: Float[Tensor, "B T D"], segments: Segments
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B H T T"]]:
        """The branch output and the row-stochastic attention matrices that mixed it."""
        queries, keys = self._queries_keys(x, segments)
        matrix = torch.softmax(queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1]), dim=-1)
        return self._written(matrix @ self._split(self.v_proj(x))), matrix
