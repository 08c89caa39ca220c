"""The Triton kernels of rotary positions with QK-Norm, forward and backward."""

# N samples, T tokens, H heads, F features per head in two halves of R; the arrays are pointers

import triton
import triton.language as tl


@triton.jit
def _turned(
    x,
    cos,
    sin,
    rows,
    tokens,
    pairs,
    features,
    ROTATED: tl.constexpr,
    PAIRS: tl.constexpr,
    COMPUTED: tl.constexpr,
):
    """Rotated halves of one head of some tokens, cosines, sines and masks; x points to first features."""
    columns = tl.arange(0, PAIRS)[None, :]
    here = (rows < tokens)[:, None]
    in_first, in_second = here & (columns < pairs), here & (pairs + columns < features)
    first = tl.load(x + columns, mask=in_first, other=0.0).to(COMPUTED)
    second = tl.load(x + pairs + columns, mask=in_second, other=0.0).to(COMPUTED)
    cosine, sine = first, second
    if ROTATED:
        angle = rows[:, None] * pairs + columns
        cosine = tl.load(cos + angle, mask=in_first, other=0.0).to(COMPUTED)
        sine = tl.load(sin + angle, mask=in_first, other=0.0).to(COMPUTED)
        first, second = first * cosine + second * sine, second * cosine - first * sine
    return first, second, cosine, sine, in_first, in_second


@triton.jit
def head_rows(
    x,
    y,
    cos,
    sin,
    tokens,
    heads,
    features,
    pairs,
    blocks,
    EPS: tl.constexpr,
    ROTATED: tl.constexpr,
    ROWS: tl.constexpr,
    PAIRS: tl.constexpr,
    COMPUTED: tl.constexpr,
):
    """y [N, H, T, F] = normed rotated heads of x [N, T, H F]; program (N blocks of tokens, H)."""
    place, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    sample, block = place // blocks, place % blocks
    rows = block * ROWS + tl.arange(0, ROWS)
    given = x + ((sample * tokens + rows)[:, None] * heads + head) * features
    first, second, _, _, in_first, in_second = _turned(
        given, cos, sin, rows, tokens, pairs, features, ROTATED, PAIRS, COMPUTED
    )
    square = (tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)) / features
    inverse = tl.rsqrt(square + EPS)[:, None]
    to = y + ((sample * heads + head) * tokens + rows)[:, None] * features + tl.arange(0, PAIRS)[None, :]
    kind = y.dtype.element_ty
    tl.store(to, (first * inverse).to(kind), mask=in_first)
    tl.store(to + pairs, (second * inverse).to(kind), mask=in_second)


@triton.jit
def head_backward_rows(
    g,
    x,
    of_x,
    cos,
    sin,
    tokens,
    heads,
    features,
    pairs,
    blocks,
    by_sample,
    by_head,
    by_token,
    EPS: tl.constexpr,
    ROTATED: tl.constexpr,
    ROWS: tl.constexpr,
    PAIRS: tl.constexpr,
    COMPUTED: tl.constexpr,
):
    """Gradient of x [N, T, H F] from g [N, H, T, F], whose strides are given; program (N blocks, H)."""
    place, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    sample, block = place // blocks, place % blocks
    rows = block * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, PAIRS)[None, :]
    at = ((sample * tokens + rows)[:, None] * heads + head) * features
    first, second, cosine, sine, in_first, in_second = _turned(
        x + at, cos, sin, rows, tokens, pairs, features, ROTATED, PAIRS, COMPUTED
    )
    given = g + sample * by_sample + head.to(tl.int64) * by_head + rows[:, None] * by_token + columns
    to_first = tl.load(given, mask=in_first, other=0.0).to(COMPUTED)
    to_second = tl.load(given + pairs, mask=in_second, other=0.0).to(COMPUTED)
    square = (tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)) / features
    inverse = tl.rsqrt(square + EPS)[:, None]
    first, second = inverse * first, inverse * second
    along = ((tl.sum(to_first * first, axis=1) + tl.sum(to_second * second, axis=1)) / features)[:, None]
    to_first, to_second = inverse * (to_first - along * first), inverse * (to_second - along * second)
    if ROTATED:
        to_first, to_second = to_first * cosine - to_second * sine, to_first * sine + to_second * cosine
    kind = of_x.dtype.element_ty
    tl.store(of_x + at + columns, to_first.to(kind), mask=in_first)
    tl.store(of_x + at + pairs + columns, to_second.to(kind), mask=in_second)
