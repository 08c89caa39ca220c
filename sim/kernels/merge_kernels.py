"""The Triton kernels of a merge with its RMSNorm: means of segments, rows forward, rows backward (R1, R6)."""

# N samples, R runs, T tokens, S segments, C chunks of tokens, D width
# A sample is cut into `count` chunks, `head` of them in the first segment, which has `first` tokens.
# Every sum is taken in a fixed order, so a repeated pass gives the same bits. The arrays are pointers.

import triton
import triton.language as tl

ABSENT, ONE, PER_FEATURE = (tl.constexpr(number) for number in range(3))
"""Numbers that a gain has in a run: values of SKIP, WRITE and ALPHA."""


@triton.jit
def _row_gain(gain, run, columns, width, NUMBERS: tl.constexpr, COMPUTED: tl.constexpr):
    """A gain of a run: [1, D] if it has one number per feature, else a scalar."""
    if NUMBERS == PER_FEATURE:
        found = tl.load(gain + run * width + columns, mask=columns < width, other=0.0)[None, :]
    else:
        found = tl.load(gain + run)
    return found.to(COMPUTED)


@triton.jit
def _chunk(count, head, first, tokens, size):
    """Sample and segment of a program's chunk of at most `size` tokens, and its first token and end."""
    place = tl.program_id(0).to(tl.int64)
    sample, chunk = place // count, place % count
    segment = (chunk >= head).to(tl.int64)
    start = segment * first + (chunk - segment * head) * size
    return place, sample, segment, start, tl.minimum(start + size, tl.where(chunk < head, first, tokens))


