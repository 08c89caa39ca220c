"""E1 to E3, F1 and M1 on numbers: limits, the Gaussian average that F1 states, and controls."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meanmode.theory.laws.all_laws import LAWS
from meanmode.theory.laws.energy_ratio import evaluate_front_odds

seeds = st.integers(0, 2**32 - 1)


@given(seed=seeds, tokens=st.integers(2, 20), shared=st.floats(0, 5))
@settings(max_examples=40, deadline=None)
def test_cosine_odds_and_front_agree(seed: int, tokens: int, shared: float) -> None:
    random = np.random.default_rng(seed)
    x = shared * random.standard_normal(4) + random.standard_normal((tokens, 4))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosine = ((unit @ unit.T).sum() - tokens) / (tokens * (tokens - 1))
    distance, stated = evaluate_front_odds(x)["distance"]
    assert distance == pytest.approx(stated, rel=1e-6, abs=1e-8)
    assert (distance >= 0) == (cosine >= 0.9)
    for tag in ("E1", "E3"):
        for left, right in LAWS[tag].evaluate(x).values():
            assert left == pytest.approx(right, rel=1e-7, abs=1e-10)


def test_unequal_norms_break_e1_and_not_e3() -> None:
    x = np.random.default_rng(0).standard_normal((5, 3)) * np.arange(1, 6)[:, None]
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosine = ((unit @ unit.T).sum() - 5) / 20
    rho_squared = 5 * (x.mean(0) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
    assert rho_squared != pytest.approx((1 + 4 * cosine) / (4 * (1 - cosine)), rel=1e-2)
    for left, right in LAWS["E3"].evaluate(x).values():
        assert left == pytest.approx(right)


def energies(mixer: np.ndarray, seeds: int, std: float) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Mean and centered energies of X + A X W_V W_O, one per seed, and those of X; T = 6, D = 24."""
    random = np.random.default_rng(8)
    x = random.standard_normal((6, 24)) + 1
    writers = std**2 * random.standard_normal((seeds, 24, 24)) @ random.standard_normal((seeds, 24, 24))
    z = x + mixer @ x @ writers
    mean = z.mean(1, keepdims=True)
    before = x.mean(0)
    return (
        (mean**2).sum((1, 2)),
        ((z - mean) ** 2).sum((1, 2)) / 6,
        (before**2).sum(),
        ((x - before) ** 2).sum() / 6,
    )


def test_uniform_attention_multiplies_the_mean_energy_by_its_growth_on_average() -> None:
    """Within 4 standard errors over 2000 draws; the centered energy does not change at all."""
    std = 0.15
    mean, centered, mean_before, centered_before = energies(np.full((6, 6), 1 / 6), 2000, std)
    growth = 1 + std**4 * 24**2
    error = mean.std() / np.sqrt(len(mean))
    assert abs(mean.mean() - growth * mean_before) < 4 * error
    assert abs(mean.mean() - mean_before) > 10 * error
    np.testing.assert_allclose(centered, centered_before)


def test_without_mixing_both_energies_grow_equally() -> None:
    """Control with A = I instead of J: the centered energy grows by the same factor, so the ratio stays."""
    std = 0.15
    _, centered, _, before = energies(np.eye(6), 2000, std)
    error = centered.std() / np.sqrt(len(centered))
    assert abs(centered.mean() - (1 + std**4 * 24**2) * before) < 4 * error
    assert abs(centered.mean() - before) > 10 * error


@pytest.mark.parametrize("blocks", [0, 1, 7])
def test_product_of_forward_and_adjoint_odds_is_the_same_at_every_depth(blocks: int) -> None:
    random = np.random.default_rng(9)
    x, gradient = random.standard_normal((2, 5, 4))
    writer = 0.5 * np.array([[0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 1], [0, 0, -1, 0]])
    sides = LAWS["M1"].evaluate(x, gradient, writer, blocks)
    for left, right in sides.values():
        np.testing.assert_allclose(left, right, rtol=1e-10)
    assert LAWS["F1"].evaluate(x, writer, blocks)["odds"][0] == pytest.approx(
        LAWS["F1"].evaluate(x, writer, 0)["odds"][0] * 1.25**blocks
    )
