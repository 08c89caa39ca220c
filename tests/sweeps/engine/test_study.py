"""Studies of training runs: cells, stores, bitwise resume, statements and forecasts, the command line."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from meanmode.dit.config.presets import PRESETS
from meanmode.sim.store.files import StoreError, StoreExistsError
from meanmode.sim.store.sweep_store import DONE, TODO, open_cells, open_progress
from meanmode.sweeps.engine.execution import run_sweep
from meanmode.sweeps.engine.status import status_of
from meanmode.sweeps.engine.store_kinds import stored_plan
from meanmode.sweeps.engine.store_layout import check_same, lay_out
from meanmode.sweeps.engine.study import Case, Study, stored_study
from meanmode.sweeps.named.all_sweeps import SWEEPS, named_study
from meanmode.sweeps.studies.forecast_files import with_forecast, write_forecast

BASE = PRESETS["digits-16l"].with_fields({"depth": 2, "steps": 14})

STUDY = Study(
    name="critical_rate_depth",
    claim="tiny",
    base=BASE,
    cases=(
        Case(label="fast", options={"slope": 1e-3, "steps": 10}),
        Case(label="held", options={"interventions": ((3, "freeze:readers"),)}),
    ),
    seeds=3,
    first_seed=5,
    ensemble=2,
    signals_every=2,
    laws=("O1",),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study") / "s.zarr"
    assert run_sweep(STUDY, path) == []
    return path


def test_cells_are_cases_and_seeds() -> None:
    assert STUDY.units() == [(0, 1), (2,), (3, 4), (5,)]
    assert [cell.seed for cell in STUDY.cells] == [5, 6, 7] * 2
    for cell in STUDY.cells:
        training = cell.run.training
        assert training.seed == training.data_seed == cell.seed
    coordinates = {name: values for name, (values, _) in STUDY.coordinates().items()}
    assert coordinates["case"] == ["fast"] * 3 + ["held"] * 3
    assert coordinates["slope"] == [1e-3] * 3 + [5e-5] * 3
    assert json.loads(coordinates["interventions"][3]) == [[3, "freeze:readers"]]


def test_a_store_holds_outcomes_and_series(store: Path) -> None:
    data = open_cells(store)
    assert (data["status"] == DONE).all() and (data["onset_kind"] == 0).all()
    assert data["last_step"].values.tolist() == [10] * 3 + [14] * 3
    np.testing.assert_allclose(
        data["last_rate"], [1e-3 * 8**0.5 * 10] * 3 + [5e-5 * 8**0.5 * 14] * 3, rtol=1e-6
    )
    assert np.isfinite(data["loss"].values[0, :10]).all() and np.isnan(data["loss"].values[0, 10:]).all()
    measured = np.flatnonzero(np.isfinite(data["functional_step"].values[3])) + 1
    assert measured.tolist() == [5, 10]
    assert (np.flatnonzero(np.isfinite(data["g_mean"].values[3])) + 1).tolist() == [2, 4, 6, 8, 10, 12, 14]
    assert len({float(loss) for loss in data["loss"].values[:, 5]}) == 6


def test_a_killed_study_is_resumed_to_the_bit(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    run_sweep(STUDY, path)
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(path, mode="r+")
    group["status"][4] = TODO
    group["loss"][4] = np.nan
    run_sweep(STUDY, path, resume=True)
    for name in ("loss", "functional_step", "critical_rate", "tcs_image"):
        np.testing.assert_array_equal(open_cells(path)[name], open_cells(store)[name])


def test_the_study_is_known_from_its_store(store: Path) -> None:
    data = open_cells(store)
    assert json.dumps(stored_study(data.attrs).configuration()) == json.dumps(STUDY.configuration())
    assert stored_plan(data.attrs).units() == STUDY.units()
    assert status_of(store)["done"] == 6
    check_same(STUDY, store)
    with pytest.raises(StoreError, match="holds another sweep: its seeds is 3, asked for 4"):
        check_same(dataclasses.replace(STUDY, seeds=4), store)


STATED = dataclasses.replace(STUDY, held_out_seeds=1, reference_rate=0.02, expectation="nothing")


def test_what_is_stated_before_the_runs_is_stored_and_kept(tmp_path: Path) -> None:
    """A study that states nothing keeps its configuration; a statement cannot be changed afterwards."""
    fields = {"held_out_seeds", "reference_rate", "expectation"}
    assert not fields & set(STUDY.configuration()) and STUDY.statement() == {}
    path = tmp_path / "s.zarr"
    lay_out(STATED, path)
    attributes = open_progress(path).attrs
    assert attributes["plan"] == "study"
    assert stored_plan(attributes).configuration() == json.loads(json.dumps(STATED.configuration()))
    with pytest.raises(StoreError, match=r"its reference_rate is 0\.02, asked for 0\.03"):
        check_same(dataclasses.replace(STATED, reference_rate=0.03), path)
    with pytest.raises(StoreError, match="its expectation is nothing, asked for False"):
        check_same(dataclasses.replace(STATED, expectation=""), path)


def test_a_store_without_a_statement_can_be_resumed(store: Path) -> None:
    """Older versions did not store what a named study states."""
    check_same(STATED, store)


@pytest.mark.parametrize(("seeds", "held_out"), [(1, 1), (3, 1), (4, 2), (6, 2)])
def test_the_share_of_held_out_seeds_is_kept(seeds: int, held_out: int) -> None:
    assert STATED.with_options({}, seeds).held_out_seeds == held_out


def test_a_rate_is_a_share_of_the_reference_rate_at_its_depth() -> None:
    assert STATED.share_of(0.01, 16) == 0.5 and STATED.share_of(0.01, 64) == 1.0
    with pytest.raises(ValueError, match="critical_rate_depth states no reference_rate"):
        STUDY.share_of(0.01, 16)


def test_a_sweep_over_stacks_is_no_study(tiny_store: Path) -> None:
    with pytest.raises(StoreError, match="the store holds no study of training runs"):
        stored_study(open_cells(tiny_store).attrs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cases": ()}, "a study needs cases with distinct labels"),
        ({"cases": (Case(label="a"), Case(label="a"))}, "distinct labels"),
        ({"cases": (Case(label="a", options={"wide": 3}),)}, "unknown option 'wide'"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"held_out_seeds": 4}, r"held_out_seeds must be 0 to 3 \(seeds\), got 4"),
        ({"reference_rate": 0.0}, r"reference_rate must be positive, got 0\.0"),
    ],
)
def test_what_is_no_study_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(STUDY, **changes)


def test_a_forecast_goes_into_the_store_and_is_never_overwritten(tmp_path: Path) -> None:
    rows = [{"case": "fast", "predicted": 0.5, "predicted_edge": None}, {"case": "held", "predicted": 0.25}]
    path = tmp_path / "f.json"
    write_forecast({"study": STUDY.name, "rows": rows}, path)
    with pytest.raises(StoreExistsError, match="a forecast is never overwritten"):
        write_forecast({}, path)
    known = with_forecast(STUDY, path)
    values = known.layout().forecasts["predicted"][0]
    assert list(values) == [0.5] * 3 + [0.25] * 3
    other = dataclasses.replace(STUDY, cases=(*STUDY.cases, Case(label="new")))
    with pytest.raises(ValueError, match="says nothing about new"):
        with_forecast(other, path)
    with pytest.raises(ValueError, match=f"is a forecast of {STUDY.name}, not of stabilisers"):
        with_forecast(SWEEPS["stabilisers"], path)
    with pytest.raises(ValueError, match="token_law has a forecast of its own"):
        with_forecast(SWEEPS["token_law"], path)
    path.write_text("{")
    with pytest.raises(ValueError, match="is no forecast of a study"):
        with_forecast(STUDY, path)


def test_studies_on_the_command_line(mms, tmp_path: Path) -> None:
    status, out, _ = mms("sweep", "run", "stabilisers", "-n", "--seeds", "2")
    plan = json.loads(out)
    assert status == 0 and plan["cells"] == 26 and plan["seeds"] == 2 and plan["forecast"] == []
    status, _, err = mms("sweep", "run", "stabilisers", "--width", "32", "-n")
    assert status == 2 and "width is no option of its runs" in err
    status, _, err = mms("predict", "onset", "token_law", "--from", tmp_path)
    assert status == 2 and "unknown study 'token_law': choose one of critical_rate" in err


@pytest.mark.parametrize("name", [name for name, sweep in SWEEPS.items() if isinstance(sweep, Study)])
def test_every_named_study_can_be_run(name: str) -> None:
    study = named_study(name)
    assert study.name == name and study.cells and study.layout().variables
    for run in study.runs:
        assert np.isfinite(run.training.learning_rate(run.model.depth).rate(1))


@pytest.mark.parametrize("command", ["margin", "detect"])
def test_a_store_of_something_else_is_refused(command: str, tiny_store: Path, mms) -> None:
    status, out, err = mms(command, tiny_store)
    message = f"{tiny_store} holds a sweep over synthetic stacks: give the store of a study of training runs"
    assert status == 2 and out == "" and message in err


def test_what_has_no_table_says_so(store: Path, mms) -> None:
    committed = Path(__file__).parents[3] / "paper_figs" / "data" / "committor.zarr"
    status, _, err = mms("compare", "--markdown", committed)
    assert status == 2 and "there is no Markdown table of committor, rank_correlation" in err
    status, _, err = mms("compare", "--markdown", committed, store)
    assert status == 2 and "tables are of one kind of store, got committor_study, study" in err
    status, out, _ = mms("compare", "--markdown", store)
    assert status == 0 and out.startswith("| case | forecast (90 %)")


def test_margins_and_detection_of_a_study(store: Path, mms) -> None:
    rows = json.loads(mms("margin", store, "--json")[1])["cases"]
    assert [(row["case"], row["collapsed"], row["healthy"]) for row in rows] == [
        ("fast", 0, 3),
        ("held", 0, 3),
    ]
    views = json.loads(mms("detect", store, "--json")[1])["views"]
    assert views[0]["healthy"] == 6 and views[0]["logged"] == 72 and views[0]["false_alarms"] == 0
