"""A finished cell of any kind of sweep is not computed again."""

from pathlib import Path

import numpy as np
import pytest

from meanmode.sim.store.sweep_store import DONE
from meanmode.sim.store.sweep_writer import SweepWriter
from meanmode.sweeps.engine.store_layout import lay_out
from meanmode.sweeps.named.all_sweeps import SWEEPS

ONE_OF_EACH_KIND = {sweep.kind: sweep for _, sweep in sorted(SWEEPS.items(), reverse=True)}


@pytest.mark.parametrize("kind", ONE_OF_EACH_KIND)
def test_a_finished_cell_stays_finished(kind: str, tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    lay_out(ONE_OF_EACH_KIND[kind], store)
    writer = SweepWriter(store)
    values = {name: np.ones(array.shape[1:], np.float32) for name, array in writer.arrays.items()}
    writer.write(0, values, DONE, wall_seconds=1.0)
    todo, lost = SweepWriter(store).remaining()
    assert todo == list(range(1, writer.arrays["status"].shape[0]))
    assert lost == []
