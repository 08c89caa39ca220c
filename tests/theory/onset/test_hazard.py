"""The hazard of law O3 on simulated runs: what was simulated is found, and every schedule has a survival."""

import dataclasses
import json

import numpy as np
import pytest

from meanmode.theory.laws.escape import cumulated_ramp, ramp_exponents
from meanmode.theory.onset.hazard import Hazard
from meanmode.theory.onset.hazard_likelihood import PARAMETERS, START, WaitingRuns, rates_of

TRUE = Hazard(level=-6.2, steepness=6.0, ageing=-0.15, softening=0.2, youth=0.2, coherence=0.0068, spread=0.1)
LAW = dataclasses.replace(TRUE, delay=0, youth=0, spread=0)
"""Law O3 alone, with a b that depends on the depth."""

WARMUP = np.minimum(1.0, np.arange(1, 601) / 20)


def simulated(hazard: Hazard, rates: np.ndarray, depth: int, runs: int, seed: int) -> WaitingRuns:
    """Runs that collapse at the first step at which the hazard so far exceeds an exponential number."""
    random = np.random.default_rng([seed, depth, runs])
    cumulated = -np.log(np.maximum(hazard.survival(rates, depth), 1e-300))
    times = 1 + np.searchsorted(cumulated, random.exponential(size=runs))
    return WaitingRuns(
        depth=depth,
        rates=rates,
        times=np.minimum(times, len(rates)).astype(float),
        collapsed=times <= len(rates),
    )


RUNS = [
    simulated(TRUE, 0.0116 * share * (16 / depth) ** 0.6 * WARMUP, depth, 60, seed)
    for depth in (8, 16, 32)
    for seed, share in enumerate((0.8, 1.0, 1.25, 1.6))
]


@pytest.fixture(scope="module")
def fitted() -> Hazard:
    return Hazard.fit(RUNS, coherence=TRUE.coherence, spread=TRUE.spread, samples=40)


def test_the_fit_finds_what_was_simulated(fitted: Hazard) -> None:
    errors = fitted.samples.std(0)
    for name, error in zip(PARAMETERS, errors, strict=True):
        assert abs(getattr(fitted, name) - getattr(TRUE, name)) < 4 * error, name
    assert (errors < [0.3, 0.8, 0.4, 0.2, 0.2]).all()


WRONG = {"steepness": 3.0, "softening": 0.0, "ageing": 1.0, "youth": 0.0}


def test_a_wrong_form_scores_lower_on_other_runs(fitted: Hazard) -> None:
    """Each term that was simulated and is left out, and a hazard half as steep, cost log score."""
    forms = [({name: value}, {}) for name, value in WRONG.items()] + [({}, {"delay": 0.0})]
    others = [simulated(TRUE, group.rates, group.depth, 400, 90 + index) for index, group in enumerate(RUNS)]

    def score(hazard: Hazard) -> float:
        return float(np.mean(np.concatenate([hazard.log_scores(group) for group in others])))

    best = score(fitted)
    for fixed, form in forms:
        options = {"spread": TRUE.spread, **form}
        wrong = Hazard.fit(RUNS, coherence=TRUE.coherence, fixed=fixed, samples=0, **options)
        assert {name: getattr(wrong, name) for name in fixed} == fixed
        assert score(wrong) < best - 0.002


def test_a_ramp_is_that_of_the_law_the_better_the_longer_it_is() -> None:
    """The median of a ramp nears law O3's like 1 / t, as its sum over steps nears an integral."""
    hazard = LAW
    slopes, errors = np.array([2e-5, 2e-6, 2e-7]), []
    level = np.exp(hazard.level) / 0.0116**hazard.steepness * 100.0**-hazard.ageing
    for slope in slopes:
        rates = slope * np.arange(1, round(0.03 / slope))
        median = hazard.median(rates, 16)
        needed = cumulated_ramp(level, 1.0, hazard.steepness, hazard.ageing, slope, median)
        errors.append(abs(needed / np.log(2) - 1))
    assert errors[-1] < 2e-3
    orders = np.diff(np.log(errors)) / np.diff(np.log(slopes ** (1 - ramp_exponents(6.0, -0.15)[0])))
    assert orders == pytest.approx(1, abs=0.15)


def test_a_factor_of_the_rates_has_its_probability(fitted: Hazard) -> None:
    rates = 0.01 * WARMUP
    factor = fitted.factor(rates, 24, 0.3)
    assert 1 - fitted.survival(factor * rates, 24)[-1] == pytest.approx(0.3)
    again = fitted.factors(rates, 24, 0.3)
    assert again.min() < factor < again.max()
    one = dataclasses.replace(fitted, **dict(zip(PARAMETERS, fitted.samples[0].tolist(), strict=True)))
    assert again[0] == pytest.approx(one.factor(rates, 24, 0.3), rel=1e-3)
    assert fitted.factor(rates[:START], 24, 0.3) == np.inf, "nobody is at risk"


