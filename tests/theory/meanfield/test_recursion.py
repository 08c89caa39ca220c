"""The mean-field recursion: limits, invariances and its exact parts."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from meanmode.theory.meanfield.first_step import predict_functional_step
from meanmode.theory.meanfield.forward import MeanField, State
from meanmode.theory.meanfield.front import crossing
from meanmode.theory.meanfield.phase_diagram import BlockMap
from meanmode.theory.meanfield.predicted_front import (
    Walkers,
    deterministic_front,
    deterministic_fronts,
    predict_front,
)
from meanmode.theory.meanfield.profile import energy_ratio, predict_profile
from meanmode.theory.meanfield.swiglu_moments import silu_kernel, slope_kernel, unit_fluctuations
from meanmode.theory.setting import Setting


def sigmoid_linear(x: np.ndarray) -> np.ndarray:
    return x * expit(x)


def sigmoid_linear_slope(x: np.ndarray) -> np.ndarray:
    return expit(x) * (1 + x * (1 - expit(x)))


@pytest.mark.parametrize(
    ("kernel", "function"), [(silu_kernel, sigmoid_linear), (slope_kernel, sigmoid_linear_slope)]
)
@pytest.mark.parametrize("std", [0.3, 1.0, 1.5])
@pytest.mark.parametrize("correlation", [-0.4, 0.0, 0.5, 1.0])
def test_kernels_are_gaussian_expectations(kernel, function, std: float, correlation: float) -> None:
    nodes, weights = np.polynomial.hermite_e.hermegauss(100)
    weights = weights / weights.sum()
    partner = correlation * nodes[:, None] + np.sqrt(1 - correlation**2) * nodes
    first, second = function(std * nodes), function(std * partner)
    expected = weights @ (first[:, None] * second) @ weights
    assert kernel(std)(correlation) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("cosine", [0.0, 0.4, 0.9])
def test_hidden_unit_fluctuations_agree_with_sampled_units(cosine: float) -> None:
    random, std, count, tokens = np.random.default_rng(1), 0.9, 400_000, 2
    common = random.standard_normal((2, count, 1))
    own = random.standard_normal((2, count, tokens))
    gate, value = np.sqrt(cosine) * common + np.sqrt(1 - cosine) * own
    hidden = sigmoid_linear(std * gate) * value
    first, second = hidden.T
    found = unit_fluctuations(std, np.array(cosine))
    samples = {
        "token": first**4 / np.mean(first**2) ** 2 - 1,
        "token_token": first**2 * second**2 / np.mean(first**2) ** 2 - 1,
    }
    for name, sample in samples.items():
        assert abs(getattr(found, name) - sample.mean()) < 4 * sample.std() / np.sqrt(count), name


@given(cosine=st.floats(0, 0.999), tokens=st.integers(2, 400))
@settings(max_examples=50, deadline=None)
def test_cosine_mean_energy_and_energy_ratio_determine_each_other(cosine: float, tokens: int) -> None:
    field = MeanField.__new__(MeanField)
    field.tokens = tokens
    mean = field.mean_energy(np.array(1.0), np.array(cosine))
    assert field.cosine(mean) == pytest.approx(cosine, abs=1e-12)
    assert energy_ratio(tokens, np.array(cosine)) ** 2 == pytest.approx(mean / (1 - mean), rel=1e-9)


def test_uniform_attention_multiplies_the_squared_energy_ratio_by_one_plus_gain() -> None:
    """Wide limit: under uniform attention (A = J) an attention merge multiplies rho^2 by 1 + g (law F1)."""
    field = MeanField(Setting(tokens=16, width=2**20, heads=4, weight_std=0.8 / 2**10, mixer="uniform"))
    mean = np.array([[0.1]])
    merged = field.merge(
        State(mean_energy=mean, spread=np.zeros((1, 1))),
        field.attention(State(mean_energy=mean, spread=np.zeros((1, 1)))),
    )
    after, gain = merged.state.mean_energy, field.attention_gain
    assert after / (1 - after) == pytest.approx((1 + gain) * mean / (1 - mean), rel=1e-5)


@pytest.mark.parametrize("gain", [1.5, 3.0])
def test_deepnorm_is_layerscale_with_the_inverse_gain(gain: float) -> None:
    base = Setting(tokens=16, weight_std=0.05)
    deep = deterministic_front(dataclasses.replace(base, merge="deepnorm", residual_gain=gain))
    scaled = deterministic_front(dataclasses.replace(base, merge="layerscale", residual_gain=1 / gain))
    assert deep == pytest.approx(scaled, rel=1e-9)


def test_unit_gains_are_the_plain_merge() -> None:
    base = Setting(tokens=16)
    for merge in ("layerscale", "rezero", "deepnorm"):
        assert deterministic_front(dataclasses.replace(base, merge=merge)) == deterministic_front(base)


def test_settings_followed_together_match_each_alone() -> None:
    cases = [
        Setting(tokens=16),
        Setting(tokens=64, weight_std=0.0625, input_cosine=0.3),
        Setting(tokens=16, merge="mv_split"),
        Setting(tokens=16, width=128, merge="layerscale", residual_gain=0.7),
        Setting(tokens=16, input_cosine=0.97),
        Setting(tokens=64, mixer="linear"),
    ]
    together = deterministic_fronts(cases)
    assert together == [deterministic_front(case) for case in cases]
    assert together[2] is None and together[4] == 0.0


def test_full_alpha_and_beta_replace_the_mean() -> None:
    """At alpha = 1 the trunk's mean is replaced; a stack collapses only if the written mean dominates."""
    collapsing = Setting(tokens=64, weight_std=0.09375, merge="mv_split", alpha=1.0, beta=1.0)
    assert predict_front(collapsing).front == pytest.approx(12.8, abs=0.5)
    assert predict_front(Setting(tokens=64, merge="mv_split", alpha=0.1, beta=1.0)).front is None


