"""Waiting times: survival curves, the cure model, scores compared with other libraries, and the commands."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, roc_auc_score

from meanmode.dit.train.ensemble_runs import train_runs
from meanmode.paper_figs.figures.waiting_time import draw
from meanmode.sim.store.files import StoreError
from meanmode.sim.store.sweep_store import DONE, open_cells
from meanmode.sim.store.sweep_writer import SweepWriter
from meanmode.sweeps.cli.statements import open_stated
from meanmode.sweeps.cli.waiting import waiting
from meanmode.sweeps.engine.spectrum_study import SCORES, scored
from meanmode.sweeps.engine.store_kinds import OpenedStudy
from meanmode.sweeps.engine.store_layout import lay_out
from meanmode.sweeps.engine.study import Case, Study
from meanmode.sweeps.named.waiting_time import (
    LAW,
    LINE_EXPONENT,
    LOWER_THRESHOLD,
    WAITING_TIME,
    WAITING_TIME_BETWEEN,
    WAITING_TIME_DEEP,
)
from meanmode.sweeps.named.waiting_time_spectrum import spectrum_of
from meanmode.sweeps.statistics.cure_model import CureModel
from meanmode.sweeps.statistics.half_rate import probabilities
from meanmode.sweeps.statistics.scores import auroc, brier, drawn_counts, survival_curve, with_interval
from meanmode.sweeps.studies.forecast_files import with_forecast
from meanmode.sweeps.studies.half_rate_forecast import half_rate_document
from meanmode.sweeps.studies.half_rates import half_rates
from meanmode.sweeps.studies.waiting_times import BY_LAW, predictors, stated_runs, waiting_document
from meanmode.theory.onset.functional_law import FunctionalLaw

DATA = Path(__file__).parents[3] / "paper_figs" / "data"

TRUE = np.array([-0.3, 1.5, 5.5, -0.4, np.log(2)])
"""Intercept and slope of the logit of the cured share and of the log scale, and the log shape."""


def simulated(seed: int, runs: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predictor, waiting times up to 600, and which runs collapsed."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=runs)
    cured = rng.random(runs) < 1 / (1 + np.exp(-(TRUE[0] - TRUE[1] * z)))
    times = np.exp(TRUE[2] + TRUE[3] * z) * rng.weibull(2.0, runs)
    times[cured] = np.inf
    return z, np.minimum(times, 600), times < 600


def raw(model: CureModel) -> np.ndarray:
    """The parameters for the unstandardised predictor, with the sign of the cured slope as in `TRUE`."""
    (a, b), (c, d) = model.cured, model.scale
    ratio = model.mean / model.spread
    found = [a - b * ratio, -b / model.spread, c - d * ratio, d / model.spread, np.log(model.shape)]
    return np.array(found)


def test_the_fit_finds_what_was_simulated() -> None:
    found = np.array([raw(CureModel.fit(*simulated(seed))) for seed in range(6)])
    errors = found.std(0, ddof=1) / np.sqrt(len(found))
    assert (np.abs(found.mean(0) - TRUE) < 4 * errors).all() and (errors < 0.15).all()


def test_the_fit_is_that_of_lifelines() -> None:
    """lifelines 0.30.0, ParametricRegressionFitter with this cumulative hazard, on simulated(0)."""
    model = CureModel.fit(*simulated(0))
    assert model.log_likelihood == pytest.approx(-1411.596618, abs=1e-5)
    np.testing.assert_allclose(raw(model), [-0.240726, 1.973371, 5.486781, -0.359993, 0.655853], atol=1e-4)
    assert model.log_likelihoods(*simulated(0)).sum() == pytest.approx(model.log_likelihood)


def test_density_and_survival_belong_together() -> None:
    model = CureModel.fit(*simulated(1))
    assert model.survival([0.0, -20.0], [0.0, 1e9]).tolist() == pytest.approx([1, 1], abs=1e-6)
    assert model.survival(20.0, 1e9) == pytest.approx(0, abs=1e-6)
    slope = (model.survival(0.3, 200.01) - model.survival(0.3, 199.99)) / 0.02
    assert np.exp(model.log_likelihoods([0.3], [200.0], [True])) == pytest.approx(-slope, rel=1e-6)


def test_a_predictor_that_says_nothing_is_no_obstacle() -> None:
    _, times, collapsed = simulated(2)
    model = CureModel.fit(np.full(400, 0.7), times, collapsed)
    survived = float(model.survival(0.7, 600.0))
    assert survived == pytest.approx(1 - collapsed.mean(), abs=0.01)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"collapsed": np.arange(400) < 4}, "needs at least 5 collapses, got 4"),
        ({"times": np.zeros(400)}, "waiting times must be positive, got 0"),
        ({"predictor": np.full(400, np.nan)}, "predictor of 400 runs is not finite"),
    ],
)
def test_runs_that_cannot_be_fitted_are_refused(change: dict[str, np.ndarray], message: str) -> None:
    runs = dict(zip(("predictor", "times", "collapsed"), simulated(0), strict=True))
    with pytest.raises(ValueError, match=message):
        CureModel.fit(**{**runs, **change})


def test_a_survival_curve_by_hand() -> None:
    """Five at risk at 1, four at 2 (one censored there), two at 3: shares 4/5, 3/4 and 1/2 survive."""
    collapsed = np.array([True, True, False, True, False])
    steps, survival = survival_curve(np.array([1.0, 2, 2, 3, 4]), collapsed)
    np.testing.assert_allclose(survival[np.searchsorted(steps, [0, 1, 2, 3])], [1, 0.8, 0.6, 0.3])
    assert survival[-1] == pytest.approx(0.3)


def test_scores_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    outcomes = rng.random(60) < 0.7
    probabilities = np.round(np.clip(0.5 + 0.3 * outcomes + 0.3 * rng.normal(size=60), 0, 1), 1)
    counts = drawn_counts(60)[:3]
    expected = [roc_auc_score(outcomes, probabilities, sample_weight=weights) for weights in counts]
    np.testing.assert_allclose(auroc(probabilities, outcomes, counts), expected)
    expected = [brier_score_loss(outcomes, probabilities, sample_weight=weights) for weights in counts]
    np.testing.assert_allclose(brier(probabilities, outcomes, counts), expected)
    assert np.isnan(auroc(probabilities, np.ones(60, bool), counts)).all()


def test_an_interval_is_that_of_the_resamples_and_the_value_that_of_the_runs() -> None:
    found = with_interval(np.array([7.0, *range(101)]))
    assert found == pytest.approx({"value": 7.0, "low": 5.0, "high": 95.0})
    counts = drawn_counts(50)
    assert (counts[0] == 1).all() and (counts.sum(1) == 50).all() and counts[1:].std() > 0.9


STUDY = dataclasses.replace(WAITING_TIME, cases=WAITING_TIME.cases[5:10], seeds=12, held_out_seeds=6)
"""The five rates of 16 blocks."""


def invent(study: Study, path: Path, seed: int) -> None:
    """Lay out a store with invented waiting times; some runs collapse by step 50, some diverge plainly."""
    lay_out(study, path)
    writer, rng = SweepWriter(path), np.random.default_rng(seed)
    for index, cell in enumerate(study.cells):
        share = cell.run.training.rate / 0.0165 * (cell.run.model.depth / 16) ** 0.5
        drawn = np.round(250 * share**-3 * rng.weibull(1.5)) + 25
        step = 40.0 if index % 10 == 7 else drawn
        kind = 2 if index % 12 == 11 else int(step <= 600)
        series = {name: share * np.exp(0.1 * rng.normal(size=600)) for name in ("grad_norm", "loss")}
        series["functional_step"] = np.where(np.arange(1, 601) % 5, np.nan, series["grad_norm"])
        ends = {"onset_step": step if kind else np.nan, "onset_kind": kind, "last_step": min(step, 600)}
        writer.write(index, {**series, **{name: np.array(value) for name, value in ends.items()}}, DONE)


def analysed(
    stores: Sequence[Path], forecasts: Path, spectra: Sequence[Path] = (), law: Path = DATA / LAW
) -> dict:
    """The document that `mms waiting` writes."""
    return waiting_document(
        [open_stated(store) for store in stores],
        forecasts=forecasts,
        law=law,
        exponent=LINE_EXPONENT,
        spectra=[open_cells(store) for store in spectra],
    )


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Invented waiting times, and spectra of the same runs."""
    folder = tmp_path_factory.mktemp("waiting")
    paths = (folder / "waiting_time.zarr", folder / "waiting_time_spectrum.zarr")
    invent(STUDY, paths[0], 5)
    lay_out(spectrum_of(STUDY), paths[1])
    losses, spectra = open_cells(paths[0])["loss"].values, SweepWriter(paths[1])
    for index, cell in enumerate(STUDY.cells):
        values = {name: np.array(cell.run.training.rate / 0.0165) for name in SCORES}
        spectra.write(index, {"loss": losses[index, :50], **values}, DONE)
    return paths


