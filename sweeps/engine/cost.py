"""Estimated cost of a cell, used to order runs, to divide shards and to predict the time left."""

from collections.abc import Sequence

from meanmode.sweeps.engine.plan import Plan
from meanmode.theory.setting import Setting

DRAW_FLOPS = 150.0
"""Cost of drawing one weight, in floating-point operations that take as long; measured on a CPU core."""


MATRIX_FLOPS = 500.0
"""Cost of forming and measuring one entry of a mixing matrix, in the same unit."""


BLOCK_FLOPS = 3e7
"""Cost of launching the kernels of one block, in the same unit; it dominates small stacks."""


PROJECTIONS = {"uniform": 2, "state_space": 2, "gated": 5}
"""Number of square projections of a mixer, where it is not 4."""


UNCOMPARED = ("uniform", "linear", "state_space")
"""Mixers that compare no pairs of tokens: their forward pass is linear in the number of tokens."""


def block_weights(setting: Setting) -> int:
    """Number of weights of one block: a few D^2 for the mixer and 3 D H for SwiGLU."""
    mixer = PROJECTIONS.get(setting.mixer, 4) * setting.width**2
    decays = setting.heads * setting.width if setting.mixer == "state_space" else 0
    return mixer + decays + 3 * setting.width * setting.ffn_width


def block_products(setting: Setting) -> int:
    """Floating-point operations of the matrix products of one block.

    2 per weight and token; a mixer that compares tokens adds 2 T^2 D for the comparison and 2 T^2 D for
    mixing the values.
    """
    tokens = sum(setting.segments)
    mixing = 0 if setting.mixer in UNCOMPARED else 4 * tokens**2 * setting.width
    return setting.batch * (2 * tokens * block_weights(setting) + mixing)


def setting_cost(setting: Setting, *, backward: bool = False) -> float:
    """Cost of one simulated stack, in floating-point operations or work that takes as long.

    With a backward pass there are three times as many products, and every block is drawn twice. Weights are
    drawn once for the whole batch; the observables read every entry of the mixing matrices. With the
    constants above, time is proportional to cost within about a factor of two from width 64 to 1024 and from
    16 to 256 tokens on a CPU core.
    """
    passes, draws = (3, 2) if backward else (1, 1)
    entries = setting.batch * setting.heads * sum(setting.segments) ** 2
    products = passes * (block_products(setting) + BLOCK_FLOPS)
    return setting.depth * (products + draws * DRAW_FLOPS * block_weights(setting) + MATRIX_FLOPS * entries)


def unit_cost(sweep: Plan, unit: Sequence[int]) -> float:
    """Cost of one unit: for every seed that of its deepest stack, which contains the shallower ones."""
    deepest: dict[int, float] = {}
    for index in unit:
        cell = sweep.cells[index]
        cost = cell.passes * setting_cost(cell.setting, backward=sweep.backward)
        deepest[cell.seed] = max(cost, deepest.get(cell.seed, 0.0))
    return sum(deepest.values())