class Jump:
    """A low rate, then a high one."""

    def rate(self, step: int) -> float:
        return 1e-3 if step <= 100 else 0.02


@pytest.mark.parametrize(
    "schedule",
    [
        pytest.param(Jump(), id="jump"),
        pytest.param(5e-5 * np.arange(1, 401), id="ramp"),
        pytest.param(0.02 * np.cos(np.linspace(0, np.pi / 2, 400)), id="cosine"),
        pytest.param(np.repeat([0.0, 0.01, 0.02, 0.0], 100), id="steps, with rests"),
    ],
)
def test_every_schedule_has_a_survival(schedule: object) -> None:
    survival, rates = TRUE.survival(schedule, 16, 400), rates_of(schedule, 400)
    assert survival.shape == (400,) and (survival[:START] == 1).all()
    assert (np.diff(survival) <= 0).all() and 0 < survival[-1] < 0.9
    assert survival == pytest.approx(TRUE.survival(rates, 16))
    assert (TRUE.survival(rates, 64) <= survival).all(), "deeper runs collapse earlier"
    median = TRUE.median(schedule, 16, 400)
    if survival[-1] < 0.5:
        assert np.interp(median, np.arange(1, 401), survival) == pytest.approx(0.5, abs=0.01)
    else:
        assert median == np.inf


def test_intervals_hold_the_runs_and_medians_of_the_hazard(fitted: Hazard) -> None:
    """90 % intervals of the fit hold about that many runs, and medians of 8, that the truth makes."""
    rates = 5e-5 * np.arange(1, 1201)
    found = fitted.forecast(rates, 16, last_step=400, seeds=8, interval=0.9)
    times = simulated(TRUE, rates, 16, 2000, 7).times
    assert 0.84 < np.mean((times >= found.run_low) & (times <= found.run_high)) < 0.95
    medians = np.median(times.reshape(-1, 8), axis=1)
    assert 0.78 < np.mean((medians >= found.median_low) & (medians <= found.median_high)) < 0.99
    assert found.run_low < found.median_low < found.median < found.median_high < found.run_high
    assert found.share_low < np.mean(times <= 400) < found.share_high


def test_a_document_holds_the_hazard(fitted: Hazard) -> None:
    again = Hazard.of_document(json.loads(json.dumps(fitted.document())))
    options = {"last_step": 100, "seeds": 4, "interval": 0.9}
    rates = 0.02 * WARMUP
    assert again.forecast(rates, 8, **options) == fitted.forecast(rates, 8, **options)
    for wrong in ({}, {**fitted.document(), "level_": 1.0}, {**fitted.document(), "samples": [[1.0]]}):
        with pytest.raises(ValueError, match="not the constants of a hazard"):
            Hazard.of_document(wrong)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dataclasses.replace(TRUE, delay=-1), "delay must be finite and at least 0, got -1"),
        (lambda: dataclasses.replace(TRUE, spread=np.inf), "spread must be finite and at least 0, got inf"),
        (lambda: TRUE.survival(Jump(), 16), "a schedule has no end"),
        (lambda: TRUE.survival([1e-3, -1e-3], 16), "must be finite and not negative"),
        (lambda: TRUE.survival([1e-3], 16, 2), "for 2 steps or more, got the shape"),
        (lambda: TRUE.factor(WARMUP, 16, 1.0), "a probability must lie between 0 and 1, got 1"),
        (
            lambda: TRUE.forecast(WARMUP, 16, last_step=5, seeds=1, interval=0.9),
            "intervals need bootstrap samples",
        ),
        (lambda: Hazard.fit(RUNS[:1], coherence=0.0), r"softening needs runs of two depths, got \[8\]"),
    ],
)
def test_what_makes_no_sense_is_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("times", "collapsed", "message"),
    [(600.0, False, "none of the runs collapsed"), (20.0, True, "but one collapsed at step 20")],
)
def test_runs_that_cannot_be_fitted_are_refused(times: float, collapsed: bool, message: str) -> None:
    runs = [
        dataclasses.replace(RUNS[0], times=np.full(3, times), collapsed=np.full(3, collapsed), depth=depth)
        for depth in (8, 16)
    ]
    with pytest.raises(ValueError, match=message):
        Hazard.fit(runs, coherence=0.0, samples=0)
