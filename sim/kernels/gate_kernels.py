"""The Triton kernels of the gate of SwiGLU, forward and backward."""

# N tokens, M hidden features; the arrays are pointers

import triton
import triton.language as tl


@triton.jit
def gate_rows(x, y, tokens, hidden, ROWS: tl.constexpr, COLUMNS: tl.constexpr, COMPUTED: tl.constexpr):
    """y [N, M] = SiLU(g) * v with [g, v] = x [N, 2 M]; program (rows, columns)."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (rows < tokens)[:, None] & (columns < hidden)[None, :]
    at = rows[:, None] * 2 * hidden + columns[None, :]
    gate = tl.load(x + at, mask=inside, other=0.0).to(COMPUTED)
    value = tl.load(x + at + hidden, mask=inside, other=0.0).to(COMPUTED)
    gated = gate / (1.0 + tl.exp(-gate)) * value
    tl.store(y + rows[:, None] * hidden + columns[None, :], gated.to(y.dtype.element_ty), mask=inside)


@triton.jit
def gate_backward_rows(
    g, x, of_x, tokens, hidden, ROWS: tl.constexpr, COLUMNS: tl.constexpr, COMPUTED: tl.constexpr
):
    """Gradient of x [N, 2 M] from g [N, M]; program (rows, columns)."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (rows < tokens)[:, None] & (columns < hidden)[None, :]
    at = rows[:, None] * 2 * hidden + columns[None, :]
    gate = tl.load(x + at, mask=inside, other=0.0).to(COMPUTED)
    value = tl.load(x + at + hidden, mask=inside, other=0.0).to(COMPUTED)
    given = tl.load(g + rows[:, None] * hidden + columns[None, :], mask=inside, other=0.0).to(COMPUTED)
    share = 1.0 / (1.0 + tl.exp(-gate))
    kind = of_x.dtype.element_ty
    of_gate = given * value * share * (1.0 + gate * (1.0 - share))
    tl.store(of_x + at, of_gate.to(kind), mask=inside)
    tl.store(of_x + at + hidden, (given * gate * share).to(kind), mask=inside)
