"""The backward pass on the adjoint Gram matrix: its derivatives, its exchangeable case, the network."""

import dataclasses

import numpy as np
import pytest
import torch

from meanmode.sim.simulate import simulate_ensemble
from meanmode.sim.trunk.stack import synthetic_input
from meanmode.theory.meanfield.gram import GramField
from meanmode.theory.meanfield.gram_backward import writer_statistics
from meanmode.theory.meanfield.gram_heads import Heads, Operands, Side, rope_angles
from meanmode.theory.meanfield.profile import predict_profile
from meanmode.theory.meanfield.structured_inputs import input_cosines
from meanmode.theory.setting import Setting

TOKENS, WIDTH = 9, 8


def heads_of(mixer: str, *, causal: bool = False, rope: bool = False) -> Heads:
    setting = Setting(tokens=TOKENS, width=2 * WIDTH, heads=2, mixer=mixer, mixer_share=0.7, weight_std=0.3)
    mask = np.tri(TOKENS, dtype=bool) if causal else None
    return Heads.of(setting, mask, rope_angles(TOKENS, 0, WIDTH) if rope else None)


def side(raw: np.ndarray, heads: Heads) -> Side:
    """Queries or keys from features before QK-Norm, in terms of the network's own angles."""
    lengths = np.sqrt(np.mean(raw**2, axis=-1, keepdims=True))
    features = raw / lengths
    if heads.angles is not None:
        first, second = np.split(features, 2, axis=-1)
        turn = np.exp(-1j * heads.angles) * (first + 1j * second)
        features = np.concatenate([turn.real, turn.imag], axis=-1)
    return Side(features, lengths)


@pytest.mark.parametrize(
    ("mixer", "options"),
    [
        ("softmax", {}),
        ("softmax", {"causal": True, "rope": True}),
        ("linear", {"rope": True}),
        ("linear", {"causal": True}),
        ("lazy", {"causal": True}),
        ("state_space", {}),
    ],
    ids=str,
)
def test_what_returns_through_the_matrices_is_their_derivative(mixer: str, options: dict[str, bool]) -> None:
    heads, random = heads_of(mixer, **options), np.random.default_rng(0)
    root, cotangent = np.eye(TOKENS), random.standard_normal((2, TOKENS, TOKENS))
    raw = random.standard_normal((2, 2, TOKENS, WIDTH if mixer != "state_space" else 1))

    def operands(values: np.ndarray) -> Operands:
        if mixer == "state_space":
            return Operands(logits=heads.gate_std * values[0][..., 0] + np.array([[0.0], [1.0]]))
        return Operands(sides=(side(values[0], heads), side(values[1], heads)))

    given = operands(raw)
    found = heads.pulled_back(given, heads.matrices(root, 2, given), cotangent)
    step = 1e-6
    for which, adjoint in enumerate(found):
        for index in np.ndindex(2, 3, min(2, raw.shape[-1])):
            moved = [raw.copy(), raw.copy()]
            for sign, values in zip((1, -1), moved, strict=True):
                values[(which, *index)] += sign * step
            ends = [np.sum(cotangent * heads.matrices(root, 2, operands(values))) for values in moved]
            assert adjoint[index] == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5, abs=1e-7)
    assert len(found) == (1 if mixer == "state_space" else 2)


@pytest.mark.parametrize(
    "fields", [{}, {"merge": "deepnorm", "residual_gain": 1.4}, {"mixer": "uniform"}], ids=str
)
def test_exchangeable_tokens_have_the_amplification_of_one_cosine(fields: dict[str, object]) -> None:
    width = 2**22
    given = {"tokens": 16, "depth": 6, "width": width, "heads": width // 32, "weight_std": 0.8 / width**0.5}
    setting = Setting(**given | {"input_cosine": 0.2, "adjoint_cosine": 0.3} | fields)
    cosines = 0.8 * np.eye(16) + 0.2
    found = GramField(setting, cosines).map(backward=True).gradients
    expected = predict_profile(setting, 4)
    np.testing.assert_allclose(found.amplification[0], expected["amplification"], rtol=0.02)
    np.testing.assert_allclose(found.adjoint_tcs[0], expected["adjoint_tcs"], atol=0.01)
    np.testing.assert_allclose(found.output_cosine[0], expected["c_delta"], atol=0.01)


@pytest.mark.parametrize(
    "fields",
    [
        {"input": "photo", "rope": True},
        {"input": "clusters", "mixer": "linear"},
        {"input": "clusters", "mixer": "gated", "merge": "deepnorm", "residual_gain": 0.7},
        {"input": "video", "frames": 4, "tokens": 16, "mixer": "state_space"},
        {"input": "clusters", "merge": "mv_split", "alpha": 0.4, "beta": 0.8, "text_tokens": 4},
    ],
    ids=str,
)
def test_the_amplification_is_that_of_the_network(fields: dict[str, object]) -> None:
    base = {"tokens": 9, "width": 32, "heads": 2, "weight_std": 0.17, "depth": 5, "adjoint_cosine": 0.2}
    setting, seeds = Setting(**base | fields), 192
    network = simulate_ensemble([(setting, seed) for seed in range(seeds)], backward=True)
    gradients = GramField(setting).walk(192, backward=True).gradients
    measured, theory = network["amplification"][:, 1:], gradients.amplification
    error = (measured.std(0) + theory.std(0)) / seeds**0.5
    difference = np.abs(np.log(theory.mean(0) / measured.mean(0)))
    assert np.median(difference) < 0.08  # at 32 features; the bias falls with the width
    assert (difference < 0.08 + 4 * error / measured.mean(0)).all()
    assert np.abs(network["adjoint_tcs"].mean(0) - gradients.adjoint_tcs.mean(0)).max() < 0.03
    exchangeable = dataclasses.replace(setting, input="gaussian", frames=1)
    other = GramField(exchangeable).walk(64, backward=True).gradients.amplification.mean(0)
    assert np.max(np.abs(np.log(other / measured.mean(0)))) > 0.15, "without structure it would be wrong"


def test_statistics_of_a_writer_are_those_of_its_gradient() -> None:
    random = np.random.default_rng(3)
    y, delta = random.standard_normal((7, 5)) + 0.5, random.standard_normal((7, 6)) + 0.3
    amplification, ratio, cosine = writer_statistics((y @ y.T)[None], (delta @ delta.T)[None])
    terms = np.einsum("ta,tb->tab", delta, y)
    assert amplification[0] == pytest.approx(np.sum(terms.sum(0) ** 2) / np.sum(terms**2))
    mean = 7 * np.outer(delta.mean(0), y.mean(0))
    centered = (delta - delta.mean(0)).T @ (y - y.mean(0))
    assert ratio[0] == pytest.approx(np.linalg.norm(mean) / np.linalg.norm(centered))
    products = delta @ delta.T
    assert cosine[0] == pytest.approx((products.sum() - np.trace(products)) / 6 / np.trace(products))


def test_the_stack_sees_the_cosines_of_its_setting() -> None:
    for fields in (
        {"input": "photo"},
        {"input": "clusters"},
        {"input": "video", "frames": 4},
        {"input_cosine": 0.3},
    ):
        setting = Setting(tokens=16, text_tokens=3, width=4096, heads=4, **fields)
        tokens = synthetic_input(setting, torch.Generator().manual_seed(1))[0].double().numpy()
        found = tokens @ tokens.T / setting.width
        assert np.abs(found - input_cosines(setting)).max() < 0.08
        assert np.corrcoef(found.ravel(), input_cosines(setting).ravel())[0, 1] > 0.98
