"""Sweeps whose seeds are stepped together as one batched network."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from meanmode.sim.store.files import StoreError
from meanmode.sim.store.sweep_store import FAILED, open_cells
from meanmode.sim.store.sweep_writer import SweepWriter
from meanmode.sweeps.cli.options import check_device
from meanmode.sweeps.engine import simulated
from meanmode.sweeps.engine.execution import run_sweep
from meanmode.sweeps.engine.sweep import Sweep

RESULTS = ("tcs", "rho", "r_tr", "mu_eff", "retention", "front")


@pytest.fixture(scope="module")
def together(tiny_sweep: Sweep) -> Sweep:
    """The tiny sweep in ensembles of three seeds and one."""
    return dataclasses.replace(tiny_sweep, ensemble=3)


def test_every_cell_is_in_one_ensemble(together: Sweep) -> None:
    units = together.units()
    assert sorted(index for unit in units for index in unit) == list(range(len(together.cells)))
    for unit in units:
        cells = [together.cells[index] for index in unit]
        assert len({dataclasses.replace(cell.setting, depth=0) for cell in cells}) == 1
        assert {cell.seed for cell in cells} in ({0, 1, 2}, {3})
        assert cells[-1].setting.depth == 24 and len(cells) in (2, 6)


def test_backward_ensembles_share_no_depth(together: Sweep) -> None:
    for unit in dataclasses.replace(together, backward=True).units():
        assert len({together.cells[index].setting for index in unit}) == 1


def test_an_ensemble_measures_what_its_seeds_measure_alone(
    together: Sweep, tiny_store: Path, tmp_path: Path
) -> None:
    path = tmp_path / "ensembles.zarr"
    run_sweep(together, path)
    found, alone = open_cells(path), open_cells(tiny_store)
    for name in RESULTS:
        np.testing.assert_allclose(found[name], alone[name], rtol=2e-3, atol=2e-4, err_msg=name)
    np.testing.assert_array_equal(found["status"], alone["status"])


def test_an_ensemble_is_the_unit_of_resumption(
    together: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, resumed = tmp_path / "whole.zarr", tmp_path / "resumed.zarr"
    for path in (whole, resumed):
        run_sweep(together, path)
    SweepWriter(resumed).write(1, {}, FAILED)
    sizes: list[int] = []
    simulate_ensemble = simulated.simulate_ensemble

    def counted(runs: list[object], **named: object) -> dict[str, np.ndarray]:
        sizes.append(len(runs))
        return simulate_ensemble(runs, **named)

    monkeypatch.setattr(simulated, "simulate_ensemble", counted)
    run_sweep(together, resumed, resume=True)
    assert sizes == [3]
    for name in RESULTS:
        np.testing.assert_array_equal(open_cells(resumed)[name], open_cells(whole)[name])


def test_another_membership_is_another_sweep(together: Sweep, tmp_path: Path) -> None:
    path = tmp_path / "store.zarr"
    run_sweep(together, path)
    with pytest.raises(StoreError, match="its ensemble is 3, asked for 2"):
        run_sweep(dataclasses.replace(together, ensemble=2), path, resume=True)


def test_an_empty_ensemble_is_refused(tiny_sweep: Sweep) -> None:
    with pytest.raises(ValueError, match="ensemble must be at least 1, got 0"):
        dataclasses.replace(tiny_sweep, ensemble=0)


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="cannot compute on device 'abacus'"):
        check_device("abacus")
