"""N8 to N10 on numbers: limits, explicit definitions, and what fails without an assumption."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meanmode.theory.laws.all_laws import LAWS
from meanmode.theory.laws.mixers import MIXER_CLAIMS
from meanmode.theory.laws.state_space import decay_gradient, row_defects, state_space_matrix
from meanmode.theory.setting import MIXERS

seeds = st.integers(0, 2**32 - 1)


def scanned(values: np.ndarray, decay: np.ndarray) -> np.ndarray:
    """h_t = a_t h_{t-1} + (1 - a_t) v_t, token by token, averaged over both directions."""
    both = np.zeros((2, *values.shape))
    for direction, order in enumerate((range(len(decay)), reversed(range(len(decay))))):
        state = np.zeros(values.shape[1])
        for token in order:
            state = decay[token] * state + (1 - decay[token]) * values[token]
            both[direction, token] = state
    return both.mean(0)


@given(seed=seeds, tokens=st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_the_matrix_of_a_state_space_is_its_scan(seed: int, tokens: int) -> None:
    random = np.random.default_rng(seed)
    values, decay = random.standard_normal((tokens, 3)), random.random(tokens)
    np.testing.assert_allclose(state_space_matrix(decay) @ values, scanned(values, decay), atol=1e-12)


@given(seed=seeds, tokens=st.integers(1, 6))
@settings(max_examples=20, deadline=None)
def test_the_gradient_of_the_decays_matches_finite_differences(seed: int, tokens: int) -> None:
    random = np.random.default_rng(seed)
    logit, value, cotangent = (random.standard_normal(shape) for shape in (tokens, 3, (tokens, 3)))
    values = np.tile(value, (tokens, 1))

    def loss(moved: np.ndarray) -> float:
        return float((cotangent * scanned(values, 1 / (1 + np.exp(-moved)))).sum())

    step = 1e-5 * np.eye(tokens)
    numeric = [(loss(logit + row) - loss(logit - row)) / 2e-5 for row in step]
    found = decay_gradient(1 / (1 + np.exp(-logit)), value, cotangent)
    np.testing.assert_allclose(found, numeric, atol=1e-8)


@pytest.mark.parametrize(("decay", "matrix"), [(0.0, np.eye(5)), (1.0, np.zeros((5, 5)))])
def test_a_state_space_at_its_limits_copies_or_writes_nothing(decay: float, matrix: np.ndarray) -> None:
    decays = np.full(5, decay)
    np.testing.assert_array_equal(state_space_matrix(decays), matrix)
    np.testing.assert_array_equal(row_defects(decays), np.full(5, decay))


def test_a_long_sequence_has_row_sums_of_one_except_at_its_ends() -> None:
    defect = row_defects(np.full(200, 0.8))
    assert defect[0] == pytest.approx(0.4) and defect[100] < 1e-8


def test_unnormalised_weights_get_a_gradient() -> None:
    """N9 needs the normalisation: without it, linear attention responds to its scores at common values."""
    random = np.random.default_rng(3)
    weights, change = random.random((2, 5, 5))
    value, cotangent, gates = random.standard_normal(3), *random.standard_normal((2, 5, 3))
    sides = LAWS["N9"].evaluate(weights, value, cotangent, gates, change, (0.7, 0.3))
    np.testing.assert_allclose(*sides["normalised"], atol=1e-12)
    assert np.abs(change @ np.tile(value, (5, 1))).min() > 0.01


def test_only_unequal_row_sums_leak_the_mean() -> None:
    random = np.random.default_rng(4)
    attention = random.random((5, 5))
    attention /= attention.sum(1, keepdims=True)
    gates, x = random.standard_normal((2, 5, 3))
    even, uneven = 0.4 * attention, np.diag([1.0, 1, 1, 1, 2]) @ attention
    leaked = [
        LAWS["N8"].evaluate(attention, weights, gates, x, (0.0, 1.0))["centered"][0]
        for weights in (even, uneven)
    ]
    assert np.abs(leaked[0]).max() < 1e-12 and np.abs(leaked[1]).max() > 0.01


@pytest.mark.parametrize("name", MIXERS)
def test_claims_cite_laws_and_a_kept_mean_does_not_leak(name: str) -> None:
    claims = MIXER_CLAIMS[name]
    assert claims.laws and set(claims.laws) <= set(LAWS)
    assert claims.no_leakage or not claims.mean_kept
