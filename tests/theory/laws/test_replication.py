"""X1 on a small attention network, with gradients by complex steps."""

import numpy as np
import pytest

from meanmode.theory.laws.all_laws import LAWS
from meanmode.theory.laws.amplification import evaluate_rayleigh

STEP, WIDTH, TOKENS = 1e-30, 3, 4
random = np.random.default_rng(11)
WEIGHTS = random.standard_normal((5, WIDTH, WIDTH)) / 2
STATE, TARGET = random.standard_normal((2, TOKENS, WIDTH))


def norm(x: np.ndarray) -> np.ndarray:
    return x / ((x * x).mean(-1, keepdims=True) + 1e-6) ** 0.5


def loss(
    weights: np.ndarray, shift: np.ndarray, copies: int, mean: bool = True
) -> tuple[complex, np.ndarray]:
    """Loss and input of W_O of two sub-layers; `shift` is added to the output of the attention branch."""
    q, k, v, out, ffn = weights
    x = np.repeat(STATE, copies, axis=0)
    scores = np.exp((x @ q) @ (x @ k).T)
    y = scores / scores.sum(1, keepdims=True) @ (x @ v)
    x = norm(x + y @ out + shift)
    x = norm(x + np.tanh(x) @ ffn)
    error = x - np.repeat(TARGET, copies, axis=0)
    return (error * error).sum() / (len(x) if mean else 1), y


def gradients(copies: int, mean: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradient of all weights, cotangent of the branch output, input of W_O."""
    zero = np.zeros((TOKENS * copies, WIDTH))
    by_weight, cotangent = np.zeros(WEIGHTS.shape), np.zeros(zero.shape)
    for index in np.ndindex(WEIGHTS.shape):
        moved = WEIGHTS.astype(complex)
        moved[index] += 1j * STEP
        by_weight[index] = loss(moved, zero, copies, mean)[0].imag / STEP
    for index in np.ndindex(zero.shape):
        shift = zero.astype(complex)
        shift[index] += 1j * STEP
        cotangent[index] = loss(WEIGHTS, shift, copies, mean)[0].imag / STEP
    return by_weight, cotangent, loss(WEIGHTS, zero, copies)[1]


@pytest.mark.parametrize("copies", [2, 3])
def test_replication_keeps_gradients_and_multiplies_the_amplification(copies: int) -> None:
    single, replicated = gradients(1), gradients(copies)
    np.testing.assert_allclose(replicated[0], single[0], rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(
        replicated[1], np.repeat(single[1], copies, axis=0) / copies, rtol=1e-10, atol=1e-15
    )
    amplification = [1 + evaluate_rayleigh(y, delta)["excess"][0] for _, delta, y in (single, replicated)]
    assert amplification[1] == pytest.approx(copies * amplification[0], rel=1e-10)


def test_a_summed_loss_is_not_invariant() -> None:
    single, replicated = gradients(1, mean=False), gradients(2, mean=False)
    np.testing.assert_allclose(replicated[0], 2 * single[0], rtol=1e-10, atol=1e-13)


def test_kappa_is_shifted_by_order_one_over_tokens() -> None:
    """Orthogonal tokens go from kappa = 0 to (k - 1) / (k T - 1); identical ones stay at kappa = 1."""
    for tokens in (2, 8, 32):
        sides = LAWS["X1"].evaluate(
            np.ones((tokens, tokens)), np.eye(tokens), np.eye(tokens), np.eye(tokens), 2
        )
        replicated, stated = sides["kappa"]
        assert replicated == pytest.approx(1 / (2 * tokens - 1)) == stated
    ones = np.ones((4, 2))
    assert LAWS["X1"].evaluate(np.ones((4, 4)), ones, ones, ones, 3)["kappa"][0] == pytest.approx(1)
