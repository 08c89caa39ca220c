"""Attention-row moments: quadrature against identities, limits and simulation."""

import numpy as np
import pytest
from scipy.special import softmax

from theory.softmax_statistics import row_overlap, row_square, softmax_statistics


@pytest.mark.parametrize("tokens", [2, 16, 300])
def test_equal_logits_give_uniform_rows(tokens: int) -> None:
    assert row_square(tokens, 0.0) == pytest.approx(1 / tokens, rel=1e-6)
    assert row_overlap(tokens, 0.0, 0.5) == pytest.approx(1 / tokens, rel=1e-6)


@pytest.mark.parametrize("tokens", [2, 16, 256])
def test_identical_rows_overlap_like_one_row(tokens: int) -> None:
    assert row_overlap(tokens, 0.7, 1.0) == pytest.approx(row_square(tokens, 0.7), rel=1e-5)


@pytest.mark.parametrize(("tokens", "cosine"), [(2, 0.2), (16, 0.0), (16, 0.6), (100, 0.3)])
def test_moments_agree_with_sampled_softmax_rows(tokens: int, cosine: float) -> None:
    random = np.random.default_rng(tokens)
    common = np.sqrt(cosine * (1 - cosine)) * random.standard_normal((20000, 1, tokens))
    rows = softmax(common + (1 - cosine) * random.standard_normal((20000, 2, tokens)), axis=-1)
    square, overlap, _ = softmax_statistics(tokens)(np.array(cosine))
    for predicted, sample in (
        (square, (rows**2).sum(-1).mean(1)),
        (overlap, (rows[:, 0] * rows[:, 1]).sum(-1)),
    ):
        assert abs(predicted - sample.mean()) < 4 * sample.std() / np.sqrt(len(sample))


def test_large_token_limit() -> None:
    cosine, tokens = 0.3, 20000
    square, overlap, curvature = softmax_statistics(tokens)(np.array(cosine))
    assert tokens * square == pytest.approx(np.exp(1 - cosine), rel=2e-3)
    assert tokens * overlap == pytest.approx(np.exp(cosine * (1 - cosine)), rel=2e-3)
    assert tokens * curvature == pytest.approx((1 - cosine) ** 2 * np.exp(cosine * (1 - cosine)), rel=2e-2)


def test_row_diversity_stays_exact_to_the_last_block() -> None:
    """Near c = 1 the softmax is linear: (S_d - S_o) / (1 - c)^2 tends to (1 - 1/T) / T."""
    cosine = np.array([0.999, 0.99999])
    square, overlap, _ = softmax_statistics(16)(cosine)
    assert (square - overlap) / (1 - cosine) ** 2 == pytest.approx((1 - 1 / 16) / 16, rel=1e-2)


def test_one_token_is_refused() -> None:
    with pytest.raises(ValueError, match="tokens must be at least 2, got 1"):
        softmax_statistics(1)