def test_silent_writers_never_collapse() -> None:
    assert deterministic_front(Setting(tokens=16, writer_std=0.0)) is None


def test_an_input_beyond_the_front_has_front_zero() -> None:
    prediction = predict_front(Setting(tokens=16, input_cosine=0.97))
    assert prediction.front == 0.0
    assert prediction.front_deterministic == 0.0


def test_text_tokens_count_as_tokens_unless_the_merge_splits() -> None:
    with_text = predict_front(Setting(tokens=12, text_tokens=4))
    assert with_text.front == predict_front(Setting(tokens=16)).front
    with pytest.raises(ValueError, match="one cosine describes mv_split with one segment only"):
        MeanField(Setting(merge="mv_split", text_tokens=4))


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


def test_crossing_interpolates_and_reports_none_as_infinite() -> None:
    profiles = np.array([[0.0, 0.95, 0.0], [0.8, 0.96, 0.5], [1.0, 0.97, np.nan]])
    assert crossing(profiles) == pytest.approx([1.5, 0.0, np.inf])


def test_profile_starts_at_the_input_and_covers_every_block() -> None:
    setting = Setting(tokens=16, depth=12, input_cosine=0.3, adjoint_cosine=0.5)
    profile = predict_profile(setting)
    assert profile["tcs"][0] == pytest.approx(0.3, abs=0.01)
    assert profile["adjoint_tcs"][-1] == pytest.approx(0.5, abs=0.03)
    assert profile["tcs"].shape == profile["adjoint_tcs"].shape == (13,)
    assert profile["mu_eff"].shape == (12,) and profile["amplification"].shape == (12, 2)
    assert all(np.isfinite(values).all() for values in profile.values())
    assert len(list(Walkers(MeanField(setting), 0).blocks(3))) == 4


def test_a_stack_without_blocks_has_only_an_input() -> None:
    profile = predict_profile(Setting(tokens=16, depth=0))
    assert profile["tcs"].shape == (1,) and profile["amplification"].shape == (0, 2)


def test_identical_adjoints_and_tokens_amplify_fully() -> None:
    setting = Setting(
        tokens=16, depth=4, width=4096, heads=4, weight_std=0.01, input_cosine=0.999, adjoint_cosine=0.999
    )
    assert predict_profile(setting)["amplification"] == pytest.approx(16, rel=0.02)


def test_mv_split_does_not_amplify() -> None:
    profile = predict_profile(Setting(tokens=64, depth=40, merge="mv_split", alpha=0.1))
    assert profile["amplification"][:20, 0].max() < 1.5 and profile["tcs"].max() < 0.05


def test_the_phase_diagram_reproduces_its_landmarks() -> None:
    """r = 3 always collapses; at r = 8 unrelated tokens are stable, with a threshold only for large s."""

    def diagram(scale: float, ratio: float) -> BlockMap:
        return BlockMap(Setting(weight_std=scale / 16, ffn_ratio=ratio))

    assert all(diagram(scale, 3.0).threshold() == 0 for scale in np.linspace(0.3, 2, 12))
    assert min(diagram(scale, 3.0).growth() for scale in np.linspace(0.9, 1.5, 13)) == pytest.approx(
        1.04, abs=0.006
    )
    assert diagram(1.0, 8.0).threshold() == pytest.approx(0.476, abs=0.001)
    assert diagram(0.9, 8.0).threshold() == pytest.approx(0.871, abs=0.001)
    assert diagram(0.8, 8.0).threshold() == np.inf
    assert diagram(1.0, 4.0).threshold() == pytest.approx(0.056, abs=0.001)


@given(
    scale=st.floats(0.2, 2),
    ratio=st.sampled_from([1.0, 3.0, 8.0]),
    alpha=st.floats(0, 1),
    beta=st.floats(0.03, 1.5),
    cosine=st.floats(0.01, 0.99),
)
@settings(max_examples=80, deadline=None)
def test_the_odds_bound_of_mv_split_holds(
    scale: float, ratio: float, alpha: float, beta: float, cosine: float
) -> None:
    stack = Setting(weight_std=scale / 16, ffn_ratio=ratio, merge="mv_split", alpha=alpha, beta=beta)
    block = BlockMap(stack)
    after = float(block(np.array(cosine)))
    assert after / (1 - after) <= block.odds_bound() * cosine / (1 - cosine) * (1 + 1e-9)


def test_the_functional_step_adds_coherently_and_independently() -> None:
    """Coherent parts grow like L, independent ones like sqrt(L)."""
    shallow, deep = (
        predict_functional_step(Setting(tokens=16, width=64, weight_std=0.1, depth=depth))
        for depth in (4, 16)
    )
    assert deep.mean_coherent == pytest.approx(4 * shallow.mean_coherent)
    assert deep.centered_independent == pytest.approx(2 * shallow.centered_independent)
    with pytest.raises(ValueError, match="derived for merges with one gain"):
        predict_functional_step(Setting(merge="mv_split"))
