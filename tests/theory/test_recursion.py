"""The mean-field recursion: limits, invariances and its exact parts."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from theory import Setting, predict_front, predict_profile
from theory.front import Walkers, crossing, deterministic_front
from theory.profile import energy_ratio
from theory.recursion import Branch, MeanField, silu_kernel


@pytest.mark.parametrize("std", [0.3, 1.0, 1.5])
@pytest.mark.parametrize("correlation", [-0.4, 0.0, 0.5, 1.0])
def test_silu_kernel_is_the_gaussian_expectation(std: float, correlation: float) -> None:
    nodes, weights = np.polynomial.hermite_e.hermegauss(100)
    weights = weights / weights.sum()
    partner = correlation * nodes[:, None] + np.sqrt(1 - correlation**2) * nodes
    first, second = std * nodes * expit(std * nodes), std * partner * expit(std * partner)
    expected = weights @ (first[:, None] * second) @ weights
    assert silu_kernel(std)(correlation) == pytest.approx(expected, rel=1e-9)


@given(cosine=st.floats(0, 0.999), tokens=st.integers(2, 400))
@settings(max_examples=50, deadline=None)
def test_cosine_mean_energy_and_energy_ratio_are_one_variable(cosine: float, tokens: int) -> None:
    field = MeanField.__new__(MeanField)
    field.tokens = tokens
    mean = field.mean_energy(np.array(1.0), np.array(cosine))
    assert field.cosine(mean) == pytest.approx(cosine, abs=1e-12)
    assert energy_ratio(field, np.array(cosine)) ** 2 == pytest.approx(mean / (1 - mean), rel=1e-9)


def test_uniform_attention_multiplies_the_squared_energy_ratio_by_one_plus_gain() -> None:
    """THEORY of the front: with J-uniform attention, rho^2 grows by exactly 1 + g per merge."""
    field = MeanField(Setting(tokens=16, weight_std=0.05))
    mean = np.array([0.1])
    gain = field.attention_gain
    branch = Branch(token=gain * mean, pair=gain * mean)
    after = field.merge(mean, branch)
    assert after / (1 - after) == pytest.approx((1 + gain) * mean / (1 - mean), rel=1e-12)


@pytest.mark.parametrize("gain", [1.5, 3.0])
def test_deepnorm_is_layerscale_with_the_inverse_gain(gain: float) -> None:
    base = Setting(tokens=16, weight_std=0.05)
    deep = deterministic_front(dataclasses.replace(base, merge="deepnorm", residual_gain=gain))
    scaled = deterministic_front(dataclasses.replace(base, merge="layerscale", residual_gain=1 / gain))
    assert deep == pytest.approx(scaled, rel=1e-12)


def test_unit_gains_are_the_plain_merge() -> None:
    base = Setting(tokens=16)
    for merge in ("layerscale", "rezero", "deepnorm"):
        assert deterministic_front(dataclasses.replace(base, merge=merge)) == deterministic_front(base)


def test_full_alpha_and_beta_replace_the_mean() -> None:
    """alpha = 1 keeps nothing of the trunk's mean: it collapses only where the written mean wins."""
    collapsing = Setting(tokens=64, weight_std=0.09375, merge="mv_split", alpha=1.0, beta=1.0)
    assert predict_front(collapsing).front == pytest.approx(12.6, abs=0.3)
    assert predict_front(Setting(tokens=64, merge="mv_split", alpha=0.1, beta=1.0)).front is None


def test_silent_writers_never_collapse() -> None:
    assert deterministic_front(Setting(tokens=16, writer_std=0.0)) is None


def test_an_input_beyond_the_front_has_front_zero() -> None:
    prediction = predict_front(Setting(tokens=16, input_cosine=0.97))
    assert prediction.front == 0.0
    assert prediction.front_deterministic == 0.0


def test_text_tokens_count_as_tokens_where_the_merge_does_not_split() -> None:
    with_text = predict_front(Setting(tokens=12, text_tokens=4))
    assert with_text.front == predict_front(Setting(tokens=16)).front
    with pytest.raises(ValueError, match="the theory of mv_split speaks of one segment"):
        predict_front(Setting(merge="mv_split", text_tokens=4))


def test_noise_averages_out_with_width() -> None:
    """std(front) falls as D^(-1/2) at fixed sigma sqrt(D)."""
    widths = np.array([256, 1024, 4096])
    spreads = [
        predict_front(Setting(tokens=64, width=int(d), weight_std=0.8 / d**0.5)).front_std for d in widths
    ]
    slope = np.polyfit(np.log(widths), np.log(np.array(spreads, float)), 1)[0]
    assert -0.65 < slope < -0.35


def test_a_batch_averages_its_samples() -> None:
    single, batched = predict_front(Setting(tokens=16)), predict_front(Setting(tokens=16, batch=8))
    assert batched.front_std < 0.5 * single.front_std
    assert abs(batched.front - single.front) < single.front_std


def test_prediction_is_repeatable_and_restricts_to_a_depth() -> None:
    prediction = predict_front(Setting(tokens=16))
    assert np.array_equal(prediction.samples, predict_front(Setting(tokens=16)).samples)
    fraction, mean, std = prediction.within(30)
    assert 0.2 < fraction < 0.7
    assert mean < 30 and std < prediction.front_std
    assert prediction.within(10_000) == pytest.approx((1.0, prediction.front, prediction.front_std))


def test_crossing_interpolates_and_knows_none() -> None:
    profiles = np.array([[0.0, 0.95, 0.0], [0.8, 0.96, 0.5], [1.0, 0.97, np.nan]])
    assert crossing(profiles) == pytest.approx([1.5, 0.0, np.inf])


def test_profile_starts_at_the_input_and_agrees_with_the_walk() -> None:
    setting = Setting(tokens=16, depth=12, input_cosine=0.3)
    profile = predict_profile(setting)
    assert profile["tcs"][0] == pytest.approx(0.3, abs=0.01)
    assert (
        profile["tcs"].shape == (13,)
        and profile["mu_eff"].shape == (12,)
        and profile["r_tr"].shape == (12, 2)
    )
    assert all(np.isfinite(values).all() for values in profile.values())
    assert len(list(Walkers(MeanField(setting), 0).blocks(3))) == 4