@pytest.fixture(scope="module")
def document(stores: tuple[Path, Path]) -> dict:
    return analysed([stores[0]], DATA, [stores[1]])


def test_the_document_says_what_the_store_holds(document: dict, stores: tuple[Path, Path]) -> None:
    kinds = open_cells(stores[0])["onset_kind"].values
    sizes = document["sizes"]
    assert (sizes["runs"], sizes["held_out"], sizes["diverged"]) == (60, 30, 5)
    assert sizes["collapsed"] == (kinds == 1).sum() == sum(case["collapsed"] for case in document["cases"])
    assert [case["share"] for case in document["cases"]] == [0.75, 0.87, 1.0, 1.13, 1.25]
    assert [case["predicted"] for case in document["cases"]] == [0.1, 0.3, 0.6, 0.85, 0.97]
    assert all(case["low"] <= case["measured"] <= case["high"] for case in document["cases"])


def test_the_half_rate_is_that_of_the_runs(document: dict) -> None:
    """It equals that of a logistic regression by another library, and is compared with its forecast."""
    (row,) = document["half_rates"]
    assert (row["runs"], row["collapsed"]) == (60, document["sizes"]["collapsed"])
    rates, rng = np.repeat([0.010, 0.011, 0.012, 0.013], 30), np.random.default_rng(1)
    collapsed = rng.random(120) < probabilities(rates, 0.0115, 0.06)
    runs = pd.DataFrame({"depth": 16, "rate": rates, "collapsed": collapsed})
    (row,) = half_rates(runs, {})
    model = LogisticRegression(C=np.inf).fit(np.log(runs[["rate"]].to_numpy()), runs["collapsed"])
    half = float(np.exp(-model.intercept_[0] / model.coef_[0, 0]))
    assert row["value"] == pytest.approx(half, rel=0.005)
    assert row["spread"] == pytest.approx(1 / model.coef_[0, 0], rel=0.1)
    assert row["low"] < half < row["high"] and row["predicted"] is row["covered"] is None
    forecast = {"depth": 16, "predicted": half, "predicted_low": half / 1.1, "predicted_high": half * 1.1}
    (row,) = half_rates(runs, {"waiting_time": {"half_rates": [forecast]}})
    assert row["predicted"] == half and row["covered"] is True
    assert half_rates(runs[runs["rate"] == 0.011], {}) == []


