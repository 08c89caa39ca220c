"""Sweeps: cells and shared runs, resuming after a kill, workers, and the comparison."""

import dataclasses
import json
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

import meanmode.sweeps.engine.simulated
from meanmode.sim.observe.observable_names import BACKWARD_OBSERVABLES
from meanmode.sim.simulate import simulate
from meanmode.sim.store.sweep_store import DIVERGED, DONE, FAILED, PROVENANCE, TODO, open_cells
from meanmode.sim.store.sweep_writer import SweepWriter
from meanmode.sweeps.engine.execution import run_sweep
from meanmode.sweeps.engine.store_layout import lay_out
from meanmode.sweeps.engine.sweep import Sweep
from meanmode.sweeps.named.all_sweeps import named_sweep
from meanmode.sweeps.studies.comparison import compare, onset_cells
from meanmode.theory.meanfield.predicted_front import predict_front
from meanmode.theory.setting import Setting


def test_depth_is_a_prefix_and_not_a_run(tiny_sweep: Sweep) -> None:
    units = tiny_sweep.units()
    assert len(tiny_sweep.cells) == 32 and len(units) == 16
    for unit in units:
        assert [tiny_sweep.cells[index].setting.depth for index in unit] == [6, 24]
    assert len({cell.key() for cell in tiny_sweep.cells}) == 32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"axes": {"colour": (1,)}}, "unknown axis 'colour'"),
        ({"axes": {"tokens": ()}}, "axis tokens needs distinct values"),
        ({"axes": {"tokens": (4, 4)}}, "axis tokens needs distinct values"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"axes": {"tokens": (4, 1)}}, "tokens must be at least 2, got 1"),
    ],
)
def test_bad_sweeps_are_refused(tiny_sweep: Sweep, change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(tiny_sweep, **change)


def test_unknown_sweep_is_named() -> None:
    with pytest.raises(ValueError, match="unknown sweep 'x': choose one of collapse_front"):
        named_sweep("x")


def test_every_cell_is_done_and_carries_its_forecast(tiny_sweep: Sweep, tiny_store: Path) -> None:
    data = open_cells(tiny_store)
    assert (data["status"] == DONE).all()
    index = next(i for i, cell in enumerate(tiny_sweep.cells) if cell.setting.merge == "plain")
    expected = predict_front(tiny_sweep.cells[index].setting)
    assert data["predicted_front"].values[index] == pytest.approx(expected.front)
    without = data["predicted_front"].values[data["merge"].values == "mv_split"]
    assert np.isnan(without).all()


def test_resume_computes_only_what_is_missing(
    tiny_sweep: Sweep, tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Path(shutil.copytree(tiny_store, tmp_path / "s.zarr"))
    group = zarr.open_group(store, mode="r+")
    group["status"][9] = TODO
    group["tcs"][9] = np.nan
    calls = []
    simulate = meanmode.sweeps.engine.simulated.simulate
    monkeypatch.setattr(
        meanmode.sweeps.engine.simulated,
        "simulate",
        lambda *given, **named: calls.append(given) or simulate(*given, **named),
    )
    run_sweep(tiny_sweep, store, resume=True)
    assert len(calls) == 1
    resumed, whole = (open_cells(path).drop_vars(PROVENANCE) for path in (store, tiny_store))
    xr.testing.assert_identical(resumed, whole)


def test_a_damaged_cell_is_computed_again(
    tiny_sweep: Sweep,
    tiny_store: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    result_files,
) -> None:
    store = Path(shutil.copytree(tiny_store, tmp_path / "s.zarr"))
    (chunk,) = (path for path in (store / "rho" / "c" / "3").rglob("*") if path.is_file())
    chunk.write_bytes(b"torn")
    run_sweep(tiny_sweep, store, resume=True)
    assert "1 finished cells had lost their data" in capsys.readouterr().err
    assert result_files(store) == result_files(tiny_store)


def test_another_sweep_is_not_resumed(tiny_sweep: Sweep, tiny_store: Path) -> None:
    other = tiny_sweep.with_options({"tokens": (4, 16)})
    with pytest.raises(ValueError, match=r"holds another sweep: its axes\.tokens is .* asked for"):
        run_sweep(other, tiny_store, resume=True)
    with pytest.raises(ValueError, match="already exists: pass --resume"):
        run_sweep(tiny_sweep, tiny_store)


def test_a_diverging_stack_is_a_result(tiny_sweep: Sweep, tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    axes = {"weight_std": (1e12,), "depth": (3,), "merge": ("plain",), "tokens": (4,)}
    run_sweep(tiny_sweep.with_options(axes, seeds=2), store)
    assert (open_cells(store)["status"] == DIVERGED).all()
    (row,) = compare([store])["rows"]
    assert row["n"] == 0 and row["n_diverged"] == 2 and row["measured"] is None


KILL_RUN = (
    *("sweep", "run", "collapse_front", "--width", "32", "--heads", "2", "--tokens", "4,9", "--seeds", "12"),
    *("--weight-std", "0.2", "--input-cosine", "0.1", "--depth", "10,40"),
)


def test_killed_at_random_moments_and_resumed_is_bitwise_the_uninterrupted_store(
    start, tmp_path: Path, result_files
) -> None:
    whole, killed = tmp_path / "whole.zarr", tmp_path / "killed.zarr"
    assert start(*KILL_RUN, "--out", whole).codes() == [0]
    waits, kills = random.Random(5), 0
    for _ in range(200):
        process = start(*KILL_RUN, "--out", killed, "--resume")
        before = done_cells(killed)
        while process.running and done_cells(killed) <= before:
            time.sleep(0.01)
        time.sleep(waits.uniform(0, 0.3))
        if not process.running:
            break
        assert process.kill() == [-signal.SIGKILL]
        kills += 1
        if kills == 5:
            last = start(*KILL_RUN, "--out", killed, "--resume")
            assert last.codes() == [0], last.said
            break
    assert kills == 5
    assert result_files(killed) == result_files(whole)


def done_cells(store: Path) -> int:
    """Number of cells whose status file exists."""
    return len(list((store / "status" / "c").glob("*"))) if store.exists() else 0


@pytest.fixture
def crafted(tiny_store: Path, tmp_path: Path) -> Path:
    """A store with invented fronts, whose comparison is known."""
    store = Path(shutil.copytree(tiny_store, tmp_path / "crafted.zarr"))
    group = zarr.open_group(store, mode="r+")
    data = open_cells(store)
    plain = np.flatnonzero((data["merge"].values == "plain") & (data["depth"].values == 24))
    first, second = plain[data["tokens"].values[plain] == 4], plain[data["tokens"].values[plain] == 9]
    group["predicted_front"][first], group["predicted_front_std"][first] = 11.0, 1.0
    group["predicted_fraction"][first] = 1.0
    fronts = SweepWriter(store).arrays["front"]
    fronts[first] = np.array([8.0, 9, 11, 12])
    group["predicted_fraction"][second], group["predicted_restricted"][second] = 0.7, 20.0
    fronts[second] = np.array([10.0, 12, np.nan, np.nan])
    return store


def test_comparison_of_known_numbers(crafted: Path) -> None:
    document = compare([crafted])
    rows = {(row["depth"], row["tokens"], row["merge"]): row for row in document["rows"]}
    row = rows[24, 4, "plain"]
    assert (row["quantity"], row["predicted"], row["measured"], row["n"]) == ("front", 11.0, 10.0, 4)
    assert row["measured_std"] == pytest.approx(np.std([8, 9, 11, 12], ddof=1))
    assert row["measured_sem"] == pytest.approx(row["measured_std"] / 2)
    assert row["z"] == pytest.approx(-1 / row["measured_sem"])
    assert row["relative_error"] == pytest.approx(0.1)
    assert row["spread_ratio"] == pytest.approx(1 / row["measured_std"])
    censored = rows[24, 9, "plain"]
    assert (censored["quantity"], censored["measured"]) == ("front_restricted", (10 + 12 + 24 + 24) / 4)
    assert (censored["n"], censored["n_collapsed"]) == (4, 2)
    silent = rows[24, 4, "mv_split"]
    assert silent["quantity"] == "no_front" and silent["predicted"] is None and silent["measured"] is None
    json.dumps(document, allow_nan=False)


def test_unfinished_and_failed_seeds_are_left_out_and_counted(crafted: Path) -> None:
    group = zarr.open_group(crafted, mode="r+")
    data = open_cells(crafted)
    cells = np.flatnonzero(
        (data["merge"].values == "plain") & (data["depth"].values == 24) & (data["tokens"].values == 4)
    )
    group["status"][cells[0]], group["status"][cells[1]] = TODO, FAILED
    row = next(
        r for r in compare([crafted])["rows"] if (r["depth"], r["tokens"], r["merge"]) == (24, 4, "plain")
    )
    assert row["n"] == 2 and row["n_to_do"] == 1 and row["measured"] == 11.5


def test_onset_lists_every_finished_cell(crafted: Path) -> None:
    cells = onset_cells(open_cells(crafted))
    assert len(cells) == 32
    assert {"depth", "tokens", "merge", "seed", "front"} <= set(cells[0])
    assert all(cell["front"] is None for cell in cells if cell["merge"] == "mv_split")


def test_writer_knows_no_other_cells(tiny_store: Path) -> None:
    assert SweepWriter(tiny_store).remaining() == ([], [])


@pytest.fixture(scope="module")
def backward_sweep() -> Sweep:
    """Six short cells, forward and backward."""
    return Sweep(
        name="tiny_backward",
        claim="tiny",
        base=Setting(width=32, heads=2, tokens=4, weight_std=0.2),
        axes={"depth": (2, 4), "adjoint_cosine": (0.0, 0.5, 0.9)},
        seeds=1,
        laws=("G1", "A2"),
        backward=True,
    )


def test_a_backward_cell_is_run_at_its_own_depth(backward_sweep: Sweep) -> None:
    assert backward_sweep.units() == [(index,) for index in range(6)]
    forward = dataclasses.replace(backward_sweep, backward=False)
    assert [len(unit) for unit in forward.units()] == [2, 2, 2]
    assert backward_sweep.with_options({"tokens": (9,)}).backward


def test_only_a_backward_sweep_says_so(backward_sweep: Sweep, tiny_sweep: Sweep) -> None:
    """Stores older than backward sweeps keep their configuration."""
    assert backward_sweep.configuration()["backward"] is True
    assert "backward" not in tiny_sweep.configuration()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_backward_store_holds_both_passes(backward_sweep: Sweep, tmp_path: Path, workers: int) -> None:
    store = tmp_path / "s.zarr"
    run_sweep(backward_sweep, store, workers=workers)
    data = open_cells(store)
    assert (data["status"] == DONE).all()
    for index, cell in enumerate(backward_sweep.cells):
        blocks = cell.setting.depth + 1
        for name, values in simulate(cell.setting, cell.seed, backward=True).items():
            np.testing.assert_array_equal(data[name].values[index, :blocks], values)
            assert np.isnan(data[name].values[index, blocks:]).all()
    for name, (dims, definition) in BACKWARD_OBSERVABLES.items():
        assert data[name].dims == ("cell", *dims) and data[name].attrs["long_name"] == definition
    assert SweepWriter(store).remaining() == ([], [])
    with pytest.raises(ValueError, match="its backward is True, asked for False"):
        run_sweep(dataclasses.replace(backward_sweep, backward=False), store, resume=True)


def test_gradients_that_diverge_are_a_result(
    backward_sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflowing(setting: Setting, seed: int, **named: object) -> dict[str, np.ndarray]:
        values = simulate(setting, seed, **named)
        values["adjoint_tcs"][0] = np.nan
        return values

    monkeypatch.setattr(meanmode.sweeps.engine.simulated, "simulate", overflowing)
    run_sweep(backward_sweep, tmp_path / "s.zarr")
    assert (open_cells(tmp_path / "s.zarr")["status"] == DIVERGED).all()


def test_the_token_law_sweep_covers_its_regimes() -> None:
    sweep = named_sweep("token_law")
    assert len(sweep.cells) == len(sweep.units()) == 9 * 16
    assert {cell.setting.adjoint_cosine for cell in sweep.cells} == {0.0, 0.1, 0.5}
    assert {cell.setting.tokens for cell in sweep.cells} == {16, 64, 256}
    assert sweep.backward and sweep.base.depth == 48 and sweep.base.weight_std == 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": (5,)}, "mixers is a list of cases with a depth each: it takes no other depth"),
        ({"width": (32, 64)}, "mixers is a list of cases: width takes one value, got"),
    ],
    ids=str,
)
def test_options_that_a_list_of_cases_would_ignore_are_refused(
    options: dict[str, tuple[int, ...]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        named_sweep("mixers").with_options(options)
    assert named_sweep("mixers").with_options({"width": (64,)}).settings[0].width == 64


def test_a_single_cell_can_be_asked_for_before_it_is_done(tiny_sweep: Sweep, tmp_path: Path) -> None:
    sweep = dataclasses.replace(
        tiny_sweep,
        axes={name: values[:1] for name, values in tiny_sweep.axes.items()},
        seeds=1,
    )
    store = tmp_path / "s.zarr"
    lay_out(sweep, store)
    assert open_cells(store)["status"].values.tolist() == [TODO]
    run_sweep(sweep, store, resume=True)
    assert open_cells(store)["status"].values.tolist() == [DONE]
