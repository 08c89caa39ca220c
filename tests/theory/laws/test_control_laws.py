"""C1, C2, N1 to N4 and N7 on numbers: what the controls preserve, and where their assumptions matter."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meanmode.theory.laws.all_laws import LAWS

seeds = st.integers(0, 2**32 - 1)


def attention(random: np.random.Generator, tokens: int) -> np.ndarray:
    weights = np.exp(random.standard_normal((tokens, tokens)))
    return weights / weights.sum(1, keepdims=True)


def polar(matrix: np.ndarray) -> np.ndarray:
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    return left @ right


@given(seed=seeds, sigma=st.floats(1e-3, 1e3))
@settings(max_examples=30, deadline=None)
def test_the_orthogonalised_update_has_the_mean_direction_at_gain_one(seed: int, sigma: float) -> None:
    """C2 for the polar factor itself, by singular values; a rest that overlaps with u and v breaks it."""
    random = np.random.default_rng(seed)
    u, v = (x / np.linalg.norm(x) for x in (random.standard_normal(6), random.standard_normal(4)))
    drawn = random.standard_normal((6, 4))
    rest = (np.eye(6) - np.outer(u, u)) @ drawn @ (np.eye(4) - np.outer(v, v))
    assert u @ polar(sigma * np.outer(u, v) + rest) @ v == pytest.approx(1)
    assert u @ polar(0.1 * np.outer(u, v) - np.outer(u, u @ drawn) + rest) @ v < 1 - 1e-9


@given(seed=seeds, bound=st.floats(1e-3, 1e3))
@settings(max_examples=20, deadline=None)
def test_clipping_by_global_norm_keeps_the_ratio_and_by_value_does_not(seed: int, bound: float) -> None:
    random = np.random.default_rng(seed)
    y, delta = random.standard_normal((6, 3)) + 1, random.standard_normal((6, 4)) + 1
    for left, right in LAWS["C1"].evaluate(y, delta, bound).values():
        np.testing.assert_allclose(left, right, rtol=1e-9, atol=1e-12)
    mean, part = delta.sum(0)[:, None] * y.mean(0), (delta - delta.mean(0)).T @ (y - y.mean(0))
    limit = min(abs(mean).max(), abs(part).max()) / 2
    by_value = [np.linalg.norm(np.clip(value, -limit, limit)) for value in (mean, part)]
    assert by_value[0] / by_value[1] != pytest.approx(np.linalg.norm(mean) / np.linalg.norm(part), rel=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_no_linear_mixer_control_forgets_the_mean(share: float) -> None:
    """Iterating a doubly stochastic mixer (no leakage) 40 times keeps the mean to rounding."""
    random = np.random.default_rng(1)
    x = random.standard_normal((5, 3))
    weights = attention(random, 5)
    mixer = (weights + weights.T + 5 * np.eye(5)) / 10
    mixer = mixer + np.diag(1 - mixer.sum(1))
    lazy = (1 - share) * np.eye(5) + share * mixer
    state = x
    for _ in range(40):
        state = lazy @ state
    np.testing.assert_allclose(state.mean(0), x.mean(0), atol=1e-12)
    if share > 0:
        assert np.linalg.norm(state - state.mean(0)) < 0.9 * np.linalg.norm(x - x.mean(0))
    np.testing.assert_allclose((x + (mixer - np.eye(5)) @ x).mean(0), x.mean(0), atol=1e-12)


def test_centered_tokens_have_a_mean_again_after_the_norm() -> None:
    """N1 beyond its counterexample: |J RMSNorm(P X)|^2 is of order 1/T, but 0 without the norm."""
    random = np.random.default_rng(4)
    x = random.standard_normal((200, 6, 3))
    centered = x - x.mean(1, keepdims=True)
    normed = centered / (centered**2).mean(-1, keepdims=True) ** 0.5
    assert (normed.mean(1) ** 2).sum(-1).mean() > 1e-3
    assert abs(centered.mean(1)).max() < 1e-14


def test_a_gate_that_sees_the_position_breaks_the_homogeneous_state() -> None:
    random = np.random.default_rng(6)
    token, weights = random.standard_normal(3), attention(random, 5)
    gates, x = random.standard_normal((2, 5, 3))
    left, right = LAWS["N4"].evaluate(weights, token, gates, x)["homogeneous"]
    np.testing.assert_allclose(left, right, atol=1e-12)
    same = np.tile(token, (5, 1))
    gated = gates * (weights @ same)
    assert abs(gated - gated.mean(0)).max() > 0.1


def test_splitting_attention_only_leaves_a_mean_larger_by_order_one_over_alpha() -> None:
    """A constant FFN write f without a norm settles at f / alpha, or at f / (2 - alpha) if both are split."""
    alpha, write = 0.05, 1.0
    one_sided = both = 0.0
    for _ in range(1000):
        one_sided = (1 - alpha) * one_sided + write
        both = (1 - alpha) * (1 - alpha) * both + alpha * write
    assert one_sided == pytest.approx(write / alpha)
    assert both == pytest.approx(write / (2 - alpha))