def test_half_rates_are_forecast_from_ramps_and_waiting_times(tmp_path: Path) -> None:
    """The committed stores give the committed forecast, half rates and shares."""
    names = ("critical_rate_depth", "waiting_time", "waiting_time_low")
    sources = [OpenedStudy.open(DATA / f"{name}.zarr") for name in names]
    found = half_rate_document(WAITING_TIME_DEEP, sources, written="")
    committed = json.loads((DATA / "waiting_time_deep.forecast.json").read_text())
    for name in ("half_rates", "rows"):
        for row, held in zip(found[name], committed[name], strict=True):
            assert row == pytest.approx(held)
    with pytest.raises(ValueError, match="is a forecast of waiting times: mms waiting reads it"):
        with_forecast(WAITING_TIME_DEEP, DATA / "waiting_time_deep.forecast.json")
    with pytest.raises(ValueError, match="waiting_time_deep is forecast from ramps and from waiting times"):
        half_rate_document(WAITING_TIME_DEEP, sources[:1], written="")


def test_every_predictor_is_scored_on_the_held_out_runs(document: dict) -> None:
    rows = {row["predictor"]: row for row in document["scores"]}
    assert len(rows) == 10 and sum(row["stated"] for row in rows.values()) == 6
    assert all(sum(one["runs"] for one in row["calibration"]) == 30 for row in rows.values())
    assert list(rows["rate"]["against"]) == ["rate sqrt(depth)"]
    assert rows["rate"]["against"]["rate sqrt(depth)"]["brier"]["value"] == pytest.approx(0, abs=1e-4)
    row = rows["ln gradient norm, steps 20 to 50"]
    difference = row["against"]["rate"]["auroc"]
    assert difference["value"] == pytest.approx(row["auroc"]["value"] - rows["rate"]["auroc"]["value"])
    assert difference["low"] <= difference["value"] <= difference["high"]


