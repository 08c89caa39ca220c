"""What a cell costs, estimated from its setting: for the order of runs, the shards and the time left."""

from collections.abc import Sequence

from meanmode.sweeps.engine.plan import Plan
from meanmode.theory.setting import Setting

DRAW_FLOPS = 150.0
"""Drawing one weight, in floating-point operations that take as long; measured on a CPU core."""


MATRIX_FLOPS = 500.0
"""Forming and measuring one entry of a mixing matrix, likewise."""


BLOCK_FLOPS = 3e7
"""Calling the kernels of one block, likewise; it is what a narrow stack of few tokens costs."""


PROJECTIONS = {"uniform": 2, "state_space": 2, "gated": 5}
"""Square projections of a mixer, if not 4."""


UNCOMPARED = ("uniform", "linear", "state_space")
"""Mixers whose forward pass is linear in the tokens."""


def block_weights(setting: Setting) -> int:
    """Weights of one block: a few D^2 of the mixer and 3 D H of SwiGLU."""
    mixer = PROJECTIONS.get(setting.mixer, 4) * setting.width**2
    decays = setting.heads * setting.width if setting.mixer == "state_space" else 0
    return mixer + decays + 3 * setting.width * setting.ffn_width


def block_products(setting: Setting) -> int:
    """Floating-point operations of the matrix products of one block.

    2 a weight and token; where tokens are compared, 2 T^2 D to do so and as much to mix their values.
    """
    tokens = sum(setting.segments)
    mixing = 0 if setting.mixer in UNCOMPARED else 4 * tokens**2 * setting.width
    return setting.batch * (2 * tokens * block_weights(setting) + mixing)


def setting_cost(setting: Setting, *, backward: bool = False) -> float:
    """Floating-point operations of one simulated stack, or of what takes as long.

    A backward pass multiplies three times as much, and draws every block twice. Weights are drawn once for
    the whole batch; the observables read every entry of the mixing matrices. The constants above make it a
    measure of time: within about a factor of two from width 64 to 1024 and 16 to 256 tokens on a CPU core.
    """
    passes, draws = (3, 2) if backward else (1, 1)
    entries = setting.batch * setting.heads * sum(setting.segments) ** 2
    products = passes * (block_products(setting) + BLOCK_FLOPS)
    return setting.depth * (products + draws * DRAW_FLOPS * block_weights(setting) + MATRIX_FLOPS * entries)


def unit_cost(sweep: Plan, unit: Sequence[int]) -> float:
    """Cost of the cells of one unit: for every seed that of its deepest stack, which holds the others."""
    deepest: dict[int, float] = {}
    for index in unit:
        cell = sweep.cells[index]
        cost = cell.passes * setting_cost(cell.setting, backward=sweep.backward)
        deepest[cell.seed] = max(cost, deepest.get(cell.seed, 0.0))
    return sum(deepest.values())
