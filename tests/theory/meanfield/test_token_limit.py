"""The front of very long sequences: its limit, and that rounding and quadrature do not show at a million."""

import dataclasses

import numpy as np
import pytest

from meanmode.theory.meanfield.predicted_front import deterministic_fronts
from meanmode.theory.meanfield.softmax_moments import row_overlap, row_square
from meanmode.theory.meanfield.token_limit import token_limit
from meanmode.theory.setting import Setting

STACK = Setting(width=128, heads=2, weight_std=0.125)


def test_the_front_approaches_its_limit_as_one_over_the_tokens() -> None:
    """K from T and 4 T is the same at 65,536 and 4 million tokens: rounding moves no front by 1e-6 blocks."""
    counts = (4**8, 4**9)
    fewer, more = deterministic_fronts([dataclasses.replace(STACK, tokens=count) for count in counts])
    found = token_limit(STACK)
    assert fewer is not None and more is not None and found is not None
    assert (more - fewer) / (1 / counts[0] - 1 / counts[1]) == pytest.approx(found.slope, rel=0.005)


@pytest.mark.parametrize("tokens", [4096, 10**6])
def test_the_first_order_in_one_over_the_tokens_is_nearly_all(tokens: int) -> None:
    found = token_limit(dataclasses.replace(STACK, tokens=tokens))
    assert found is not None and abs(found.remainder) < found.slope / tokens / 10 < 0.02
    assert found.limit - found.front == pytest.approx(found.between(tokens, 2**40), rel=0.1)


def test_few_tokens_are_no_first_order() -> None:
    few = token_limit(dataclasses.replace(STACK, tokens=64))
    assert few is not None and few.remainder > 1


def test_a_common_part_of_the_input_leaves_the_front_without_dependence_on_the_tokens() -> None:
    related = token_limit(dataclasses.replace(STACK, tokens=1024, input_cosine=0.3))
    assert related is not None and abs(related.front - related.limit) < 0.002


def test_no_limit_of_a_stack_without_a_front_and_none_with_text() -> None:
    assert token_limit(dataclasses.replace(STACK, merge="mv_split")) is None
    with pytest.raises(ValueError, match="only the image tokens grow: set text_tokens to 0, got 4"):
        token_limit(dataclasses.replace(STACK, text_tokens=4))


@pytest.mark.parametrize("cosine", [0.0, 0.3, 0.9])
def test_softmax_moments_of_a_million_tokens_are_those_of_log_normal_weights(cosine: float) -> None:
    """T S_d and T S_o tend to E w^2 and E w w' of weights w = exp(logit) / E exp(logit), up to 1 / T."""
    tokens, variance = 10**6, 1 - cosine
    assert tokens * row_square(tokens, variance) == pytest.approx(np.exp(variance), rel=2e-5)
    assert tokens * row_overlap(tokens, variance, cosine) == pytest.approx(
        np.exp(variance * cosine), rel=2e-5
    )
