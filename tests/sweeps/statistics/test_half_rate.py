"""The half rate of drawn runs is recovered, and reported as open outside of the rates tried."""

import numpy as np
import pytest

from meanmode.sweeps.statistics.half_rate import HalfRate, probabilities

RATES = np.repeat(0.01 * np.array([0.8, 0.9, 1.0, 1.1, 1.25]), 40)


def test_it_recovers_what_was_simulated() -> None:
    """The 90 % interval contains the half rate, and the spread is right on average."""
    random = np.random.default_rng(2)
    fits = [
        HalfRate.fit(RATES, random.random(len(RATES)) < probabilities(RATES, 0.0103, 0.08)) for _ in range(20)
    ]
    held = sum(fit.half.low < 0.0103 < fit.half.high for fit in fits)
    assert 14 <= held
    assert np.mean([fit.half.value for fit in fits]) == pytest.approx(0.0103, rel=0.01)
    assert np.mean([fit.spread for fit in fits]) == pytest.approx(0.08, rel=0.2)
    assert all(fit.half.error < 0.0005 for fit in fits)


def test_a_clean_cut_is_halved() -> None:
    fit = HalfRate.fit(RATES, RATES > 0.0095)
    assert fit.half.value == pytest.approx(np.sqrt(0.009 * 0.010), rel=0.01) and fit.spread == 0.02
    assert probabilities(fit.half.value, fit.half.value, fit.spread) == 0.5


@pytest.mark.parametrize(("collapsed", "at_least"), [(True, 0.0), (False, 0.0125)])
def test_outside_of_the_rates_tried_there_is_none(collapsed: bool, at_least: float) -> None:
    half = HalfRate.fit(RATES, np.full(len(RATES), collapsed)).half
    assert np.isnan(half.value) and np.isnan(half.error) and half.at_least == pytest.approx(at_least)
    assert half.low == half.high == (0.0 if collapsed else np.inf)


def test_shares_that_do_not_rise_have_none() -> None:
    half = HalfRate.fit([1.0] * 20 + [2.0] * 20 + [3.0] * 20, [True] * 15 + [False] * 30 + [True] * 15).half
    assert np.isnan(half.value)


def test_one_rate_has_no_half() -> None:
    with pytest.raises(ValueError, match="needs positive rates"):
        HalfRate.fit([0.01, np.nan], [True, False])
    with pytest.raises(ValueError, match="lies between rates: give runs at two or more, got 1"):
        HalfRate.fit([0.01, 0.01], [True, False])
