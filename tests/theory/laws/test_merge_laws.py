"""R1 to R6 on numbers: two segments, the published limits, and the backward pass against complex steps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meanmode.theory.laws.all_laws import LAWS
from meanmode.theory.laws.merge_backward import merge_norm, merge_norm_backward

seeds = st.integers(0, 2**32 - 1)
STEP = 1e-30


def complex_step(loss, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Gradients of a real loss, exact to rounding: Im loss(x + i h) / h."""
    gradients = []
    for which, array in enumerate(arrays):
        gradient = np.zeros(array.shape)
        for index in np.ndindex(array.shape):
            moved = [value.astype(complex) for value in arrays]
            moved[which][index] += 1j * STEP
            gradient[index] = loss(*moved).imag / STEP
        gradients.append(gradient)
    return gradients


@given(seed=seeds, image=st.integers(1, 5), text=st.integers(1, 4), eps=st.sampled_from([1e-6, 1e-2]))
@settings(max_examples=15, deadline=None)
def test_the_closed_form_backward_is_the_gradient(seed: int, image: int, text: int, eps: float) -> None:
    """Two segments, each with its own mean; the gradients of the gains add up over the segments."""
    random = np.random.default_rng(seed)
    x, f, g = random.standard_normal((3, image + text, 3))
    alpha, beta = random.standard_normal((2, 3))
    parts = (slice(0, image), slice(image, None))

    def loss(x, f, alpha, beta):
        return sum((g[part] * merge_norm(x[part], f[part], alpha, beta, eps)).sum() for part in parts)

    closed = [merge_norm_backward(x[part], f[part], alpha, beta, eps, g[part]) for part in parts]
    joined = [np.concatenate([part[i] for part in closed]) for i in (0, 1)]
    summed = [closed[0][i] + closed[1][i] for i in (2, 3)]
    for exact, stated in zip(complex_step(loss, [x, f, alpha, beta]), [*joined, *summed], strict=True):
        np.testing.assert_allclose(stated, exact, rtol=1e-9, atol=1e-9 * abs(exact).max())


@pytest.mark.parametrize("wrong", ["no leak in dX", "alpha for alpha - beta", "r for r^3"])
def test_a_wrong_backward_pass_is_not_the_gradient(wrong: str) -> None:
    random = np.random.default_rng(3)
    x, f, g = random.standard_normal((3, 4, 3))
    alpha, beta, eps = np.array([0.3, 0.2, 0.5]), np.array([0.9, 1.1, 0.7]), 1e-5
    exact = complex_step(
        lambda x, f: (g * merge_norm(x, f, alpha, beta, eps)).sum(),
        [x, f],
    )
    z = x + beta * (f - f.mean(0)) + alpha * (f.mean(0) - x.mean(0))
    inverse = ((z * z).mean(1, keepdims=True) + eps) ** -0.5
    power = 1 if wrong == "r for r^3" else 3
    delta = inverse * g - inverse**power / 3 * (g * z).sum(1, keepdims=True) * z
    leak = 0 if wrong == "no leak in dX" else alpha
    gap = alpha if wrong == "alpha for alpha - beta" else alpha - beta
    stated = delta - leak * delta.mean(0), beta * delta + gap * delta.mean(0)
    assert max(abs(left - right).max() for left, right in zip(stated, exact, strict=True)) > 1e-2


def test_a_global_projector_on_segments_breaks_the_leaky_integrator() -> None:
    """R2 holds for J_seg but not with the global J in its place."""
    random = np.random.default_rng(5)
    x, f = random.standard_normal((2, 6, 3))
    alpha, beta = np.full(3, 0.3), np.ones(3)
    sides = LAWS["R2"].evaluate(x, f, alpha, beta, 4)
    np.testing.assert_allclose(*sides["mean"], atol=1e-14)
    merged = x + beta * (f - f.mean(0)) + alpha * (f - x).mean(0)
    assert abs(merged[:4].mean(0) - (0.7 * x[:4].mean(0) + 0.3 * f[:4].mean(0))).max() > 1e-2


@given(seed=seeds, alpha=st.floats(0.05, 2), beta=st.floats(0.05, 2))
@settings(max_examples=30, deadline=None)
def test_the_gradient_ratio_scales_as_alpha_over_beta(seed: int, alpha: float, beta: float) -> None:
    random = np.random.default_rng(seed)
    x, f = random.standard_normal((2, 7, 3))
    sides = LAWS["R4"].evaluate(x, f, np.full(3, alpha), np.full(3, beta), 4)
    for name in ("no_branch", "mv_split_ratio", "gate_ratio"):
        np.testing.assert_allclose(*sides[name], rtol=1e-10, atol=1e-12)


def test_the_mean_forgets_under_mv_split_and_is_kept_by_a_gate() -> None:
    """With F = 0, n merges scale the mean by (1 - alpha)^n, a gate by 1; both keep the centered part."""
    x = np.random.default_rng(2).standard_normal((6, 3))
    state = x
    for _ in range(10):
        state = state + 0.2 * (0 * x - state).mean(0)
    np.testing.assert_allclose(state.mean(0), 0.8**10 * x.mean(0))
    np.testing.assert_allclose(state - state.mean(0), x - x.mean(0), atol=1e-14)
