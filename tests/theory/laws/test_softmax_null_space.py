"""S1 against the gradient of attention by complex steps."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from meanmode.theory.laws.all_laws import LAWS

STEP = 1e-30
seeds = st.integers(0, 2**32 - 1)


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores)
    return weights / weights.sum(1, keepdims=True)


def score_gradient(attention, scores: np.ndarray, values: np.ndarray, cotangent: np.ndarray) -> np.ndarray:
    """d/dS of <cotangent, attention(S) V>, by complex steps."""
    gradient = np.zeros(scores.shape)
    for index in np.ndindex(scores.shape):
        moved = scores.astype(complex)
        moved[index] += 1j * STEP
        gradient[index] = (cotangent * (attention(moved) @ values)).sum().imag / STEP
    return gradient


@given(seed=seeds, tokens=st.integers(2, 7), spread=st.floats(1e-6, 10))
@settings(max_examples=25, deadline=None)
def test_the_score_gradient_is_bounded_by_the_spread_of_the_values(
    seed: int, tokens: int, spread: float
) -> None:
    random = np.random.default_rng(seed)
    scores = 2 * random.standard_normal((tokens, tokens))
    values = random.standard_normal(3) + spread * random.standard_normal((tokens, 3))
    cotangent = random.standard_normal((tokens, 3))
    exact = score_gradient(softmax, scores, values, cotangent)
    sides = LAWS["S1"].evaluate(softmax(scores), values, cotangent)
    np.testing.assert_allclose(sides["nearly_homogeneous"][1], exact, rtol=1e-7, atol=1e-9 * spread)
    for name in ("bound", "radius_bound"):
        left, right = sides[name]
        assert np.all(left <= right * (1 + 1e-6) + 1e-18)


def test_homogeneous_values_give_the_scores_no_gradient_but_only_under_softmax() -> None:
    random = np.random.default_rng(0)
    scores, cotangent = random.standard_normal((2, 5, 5))
    values = np.tile(random.standard_normal(5), (5, 1))
    assert abs(score_gradient(softmax, scores, values, cotangent)).max() < 1e-14
    assert abs(score_gradient(np.exp, scores, values, cotangent)).max() > 1e-2
    sides = LAWS["S1"].evaluate(softmax(scores), values, cotangent)
    coherent, stated = sides["writer"]
    np.testing.assert_allclose(coherent, stated, atol=1e-13)
    assert np.linalg.matrix_rank(coherent) == 1


def test_the_squared_bound_is_tight_to_a_factor_of_two() -> None:
    """Two tokens of equal weight, values +-1: |dL/dS|^2 = |d|^2 / 2, and the bound is |d|^2."""
    attention, values = np.full((2, 2), 0.5), np.array([[1.0], [-1.0]])
    left, right = LAWS["S1"].evaluate(attention, values, np.ones((2, 1)))["bound"]
    np.testing.assert_allclose(left, 0.5)
    np.testing.assert_allclose(right, 1)