@triton.jit
def chunk_sums(
    x, f, partial, width, count, head, first, tokens, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    COMPUTED: tl.constexpr
):  # fmt: skip
    """Sums of X and F over the tokens of a chunk: partial [N, C, 2, D]; program (N C, columns)."""
    place, sample, _, start, stop = _chunk(count, head, first, tokens, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    rows = start + tl.arange(0, ROWS)
    inside = (rows < stop)[:, None] & (columns < width)[None, :]
    at = (sample * tokens + rows)[:, None] * width + columns[None, :]
    of_x = tl.sum(tl.load(x + at, mask=inside, other=0.0).to(COMPUTED), axis=0)
    of_f = tl.sum(tl.load(f + at, mask=inside, other=0.0).to(COMPUTED), axis=0)
    to = partial + place * 2 * width + columns
    tl.store(to, of_x, mask=columns < width)
    tl.store(to + width, of_f, mask=columns < width)


@triton.jit
def _summed(
    partial, sample, count, begin, end, part, columns, width, STEP: tl.constexpr, COMPUTED: tl.constexpr
):
    """Sum over the chunks of a segment of one part of `partial` [N, C, 2, D]."""
    total = tl.zeros(columns.shape, COMPUTED)
    for start in range(begin, end, STEP):
        chunk = start + tl.arange(0, STEP)
        inside = (chunk < end)[:, None] & (columns < width)[None, :]
        at = ((sample * count + chunk)[:, None] * 2 + part) * width + columns[None, :]
        total += tl.sum(tl.load(partial + at, mask=inside, other=0.0), axis=0)
    return total


@triton.jit
def segment_means(
    partial, means, width, count, head, first, tokens, segments, STEP: tl.constexpr,
    COLUMNS: tl.constexpr, COMPUTED: tl.constexpr
):  # fmt: skip
    """Means of F and of F - X over a segment: means [N, S, 2, D]; program (N S, columns)."""
    place = tl.program_id(0).to(tl.int64)
    sample, segment = place // segments, place % segments
    begin, end = segment * head, tl.where(segment == 0, head, count)
    length = tl.where(segment == 0, first, tokens - first)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    of_x = _summed(partial, sample, count, begin, end, 0, columns, width, STEP, COMPUTED) / length
    of_f = _summed(partial, sample, count, begin, end, 1, columns, width, STEP, COMPUTED) / length
    to = means + place * 2 * width + columns
    tl.store(to, of_f, mask=columns < width)
    tl.store(to + width, of_f - of_x, mask=columns < width)


@triton.jit
def merge_rows(
    x, f, y, skip, write, alpha, means, width, per_run, count, head, first, tokens, segments,
    EPS: tl.constexpr, SKIP: tl.constexpr, WRITE: tl.constexpr, ALPHA: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr, COMPUTED: tl.constexpr
):  # fmt: skip
    """Y = Z / rms(Z) of the tokens of a chunk, which are at most ROWS; program (N C)."""
    _, sample, segment, start, stop = _chunk(count, head, first, tokens, ROWS)
    columns, rows = tl.arange(0, BLOCK), start + tl.arange(0, ROWS)
    there = columns < width
    inside = (rows < stop)[:, None] & there[None, :]
    at = (sample * tokens + rows)[:, None] * width + columns[None, :]
    z = tl.load(x + at, mask=inside, other=0.0).to(COMPUTED)
    written = tl.load(f + at, mask=inside, other=0.0).to(COMPUTED)
    run = sample // per_run
    if SKIP:
        z *= _row_gain(skip, run, columns, width, SKIP, COMPUTED)
    if ALPHA:
        mean = means + (sample * segments + segment) * 2 * width + columns
        written -= tl.load(mean, mask=there, other=0.0)[None, :]
        moved = tl.load(mean + width, mask=there, other=0.0)[None, :]
        z += _row_gain(alpha, run, columns, width, ALPHA, COMPUTED) * moved
    if WRITE:
        written *= _row_gain(write, run, columns, width, WRITE, COMPUTED)
    z += written
    inverse = tl.rsqrt(tl.sum(z * z, axis=1) / width + EPS)
    tl.store(y + at, (z * inverse[:, None]).to(y.dtype.element_ty), mask=inside)


@triton.jit
def backward_rows(
    g, x, f, of_x, of_f, skip, write, alpha, means, partial, width, per_run, size, count, head, first,
    tokens, segments, EPS: tl.constexpr, SKIP: tl.constexpr, WRITE: tl.constexpr, ALPHA: tl.constexpr,
    TWO: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, COMPUTED: tl.constexpr
):  # fmt: skip
    """Delta of the tokens of a chunk, ROWS at a time, and what the means and the gains need of it (R6).

    With alpha, `of_x` gets Delta and `partial` [N, C, 2, D] the sums of Delta and Delta (F - mean F);
    without, `of_x` and, if TWO, `of_f` get their gradients and `partial` [N, C, D], with WRITE, the sum of
    Delta F. Program (N C).
    """
    place, sample, segment, start, stop = _chunk(count, head, first, tokens, size)
    columns = tl.arange(0, BLOCK)
    there, run = columns < width, sample // per_run
    if ALPHA:
        mean = means + (sample * segments + segment) * 2 * width + columns
        of_mean = tl.load(mean, mask=there, other=0.0)[None, :]
        moved = tl.load(mean + width, mask=there, other=0.0)[None, :]
        moved *= _row_gain(alpha, run, columns, width, ALPHA, COMPUTED)
    if SKIP:
        kept = _row_gain(skip, run, columns, width, SKIP, COMPUTED)
    if WRITE:
        gain = _row_gain(write, run, columns, width, WRITE, COMPUTED)
    total, by_write = tl.zeros([BLOCK], COMPUTED), tl.zeros([BLOCK], COMPUTED)
    for begin in range(start, stop, ROWS):
        rows = begin + tl.arange(0, ROWS)
        inside = (rows < stop)[:, None] & there[None, :]
        at = (sample * tokens + rows)[:, None] * width + columns[None, :]
        z = tl.load(x + at, mask=inside, other=0.0).to(COMPUTED)
        written = tl.load(f + at, mask=inside, other=0.0).to(COMPUTED)
        if SKIP:
            z *= kept
        if ALPHA:
            written -= of_mean
            z += moved
        z += gain * written if WRITE else written
        delta = tl.load(g + at, mask=inside, other=0.0).to(COMPUTED)
        inverse = tl.rsqrt(tl.sum(z * z, axis=1) / width + EPS)[:, None]
        z *= inverse
        along = tl.sum(delta * z, axis=1) / width
        delta = tl.where(inside, inverse * (delta - along[:, None] * z), 0.0)
        if ALPHA:
            total += tl.sum(delta, axis=0)
        if WRITE:
            by_write += tl.sum(delta * written, axis=0)
        kept_delta = kept * delta if SKIP else delta
        tl.store(of_x + at, kept_delta.to(of_x.dtype.element_ty), mask=inside)
        if TWO:
            written_delta = gain * delta if WRITE else delta
            tl.store(of_f + at, written_delta.to(of_f.dtype.element_ty), mask=inside)
    if ALPHA:
        tl.store(partial + place * 2 * width + columns, total, mask=there)
        tl.store(partial + (place * 2 + 1) * width + columns, by_write, mask=there)
    elif WRITE:
        tl.store(partial + place * width + columns, by_write, mask=there)


@triton.jit
def segment_gradients(
    partial, means, mean_delta, of_gains, width, samples, count, head, first, tokens, segments,
    STEP: tl.constexpr, COLUMNS: tl.constexpr, COMPUTED: tl.constexpr
):  # fmt: skip
    """Mean of Delta over a segment [N, S, D], its terms of the gradients of alpha and write [2, N, S, D].

    Program (N S, columns).
    """
    place = tl.program_id(0).to(tl.int64)
    sample, segment = place // segments, place % segments
    begin, end = segment * head, tl.where(segment == 0, head, count)
    length = tl.where(segment == 0, first, tokens - first)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    there = columns < width
    total = _summed(partial, sample, count, begin, end, 0, columns, width, STEP, COMPUTED)
    by_write = _summed(partial, sample, count, begin, end, 1, columns, width, STEP, COMPUTED)
    moved = tl.load(means + (place * 2 + 1) * width + columns, mask=there, other=0.0)
    to = place * width + columns
    tl.store(mean_delta + to, total / length, mask=there)
    tl.store(of_gains + to, total * moved, mask=there)
    tl.store(of_gains + samples * segments * width + to, by_write, mask=there)


@triton.jit
def spread_means(
    of_x, of_f, write, alpha, mean_delta, width, per_run, count, head, first, tokens, segments,
    WRITE: tl.constexpr, ALPHA: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    COMPUTED: tl.constexpr
):  # fmt: skip
    """dX = Delta - alpha mean(Delta) in place of Delta, dF = write Delta + (alpha - write) mean(Delta) (R6).

    Program (N C), for the tokens of a chunk, which are at most ROWS.
    """
    _, sample, segment, start, stop = _chunk(count, head, first, tokens, ROWS)
    columns, rows = tl.arange(0, BLOCK), start + tl.arange(0, ROWS)
    there, run = columns < width, sample // per_run
    inside = (rows < stop)[:, None] & there[None, :]
    at = (sample * tokens + rows)[:, None] * width + columns[None, :]
    at_mean = mean_delta + (sample * segments + segment) * width + columns
    mean = tl.load(at_mean, mask=there, other=0.0)[None, :]
    through_mean = _row_gain(alpha, run, columns, width, ALPHA, COMPUTED) * mean
    delta = tl.load(of_x + at, mask=inside, other=0.0).to(COMPUTED)
    tl.store(of_x + at, (delta - through_mean).to(of_x.dtype.element_ty), mask=inside)
    centered = delta - mean
    if WRITE:
        centered *= _row_gain(write, run, columns, width, WRITE, COMPUTED)
    tl.store(of_f + at, (centered + through_mean).to(of_f.dtype.element_ty), mask=inside)