def test_a_landmark_leaves_out_what_collapsed_before(document: dict) -> None:
    early = document["sizes"]["collapsed_early"]
    (row, *_) = document["scores_behind_landmark"]
    assert early > 0 and 30 - early <= sum(one["runs"] for one in row["calibration"]) < 30


def test_the_figure_is_drawn_from_the_document(document: dict) -> None:
    figure = draw(document)
    said = " ".join(figure.get_supxlabel().split())
    assert "Width 16, 16 blocks, 16 + 4 tokens, batch 4, 12 seeds per curve" in said
    assert all(panel.lines for panel in figure.axes) and any(panel.get_xlabel() for panel in figure.axes)
    with pytest.raises(ValueError, match="the document has no cases"):
        draw({})


@pytest.fixture
def command(stores: tuple[Path, Path]) -> Callable[..., Result]:
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(waiting, [str(stores[0]), "--forecasts", str(DATA), *arguments])

    return run


def test_the_command_writes_what_it_says(command: Callable[..., Result], tmp_path: Path) -> None:
    out = tmp_path / "scores" / "waiting.json"
    said = command("--json", "--out", str(out))
    assert not said.exit_code and json.loads(said.stdout) == json.loads(out.read_text())
    assert [row["predictor"] for row in json.loads(said.stdout)["scores"]][:2] == ["rate", "rate sqrt(depth)"]
    table = command().stdout
    assert "held-out seeds, not collapsed by step 50" in table and "auroc - rate sqrt(depth)" in table


