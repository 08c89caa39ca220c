"""The order of events around a collapse: first lasting moves of crafted runs, and their table."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from meanmode.sim.store.sweep_store import DONE, open_cells
from meanmode.sim.store.sweep_writer import SweepWriter
from meanmode.sweeps.engine.study import Case, Study
from meanmode.sweeps.engine.study_variables import KINDS
from meanmode.sweeps.named.critical_rate import BASE
from meanmode.sweeps.studies.comparison import as_tables, compare
from meanmode.sweeps.studies.event_order import first_moves
from meanmode.sweeps.studies.markdown import order_table

STEPS, ONSET = 80, 40
MOVES = {"loss": -3, "g_mean": -2, "mode_ratio": -2, "g_ctr": 4, "grad_rms_q": 6, "tcs": 0}
"""First moves in steps after the onset; in the second seed all but TCS move two steps later."""


def study(**changes: Any) -> Study:
    cases = tuple(Case(label=label) for label in ("nothing", "mean deleted"))
    base = BASE.with_fields({"steps": STEPS})
    return Study(name="tiny", claim="tiny", base=base, cases=cases, seeds=2, **changes)


def series(late: int) -> dict[str, np.ndarray]:
    """Series of a run that collapses at `ONSET`; each signal jumps at its move, `late` steps later."""
    steps = np.arange(1, STEPS + 1)

    def jump(signal: str, before: float, after: float) -> np.ndarray:
        return np.where(steps >= ONSET + MOVES[signal] + late, after, before)

    return {
        "loss": np.where(steps < 6, 2.0, jump("loss", 1.0, 2.0)),
        "tcs_image": np.where(steps >= ONSET, 0.99, 0.1),
        "g_mean": jump("g_mean", 1.0, 10.0),
        "g_ctr": jump("g_ctr", 1.0, 0.01),
        "grad_rms_q": jump("grad_rms_q", 1.0, 1e-4),
        "grad_rms_k": np.ones(STEPS),
        "grad_norm": np.ones(STEPS),
    }


@pytest.fixture
def store(crafted_study: Callable[..., Path], tmp_path: Path) -> Path:
    """Two seeds that collapse without an intervention, and two that do not collapse with it."""
    path = crafted_study(study(signals_every=1), tmp_path / "s.zarr", {"mean deleted": (None, None)})
    writer = SweepWriter(path)
    kind = np.array(KINDS.index("mean_mode"))
    for seed in range(2):
        scalars = {"onset_step": np.array(ONSET), "onset_kind": kind, "last_step": np.array(STEPS)}
        writer.write(seed, {**scalars, "critical_rate": np.array(0.1), **series(2 * seed)}, DONE)
    return path


def test_moves_are_counted_from_the_onset_of_each_run(store: Path) -> None:
    rows = {row["signal"]: row for row in first_moves(open_cells(store))}
    assert {row["case"] for row in rows.values()} == {"nothing"} and all(
        row["n"] == 2 for row in rows.values()
    )
    for signal, move in MOVES.items():
        later = move if signal == "tcs" else move + 2
        found = rows[signal]
        expected = ((move + later) / 2, min(move, later), max(move, later), 2)
        assert (
            found["measured"],
            found["measured_low"],
            found["measured_high"],
            found["n_moved"],
        ) == expected
    assert rows["g_mean"]["factor"] == 10 and rows["g_ctr"]["factor"] == pytest.approx(0.01)
    assert rows["grad_rms_k"]["measured"] is None and rows["grad_rms_k"]["n_moved"] == 0


def test_they_are_compared_and_tabled_with_the_effects(store: Path) -> None:
    document = compare([store])
    table = as_tables(document).split("\n\n")
    assert len(table) == 2 and table[1] == order_table(document["rows"])
    head, _, line = table[1].splitlines()
    cells = dict(zip(head.split(" | "), line.split(" | "), strict=True))
    assert line.startswith("| nothing | 2 |") and cells["g_mean"] == "-1, x10"
    assert cells["g_ctr"] == "+5, x0.01" and cells["grad_rms_k"] == "-"


def test_a_study_without_the_parts_of_gradients_has_none(
    crafted_study: Callable[..., Path], tmp_path: Path
) -> None:
    path = crafted_study(study(), tmp_path / "s.zarr", {"nothing": (20, 30)})
    assert "g_mean" not in open_cells(path) and first_moves(open_cells(path)) == []
