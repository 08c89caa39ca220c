"""Simulate the cells of one unit of a sweep over synthetic stacks."""

from collections.abc import Sequence

import numpy as np

from meanmode.sim.onset.measured_front import collapse_front
from meanmode.sim.simulate import simulate, simulate_ensemble
from meanmode.sim.store.sweep_store import DIVERGED, DONE
from meanmode.sweeps.engine.plan import Cell, Measured


def simulated(cells: Sequence[tuple[int, Cell]], *, backward: bool, device: str = "cpu") -> Measured:
    """Observables and status of cells that share the run of the deepest, which comes last."""
    deepest = cells[-1][1].setting
    seeds = sorted({cell.seed for _, cell in cells})
    if len(seeds) == 1:
        alone = simulate(deepest, seeds[0], backward=backward, device=device)
        values = {name: value[None] for name, value in alone.items()}
    else:
        values = simulate_ensemble([(deepest, seed) for seed in seeds], backward=backward, device=device)
    measured: Measured = []
    for _, cell in cells:
        run = seeds.index(cell.seed)
        prefix = {name: value[run, : cell.setting.depth + 1] for name, value in values.items()}
        front = collapse_front(prefix["tcs_image" if cell.setting.text_tokens else "tcs"])
        prefix["front"] = np.array(np.nan if front is None else front, np.float32)
        profiles = [prefix["tcs"], *([prefix["adjoint_tcs"]] if backward else [])]
        measured.append((prefix, DONE if np.isfinite(profiles).all() else DIVERGED))
    return measured