def test_other_runs_and_other_studies_are_refused(stores: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds spectral scores of networks: give the store of a study"):
        analysed([stores[1]], DATA)
    with pytest.raises(StoreError, match="critical_rate_depth is no study of waiting times"):
        analysed([DATA / "critical_rate_depth.zarr"], DATA)
    with pytest.raises(ValueError, match="1 studies need as many spectral studies, or none, got 2"):
        analysed([stores[0]], DATA, [stores[1]] * 2)
    with pytest.raises(ValueError, match="holds no forecast"):
        analysed([stores[0]], tmp_path)
    lay_out(STUDY, tmp_path / "unfinished.zarr")
    with pytest.raises(StoreError, match="waiting_time has 60 cells to do or failed"):
        analysed([tmp_path / "unfinished.zarr"], DATA)
    changed = open_cells(stores[1])
    changed["loss"][3, 7] += 1
    with pytest.raises(StoreError, match="of other runs: the losses of 50 steps differ"):
        predictors(open_cells(stores[0]), law(), LINE_EXPONENT, changed)


def law() -> FunctionalLaw:
    return FunctionalLaw.of_document(json.loads((DATA / LAW).read_text())["law"])


def test_a_study_that_is_predicted_is_held_out_whole(stores: tuple[Path, Path], tmp_path: Path) -> None:
    """Only its runs are scored, by models fitted on the other study, and more predictors count as stated."""
    name = WAITING_TIME_BETWEEN.name
    other = dataclasses.replace(STUDY, name=name, first_seed=1500, held_out_seeds=STUDY.seeds)
    lay_out(other, tmp_path / "between.zarr")
    writer, data = SweepWriter(tmp_path / "between.zarr"), open_cells(stores[0])
    for cell in range(len(other.cells)):
        values = {variable: np.asarray(data[variable].values[cell]) for variable in other.layout().variables}
        writer.write(cell, values, DONE)
    for study in (name, "waiting_time"):
        shares = {STUDY.share_of(run.training.rate, 16) for run in STUDY.runs}
        rows = [{"share": share, "predicted": 0.5} for share in shares]
        (tmp_path / f"{study}.forecast.json").write_text(json.dumps({"rows": rows}))
    (tmp_path / LAW).write_text((DATA / LAW).read_text())
    document = analysed([stores[0], tmp_path / "between.zarr"], tmp_path)
    assert document["sizes"]["held_out"] == 60 and document["sizes"]["runs"] == 120
    assert [row["predictor"] for row in document["scores"] if not row["stated"]] == ["rate depth^0.62"]
    by_law = predictors(open_cells(stores[0]), law(), LINE_EXPONENT)[BY_LAW]
    rates = np.array([cell.run.training.rate for cell in STUDY.cells])
    np.testing.assert_allclose(by_law, rates / law().constant_rate(16))
    (tmp_path / LAW).write_text('{"law": {"foo": 1}}')
    with pytest.raises(ValueError, match="not the constants of a functional-step law"):
        analysed([stores[0]], tmp_path, law=tmp_path / LAW)
    with pytest.raises(ValueError, match=f"all seeds of {name} are held out: give studies to fit on"):
        analysed([tmp_path / "between.zarr"], tmp_path)


def test_a_store_without_a_statement_takes_that_of_the_named_study() -> None:
    """Committed stores are older than the statement; a store that states something keeps its own."""
    stated = open_stated(DATA / "waiting_time_low.zarr")
    assert OpenedStudy.open(stated.path).study.statement() == {}
    assert stated.study.statement() == {"reference_rate": LOWER_THRESHOLD, "held_out_seeds": 14}
    runs = stated_runs(stated)
    assert runs["held_out"].sum() == len(runs) / 2 and not runs["whole"].any()
    assert stated_runs(open_stated(DATA / "waiting_time_between.zarr"))["whole"].all()
    with pytest.raises(ValueError, match="waiting_time_low states no reference_rate"):
        stated_runs(OpenedStudy.open(stated.path))


OWN = Study(
    name="my_own_study",
    claim="a study that this project does not know",
    base=WAITING_TIME.base,
    cases=tuple(
        Case(
            label=f"{depth} deep, {share:g}",
            options={"depth": depth, "rate": 0.02 * share * (16 / depth) ** 0.5},
        )
        for depth in (6, 12)
        for share in (0.5, 0.8, 1.1)
    ),
    seeds=20,
    first_seed=7,
    signals_every=2,
    reference_rate=0.02,
    held_out_seeds=5,
    expectation="half of the runs collapse at 0.8",
)


def test_a_study_of_your_own_is_forecast_and_analysed(mms, tmp_path: Path) -> None:
    """A made-up name: its statement is in its store, and it is forecast, measured and scored by that."""
    store, later = tmp_path / "own.zarr", tmp_path / "later.zarr"
    invent(OWN, store, 3)
    lay_out(dataclasses.replace(OWN, name="my_next_study", seeds=6), later)
    assert open_stated(store).study == OWN
    ramps = DATA / "critical_rate_depth.zarr"
    for path, name in ((store, OWN.name), (later, "my_next_study")):
        out = tmp_path / f"{name}.forecast.json"
        status, _, err = mms("predict", "onset", path, "--from", ramps, "--from", store, "--out", out)
        assert status == 0 and err == ""
        document = json.loads(out.read_text())
        assert document["study"] == name and [row["depth"] for row in document["half_rates"]] == [6, 12]
        assert [row["share"] for row in document["rows"]] == [0.5, 0.8, 1.1] * 2
    status, out, err = mms(
        *("waiting", store, "--forecasts", tmp_path, "--law", DATA / LAW, "--exponent", 0.5, "--json")
    )
    assert status == 0 and err == ""
    document = json.loads(out)
    assert document["thresholds"] == {OWN.name: 0.02}
    assert (document["sizes"]["runs"], document["sizes"]["held_out"]) == (120, 30)
    assert [case["share"] for case in document["cases"]] == [0.5, 0.8, 1.1] * 2
    scored = {row["predictor"]: row["brier"]["value"] for row in document["scores"]}
    assert scored["rate depth^0.5"] == pytest.approx(scored["rate sqrt(depth)"])


def test_spectra_are_those_of_the_runs_themselves() -> None:
    base = STUDY.base.with_fields({"depth": 2, "rate": 0.02, "warmup": 1})
    few = dataclasses.replace(STUDY, base=base, cases=STUDY.cases[:1], seeds=2, held_out_seeds=1)
    study = spectrum_of(few)
    cells = [(number, cell) for number, cell in enumerate(study.cells)]
    runs = [cell.run.with_fields({"depth": 2, "steps": 6}) for _, cell in cells]
    cells = [(n, dataclasses.replace(cell, run=run)) for (n, cell), run in zip(cells, runs, strict=True)]
    found = scored(cells, device="cpu")
    alone = train_runs(runs, functional_every=2)
    for (values, status), run in zip(found, alone, strict=True):
        assert status == DONE
        np.testing.assert_array_equal(values["loss"], run.series["loss"].values)
        assert all(0 <= values[name] <= 1 for name in SCORES)
        assert values["koopman_share_start_unfiltered"] < 1 and values["koopman_share_start"] < 0.5
    (one, _), (other, _) = found
    assert one["koopman_share_trained_unfiltered"] != other["koopman_share_trained_unfiltered"]
