"""Attention-row moments: quadrature against identities, limits and simulation."""

import numpy as np
import pytest
from scipy.special import softmax

from meanmode.theory.meanfield.row_moments import row_moments
from meanmode.theory.meanfield.softmax_moments import row_overlap, row_square, softmax_table


@pytest.mark.parametrize("tokens", [2, 16, 300])
def test_equal_logits_give_uniform_rows(tokens: int) -> None:
    assert row_square(tokens, 0.0) == pytest.approx(1 / tokens, rel=1e-6)
    assert row_square(tokens, 0.0, 16) == pytest.approx(1 / tokens, rel=1e-6)
    assert row_overlap(tokens, 0.0, 0.5) == pytest.approx(1 / tokens, rel=1e-6)


@pytest.mark.parametrize("tokens", [2, 16, 256])
def test_identical_rows_overlap_like_one_row(tokens: int) -> None:
    assert row_overlap(tokens, 0.7, 1.0) == pytest.approx(row_square(tokens, 0.7), rel=1e-5)


@pytest.mark.parametrize(("tokens", "cosine"), [(2, 0.2), (16, 0.0), (16, 0.6), (100, 0.3)])
def test_gaussian_moments_agree_with_sampled_softmax_rows(tokens: int, cosine: float) -> None:
    random = np.random.default_rng(tokens)
    common = np.sqrt(cosine * (1 - cosine)) * random.standard_normal((20000, 1, tokens))
    rows = softmax(common + (1 - cosine) * random.standard_normal((20000, 2, tokens)), axis=-1)
    square, overlap = row_square(tokens, 1 - cosine), row_overlap(tokens, 1 - cosine, cosine)
    for predicted, sample in (
        (square, (rows**2).sum(-1).mean(1)),
        (overlap, (rows[:, 0] * rows[:, 1]).sum(-1)),
    ):
        assert abs(predicted - sample.mean()) < 4 * sample.std() / np.sqrt(len(sample))


@pytest.mark.parametrize("head_width", [1, 2, 8])
def test_a_finite_head_has_logits_on_a_sphere(head_width: int) -> None:
    random = np.random.default_rng(head_width)
    keys = random.standard_normal((20000, 16, head_width))
    keys /= np.linalg.norm(keys, axis=-1, keepdims=True)
    squares = (softmax(np.sqrt(head_width) * keys[..., 0], axis=-1) ** 2).sum(-1)
    error = squares.std() / np.sqrt(len(squares))
    assert abs(row_square(16, 1.0, head_width) - squares.mean()) < 4 * error
    if head_width == 8:
        assert abs(row_square(16, 1.0) - squares.mean()) > 4 * error, (
            "the test must tell Gaussian logits apart"
        )


def test_large_token_limit() -> None:
    cosine, tokens = 0.3, 20000
    assert tokens * row_square(tokens, 1 - cosine) == pytest.approx(np.exp(1 - cosine), rel=2e-3)
    limit = np.exp(cosine * (1 - cosine))
    assert tokens * row_overlap(tokens, 1 - cosine, cosine) == pytest.approx(limit, rel=2e-3)


def test_row_diversity_stays_accurate_to_the_last_block() -> None:
    """Near c = 1 the softmax is linear: (S_d - S_o) / (1 - c)^2 tends to (1 - 1/T) / T."""
    cosine = np.array([0.999, 0.99999])
    rows = row_moments("softmax", 16, 4096)(cosine)
    assert (rows.square - rows.overlap) / (1 - cosine) ** 2 == pytest.approx((1 - 1 / 16) / 16, rel=1e-2)


def test_one_token_is_refused() -> None:
    with pytest.raises(ValueError, match="tokens must be at least 2, got 1"):
        softmax_table(1, 16)


@pytest.mark.parametrize("cosine", [0.0, 0.3, 0.7])
def test_linear_attention_rows_agree_with_sampled_ones(cosine: float) -> None:
    """The theory is of leading order in 1/d_h: it gives the deviation of T S from 1 to within 10 %."""
    tokens, head_width, width, samples = 64, 64, 256, 200
    random = np.random.default_rng(3)
    squares, overlaps = [], []
    for _ in range(samples):
        x = np.sqrt(cosine) * random.standard_normal((1, width)) + np.sqrt(
            1 - cosine
        ) * random.standard_normal((tokens, width))
        features = []
        for _ in range(2):
            projected = x @ random.standard_normal((width, head_width))
            projected *= np.sqrt(head_width) / np.linalg.norm(projected, axis=-1, keepdims=True)
            features.append(np.where(projected > 0, projected + 1, np.exp(np.minimum(projected, 0))))
        rows = features[0] @ features[1].T
        rows /= rows.sum(1, keepdims=True)
        gram = rows @ rows.T
        squares.append(tokens * np.trace(gram) / tokens - 1)
        overlaps.append(tokens * (gram.sum() - np.trace(gram)) / (tokens * (tokens - 1)) - 1)
    moments = row_moments("linear", tokens, head_width)(np.array(cosine))
    assert tokens * moments.square - 1 == pytest.approx(np.mean(squares), rel=0.1)
    assert tokens * moments.overlap - 1 == pytest.approx(np.mean(overlaps), rel=0.1)


def test_uniform_rows_are_equal_and_an_unknown_mixer_is_refused() -> None:
    moments = row_moments("uniform", 8, 4)(np.array([0.0, 0.5]))
    assert moments.square.tolist() == moments.overlap.tolist() == [0.125, 0.125]
    with pytest.raises(ValueError, match="no theory for the mixer 'mamba': choose one of softmax"):
        row_moments("mamba", 8, 4)
