"""The early warning: its features, its silence, its fit, the re-forecast, and signals taken in live."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meanmode.sim.onset.early_warning import (
    FEATURES,
    LONG,
    RATE_CONSTANT,
    WARNING,
    EarlyWarning,
    RecentSignals,
    reforecast,
    silence,
    warning_features,
)

STEPS = np.arange(1, 61)


def signals(every: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """A token cosine that rises to 0.6 and a functional step that rises to 0.6, measured now and then."""
    seen = STEPS % every == 0
    return np.where(seen, STEPS / 100, np.nan), np.where(STEPS % 5 == 0, STEPS / 100, np.nan)


def test_features_are_those_of_the_windows_that_end_with_the_row() -> None:
    cosines, deltas = signals()
    found = warning_features(STEPS, cosines, deltas)
    assert np.isnan(found[: LONG - 1]).all() and np.isfinite(found[LONG - 1 :]).all()
    short, long = cosines[30:40].mean(), cosines[10:40].mean()
    expected = [-np.log(1 - short), -np.log(1 - long), np.log(np.median([0.2, 0.25, 0.3, 0.35, 0.4]))]
    assert found[39] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cosines": np.full(60, np.nan)}, "no token cosine"),
        ({"deltas": np.full(60, np.nan)}, "functional step is not measured"),
        ({"cosines": np.full(60, 0.95)}, "alike already.* 0.950"),
        ({"cosines": signals(every=20)[0]}, "telemetry_every=5"),
        ({"steps": STEPS[:20]}, "20 of the 30 steps"),
        ({}, "^$"),
        ({"cosines": signals(every=5)[0]}, "^$"),
    ],
)
def test_it_is_silent_for_a_reason(change: dict[str, np.ndarray], said: str) -> None:
    cosines, deltas = signals()
    given = {"steps": STEPS, "cosines": cosines, "deltas": deltas} | change
    rows = len(given["steps"])
    reason = silence(given["steps"].tolist(), given["cosines"][:rows], given["deltas"][:rows])
    assert re.search(said, reason), reason
    last = warning_features(given["steps"], given["cosines"][:rows], given["deltas"][:rows])[-1]
    assert bool(reason) is bool(np.isnan(last).any())


def test_a_fit_finds_the_coefficients_that_made_the_outcomes() -> None:
    generator = np.random.default_rng(3)
    features = generator.normal(size=(40_000, 3))
    truth = {25: (-2.0, 1.0, 0.0, 0.5), 50: (-1.0, 0.5, 1.0, 0.0)}
    hits = {
        horizon: generator.random(40_000) < EarlyWarning(coefficients=truth).probability(features, horizon)
        for horizon in truth
    }
    # a collapse within 25 steps is also one within 50: each horizon is fitted with outcomes of its own
    for horizon, of in hits.items():
        left, known = np.where(of, horizon, np.inf), np.full(40_000, 50.0)
        known[:100], left[:100] = (
            horizon - 1,
            1,
        )  # rows whose end is not known to that horizon count for nothing
        fit = EarlyWarning.fit(features, left, known)
        assert fit.coefficients[horizon] == pytest.approx(truth[horizon], abs=0.08)


@given(st.floats(-0.2, 0.85), st.floats(0.05, 1.0), st.floats(1.01, 1.5))
def test_more_alike_tokens_and_larger_steps_are_more_dangerous(
    cosine: float, delta: float, factor: float
) -> None:
    def chance(tcs: float, step: float) -> float:
        features = warning_features(STEPS, np.full(60, tcs), np.full(60, step))
        return float(WARNING.probability(features, 50)[-1])

    assert chance(cosine, delta) < chance(cosine, factor * delta)
    assert chance(cosine, delta) < chance(cosine + 0.02, delta)
    features = warning_features(STEPS, np.full(60, cosine), np.full(60, delta))
    assert WARNING.probability(features, 25)[-1] < WARNING.probability(features, 50)[-1]


def test_no_step_no_collapse() -> None:
    features = warning_features(STEPS, np.full(60, 0.5), np.zeros(60))
    assert WARNING.probability(features, 50)[-1] == 0


def test_the_critical_rate_is_where_a_proportional_step_reaches_that_of_the_ramps() -> None:
    steps = np.arange(1, 201)
    rates, deltas = 1e-4 * steps, np.where(steps % 5 == 0, 20 * 1e-4 * steps, np.nan)
    assert reforecast(steps, rates, deltas) == pytest.approx(np.exp(RATE_CONSTANT) / 20)
    assert np.isnan(reforecast(steps[:140], rates[:140], deltas[:140]))
    assert np.isnan(reforecast(steps, rates, np.where(steps % 25 == 0, deltas, np.nan)))


def test_signals_taken_in_live_give_the_same_chance_also_after_a_restart() -> None:
    cosines, deltas = signals(every=5)
    expected = WARNING.probability(warning_features(STEPS, cosines, deltas), 50)
    recent = RecentSignals()
    assert np.isnan(recent.chance(50))
    for step, cosine, delta in zip(STEPS.tolist(), cosines, deltas, strict=True):
        if step % 5 and step != 1:
            continue
        recent.add(step, cosine, delta)
        assert recent.chance(50) == pytest.approx(expected[step - 1], rel=1e-12, nan_ok=True)
        restored = RecentSignals()
        restored.restore(recent.state())
        assert np.array_equal(restored.chance(50), recent.chance(50), equal_nan=True)
        recent = restored
    assert len(FEATURES) + 1 == len(WARNING.coefficients[50])
