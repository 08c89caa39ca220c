"""The negative controls at initialisation: fronts of blended mixers and split merges, as predicted."""

import dataclasses

import numpy as np
import pytest

from meanmode.sim.onset.measured_front import collapse_front
from meanmode.sim.simulate import simulate_ensemble
from meanmode.theory.meanfield.predicted_front import predict_front
from meanmode.theory.meanfield.profile import predict_profile
from meanmode.theory.setting import Setting

SEEDS = 32
BASE = Setting(depth=70, tokens=8, width=64, heads=2, weight_std=0.1, input_cosine=0.1)
COLLAPSING = [
    {"mixer": "lazy", "mixer_share": 0.6, "width": 128, "weight_std": 0.0707, "tokens": 16},
    {"mixer": "lazy", "mixer_share": 0.5, "ffn_ratio": 0.5},
    {"merge": "mv_split_attn", "alpha": 0.9, "weight_std": 0.1875, "tokens": 16, "input_cosine": 0.3},
]
STANDING = [
    {"mixer": "a_minus_i", "input_cosine": 0.5},
    {"mixer": "i_minus_a", "input_cosine": 0.5},
    {"mixer": "lazy", "mixer_share": 0.0, "input_cosine": 0.5},
    {"merge": "mv_split_attn", "input_cosine": 0.5},
    {"merge": "hard_centering", "input_cosine": 0.5},
]


def profiles(setting: Setting, seeds: int = SEEDS) -> np.ndarray:
    return simulate_ensemble([(setting, seed) for seed in range(seeds)])["tcs"]


@pytest.mark.parametrize("fields", COLLAPSING, ids=str)
def test_predicted_front_agrees_with_simulation(fields: dict[str, object]) -> None:
    """Mean of min(front, depth): within 4 standard errors of its own prediction, not of another stack's."""
    setting = dataclasses.replace(BASE, **fields)
    fronts = [collapse_front(profile) for profile in profiles(setting)]
    found = np.array([setting.depth if front is None else front for front in fronts])
    error = found.std(ddof=1) / SEEDS**0.5
    fraction, mean, std = predict_front(setting).within(setting.depth)
    assert fraction > 0.9 and fronts.count(None) <= 6
    assert abs(found.mean() - mean) < 4 * error
    assert 0.5 < std / found.std(ddof=1) < 2
    other = predict_front(dataclasses.replace(setting, mixer="softmax", merge="plain"))
    assert abs(found.mean() - other.within(setting.depth)[1]) > 4 * error


@pytest.mark.parametrize("fields", STANDING, ids=str)
def test_stacks_without_a_front_forget_a_common_input(fields: dict[str, object]) -> None:
    """No front is predicted and none is measured; TCS falls from 0.5 to the fixed point of the recursion."""
    setting = dataclasses.replace(BASE, depth=30, **fields)
    assert predict_front(setting, 100).front is None
    found = profiles(setting, 16)
    assert found[:, 0].mean() > 0.35 and found.max() < 0.9
    last = found[:, -1]
    expected = predict_profile(setting, 100)["tcs"][-1]
    assert abs(last.mean() - expected) < 4 * last.std(ddof=1) / 4 + 0.01


def test_both_difference_mixers_have_one_distribution() -> None:
    """A - I and I - A differ by the sign of W_V, which is drawn symmetrically: equal in distribution."""
    means, errors = [], []
    for mixer in ("a_minus_i", "i_minus_a"):
        found = profiles(dataclasses.replace(BASE, depth=6, input_cosine=0.5, mixer=mixer))[:, -1]
        means.append(found.mean())
        errors.append(found.std(ddof=1) / SEEDS**0.5)
    assert abs(means[0] - means[1]) < 4 * np.hypot(*errors)


@pytest.mark.parametrize(
    ("fields", "least", "most"),
    [
        ({"mixer": "gated", "input_cosine": 0.5}, -0.05, 0.3),
        ({"mixer": "state_space", "input_cosine": 0.5}, 0.1, 0.6),
        ({"merge": "pre_norm"}, 0.1, 0.5),
        ({"merge": "highway", "residual_gain": 16.0}, 0.1, 0.5),
        ({"merge": "highway", "residual_gain": 1.0}, 0.95, 1.0),
    ],
    ids=str,
)
def test_controls_without_a_theory_fall_on_their_side(
    fields: dict[str, object], least: float, most: float
) -> None:
    """Whether controls without a theory collapse by block 30, over eight seeds; the bands are wide."""
    found = profiles(dataclasses.replace(BASE, depth=30, **fields), 8)[:, -1]
    assert least < found.mean() < most
