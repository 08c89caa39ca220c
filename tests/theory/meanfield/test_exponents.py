"""Exponents of untrained stacks and the entropy of attention rows: limits, dualities, random draws."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meanmode.theory.meanfield.exponents import exponents, predict_energies
from meanmode.theory.meanfield.phase_diagram import BlockMap
from meanmode.theory.meanfield.softmax_moments import freezing_scale, row_entropy
from meanmode.theory.onset.depth_scaling import first_step_coherence, leaky_mean, size_exponent
from meanmode.theory.setting import Setting

MERGES = ({}, {"merge": "deepnorm", "residual_gain": 1.6}, {"merge": "mv_split", "alpha": 0.6, "beta": 0.7})


def stack(scale: float, ratio: float, **fields: object) -> Setting:
    return Setting(weight_std=scale / 16, ffn_ratio=ratio, **fields)


@pytest.mark.parametrize("fields", MERGES, ids=str)
@pytest.mark.parametrize("ratio", [3.0, 8.0])
def test_forward_exponents_are_the_slopes_of_the_block_map(ratio: float, fields: dict[str, object]) -> None:
    block = BlockMap(stack(1.0, ratio, **fields))
    for cosine in (0.2, 0.6):
        slope = (block(np.array(cosine + 1e-6)) - block(np.array(cosine - 1e-6))) / 2e-6
        assert exponents(block, cosine).forward == pytest.approx(math.log(slope), abs=1e-6)
    for point in block.fixed_points():
        assert exponents(block, point.cosine).forward == pytest.approx(math.log(point.multiplier), abs=1e-6)


@given(scale=st.floats(0.3, 2), ratio=st.sampled_from([1.0, 3.0, 8.0]), fields=st.sampled_from(MERGES))
@settings(max_examples=40, deadline=None)
def test_both_passes_share_their_factors(scale: float, ratio: float, fields: dict[str, object]) -> None:
    """At c = 1 the centered part, at c = 0 the mean; the mean adjoint grows beside the collapsed state."""
    block = BlockMap(stack(scale, ratio, **fields))
    one, zero = exponents(block, 1.0), exponents(block, 0.0)
    assert one.backward_centered == pytest.approx(one.forward, abs=1e-9)
    assert zero.backward_mean == pytest.approx(zero.forward, abs=1e-9)
    assert one.backward_mean > 0
    if not fields:
        assert one.backward_mean == pytest.approx(zero.backward_centered, abs=1e-9)
        assert one.backward == one.backward_mean


def test_an_ffn_of_no_width_leaves_adjoints_as_they_are() -> None:
    """Without an FFN only attention acts, whose Jacobian passes the mean on as the norm divides it."""
    limit = exponents(BlockMap(Setting(width=4096, weight_std=0.7 / 64, ffn_ratio=1 / 4096)))
    assert limit.backward_mean == pytest.approx(0, abs=1e-4)
    assert limit.forward == pytest.approx(-math.log1p(0.7**4), abs=1e-3)
    with pytest.raises(ValueError, match=r"pair cosine from 0 to 1, got 1\.2"):
        exponents(BlockMap(Setting()), 1.2)
    with pytest.raises(ValueError, match="no state of cosine 1"):
        exponents(BlockMap(Setting(merge="hard_centering")))


@pytest.mark.parametrize("fields", [*MERGES[:2], {"merge": "mv_split", "alpha": 0.05, "beta": 0.3}], ids=str)
def test_a_wide_stack_has_the_exponents_of_the_limit(fields: dict[str, object]) -> None:
    setting = Setting(
        width=65536,
        tokens=64,
        weight_std=0.9 / 256,
        depth=6,
        input_cosine=0.999999,
        adjoint_cosine=0.5,
        **fields,
    )
    energies, limit = predict_energies(setting, realisations=40), exponents(BlockMap(setting))
    assert np.diff(energies.distance)[1:] == pytest.approx(limit.forward, abs=0.01)
    assert -np.diff(energies.mean) == pytest.approx(limit.backward_mean, abs=0.01)
    assert -np.diff(energies.centered)[3:] == pytest.approx(limit.backward_centered, abs=0.02)


@pytest.mark.parametrize(("tokens", "variance", "head"), [(2, 1.0, 4), (16, 1.0, 32), (256, 0.6, 8)])
def test_row_entropy_is_that_of_random_rows(tokens: int, variance: float, head: int) -> None:
    random = np.random.default_rng(np.random.SeedSequence([tokens, head]))
    keys = random.standard_normal((2000, tokens, head))
    logits = np.sqrt(variance * head) * keys[..., 0] / np.linalg.norm(keys, axis=-1)
    weights = np.exp(logits)
    weights /= weights.sum(1, keepdims=True)
    entropy = -(weights * np.log(weights)).sum(1)
    assert abs(row_entropy(tokens, variance, head) - entropy.mean()) < 4 * entropy.std() / len(entropy) ** 0.5
    assert abs(row_entropy(tokens, variance / 2, head) - entropy.mean()) > 8 * entropy.std() / 2000**0.5


def test_row_entropy_and_freezing_have_their_limits() -> None:
    assert row_entropy(64, 0.0, 32) == pytest.approx(math.log(64))
    assert row_entropy(65536, 0.5) == pytest.approx(math.log(65536) - 0.25, abs=1e-3)
    assert freezing_scale(1024, 0.75, 10**7) == pytest.approx(2 * math.sqrt(2 * math.log(1024)), rel=1e-4)
    assert min(freezing_scale(tokens, 0.0, 16) for tokens in (2, 4, 64, 4096)) > 1
    assert math.isinf(freezing_scale(64, 1.0, 16))
    with pytest.raises(ValueError, match=r"at most 1, got 1\.5"):
        row_entropy(64, 1.5)
    with pytest.raises(ValueError, match="heads of width 4"):
        freezing_scale(64, 0.0, 2)


def test_rates_scale_with_depth_as_sub_layers_move() -> None:
    assert size_exponent(8, 64, 0.0) == pytest.approx(0.5)
    assert size_exponent(8, 64, 1.0) == pytest.approx(1.0)
    setting = Setting(width=16, heads=1, tokens=16, weight_std=0.16, depth=8)
    coherence = first_step_coherence(setting)
    assert first_step_coherence(dataclasses.replace(setting, depth=200)) == pytest.approx(coherence)
    assert 0.3 < coherence < 1
    assert leaky_mean(1, 1.0, 0.5) == pytest.approx(1.0)
    assert leaky_mean(400, 0.1, 1.0) == pytest.approx(1.0)
    assert leaky_mean(400, 0.1, 0.0) == pytest.approx(math.sqrt(0.1 / 1.9))
    with pytest.raises(ValueError, match="two different positive depths"):
        size_exponent(8, 8, 0.1)
