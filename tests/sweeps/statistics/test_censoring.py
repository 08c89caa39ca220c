"""Medians of censored numbers: their bounds, and the coverage of their intervals."""

import numpy as np
import pytest

from meanmode.sweeps.statistics.censoring import INTERVAL, Samples, estimated, estimated_ratio, resamples

NAN, INF = np.nan, np.inf


def samples(*values: float, ends: float = 10.0) -> Samples:
    return Samples.of(values, np.full(len(values), ends))


@pytest.mark.parametrize(
    ("values", "ends", "value", "at_least"),
    [
        ((3.0, 1.0, 2.0), NAN, 2.0, 2.0),
        ((3.0, 1.0, 2.0, NAN), 10.0, 2.5, 2.5),
        ((3.0, NAN, NAN), 10.0, NAN, 10.0),
        ((3.0, 1.0, NAN, NAN), 10.0, NAN, 6.5),
        ((3.0, 2.0, NAN), 1.0, NAN, 2.0),
        ((3.0, 2.0, NAN), NAN, NAN, 2.0),
        ((), 10.0, NAN, NAN),
    ],
    ids=["all", "most", "few", "half", "an early end", "an unknown end", "none"],
)
def test_a_median_is_known_where_censored_runs_cannot_move_it(
    values: tuple[float, ...], ends: float, value: float, at_least: float
) -> None:
    found = estimated(samples(*values, ends=ends))
    np.testing.assert_array_equal([found.value, found.at_least], [value, at_least])


def test_an_interval_is_open_above_where_resamples_are() -> None:
    found = estimated(samples(1.0, 2.0, 3.0, 4.0, NAN, NAN, NAN, ends=5.0))
    assert found.value == 4.0 and 1.0 < found.low < 4.0 and found.high == INF and np.isnan(found.error)


def test_one_run_has_no_interval() -> None:
    found = estimated(samples(2.0))
    assert found.value == 2.0 and np.isnan([found.low, found.high, found.error]).all()


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Over 200 sets of 25 normal numbers, within 4 standard errors; resampled medians are slightly coarse."""
    random = np.random.default_rng(0)
    found = [estimated(samples(*np.exp(random.normal(size=25)))) for _ in range(200)]
    held = np.mean([of.low <= 1.0 <= of.high for of in found])
    assert abs(held - INTERVAL) < 4 * (INTERVAL * (1 - INTERVAL) / 200) ** 0.5
    errors = np.median([of.error for of in found])
    np.testing.assert_allclose(errors, np.std([of.value for of in found]), rtol=0.25)


def test_pairs_that_share_their_noise_have_a_sharp_ratio() -> None:
    baseline = np.array([1.0, 5.0, 2.0, 8.0, 3.0])
    paired = estimated_ratio(samples(*2 * baseline), samples(*baseline))
    assert (paired.value, paired.low, paired.high, paired.error) == (2.0, 2.0, 2.0, 0.0)
    loose = estimated_ratio(samples(*2 * baseline[::-1]), samples(*baseline))
    assert loose.value == 2.0 and loose.low < 1.0 and loose.high > 4.0


@pytest.mark.parametrize(
    ("own", "baseline", "at_least"),
    [((NAN, NAN, NAN), (2.0, 4.0, 5.0), 2.5), ((2.0, 4.0, 5.0), (NAN, NAN, NAN), 0.0)],
    ids=["own", "baseline"],
)
def test_a_censored_side_leaves_a_bound(
    own: tuple[float, ...], baseline: tuple[float, ...], at_least: float
) -> None:
    found = estimated_ratio(samples(*own), samples(*baseline))
    assert np.isnan(found.value) and found.at_least == at_least


def test_a_baseline_nothing_is_known_of_leaves_the_ratio_open() -> None:
    found = estimated_ratio(samples(1.0, 2.0), samples(NAN, NAN, ends=NAN))
    assert np.isnan(found.value) and found.at_least == 0.0 and found.high == INF


def test_a_ratio_needs_pairs() -> None:
    with pytest.raises(ValueError, match="as many runs on both sides, got 2 and 3"):
        estimated_ratio(samples(1.0, 2.0), samples(1.0, 2.0, 3.0))


def test_resamples_are_the_same_every_time() -> None:
    np.testing.assert_array_equal(resamples(6), resamples(6))
    assert set(resamples(6).ravel().tolist()) == set(range(6))
