"""O1 to O3 on numbers: the edge of stability, exponents of rivals and escapes, sums of changes, controls."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from sympy import Expr

from meanmode.theory.laws.escape import (
    AGEING,
    ESCAPE,
    SHAPE,
    STEEPNESS,
    cumulated_constant,
    cumulated_ramp,
    ramp_exponents,
)
from meanmode.theory.laws.rivals import RIVALS, edge_of_stability, sub_layer_sum
from meanmode.theory.proof.kernel import holds
from meanmode.theory.proof.law import PREMISES


def largest_excursion(product: float, beta1: float) -> float:
    """|x| after up to 4000 steps of Adam's momentum on a quadratic with rate times curvature `product`."""
    x, momentum = 1.0, 0.0
    for _ in range(4000):
        momentum = beta1 * momentum + (1 - beta1) * x
        x -= product * momentum
        if abs(x) > 1e6:
            break
    return abs(x)


@pytest.mark.parametrize(("beta1", "edge"), [(0.0, 2.0), (0.5, 6.0), (0.9, 38.0)])
def test_the_edge_separates_decay_from_growth(beta1: float, edge: float) -> None:
    assert edge_of_stability(beta1) == pytest.approx(edge)
    assert largest_excursion(0.98 * edge, beta1) < 1e-3
    assert largest_excursion(1.02 * edge, beta1) > 1e3


def test_a_beta1_without_an_edge_is_refused() -> None:
    with pytest.raises(ValueError, match=r"beta1 must be in \[0, 1\), got 1"):
        edge_of_stability(1.0)


@pytest.mark.parametrize(
    ("name", "slope", "depth"),
    [
        ("coherent", 2, 0.5),
        ("diffusive", 4 ** (1 / 3), 4 ** (-2 / 3)),
        ("instantaneous", 1, 0.25),
        ("independent", 1, 0.5),
    ],
)
def test_rivals_scale_a_known_rate(name: str, slope: float, depth: float) -> None:
    known = {"rate": 0.02, "at_slope": 5e-5, "at_depth": 16}
    rival = RIVALS[name]
    assert rival.critical_rate(5e-5, 16, **known) == pytest.approx(0.02)
    assert rival.critical_rate(20e-5, 16, **known) == pytest.approx(0.02 * slope)
    assert rival.critical_rate(5e-5, 64, **known) == pytest.approx(0.02 * depth)


def test_the_edge_makes_no_claim_about_the_depth() -> None:
    known = {"rate": 0.02, "at_slope": 5e-5, "at_depth": 16}
    assert RIVALS["edge"].critical_rate(1e-5, 16, **known) == 0.02
    assert RIVALS["edge"].critical_rate(1e-5, 17, **known) is None


@pytest.mark.parametrize("cosine", [0.0, 0.05, 0.5])
def test_sums_of_correlated_changes_grow_as_the_law_says(cosine: float) -> None:
    """Within 4 standard errors over 400 draws; as a control, the law of independent changes is far off."""
    random = np.random.default_rng(3)
    count, width, draws = 40, 64, 400
    common, own = random.standard_normal((draws, 1, width)), random.standard_normal((draws, count, width))
    changes = np.sqrt(cosine) * common + np.sqrt(1 - cosine) * own
    squares = (changes.sum(1) ** 2).mean(-1)
    error = squares.std(ddof=1) / draws**0.5
    assert abs(squares.mean() - sub_layer_sum(count, cosine)) < 4 * error
    if cosine:
        assert abs(squares.mean() - sub_layer_sum(count, 0.0)) > 20 * error


def test_depth_exponents_range_from_a_half_to_one() -> None:
    def exponent(depth: float) -> float:
        low, high = (sub_layer_sum(2 * depth * factor, 0.005) for factor in (0.99, 1.01))
        return -np.log(high / low) / 2 / np.log(1.01 / 0.99)

    assert exponent(1) == pytest.approx(-0.5, abs=0.01)
    assert exponent(1e5) == pytest.approx(-1, abs=0.01)


@pytest.mark.parametrize(
    ("step", "claimed"),
    [
        pytest.param("ramp: (1 + b + c) d ln eta_c / d ln k", SHAPE / (1 + STEEPNESS), id="time forgotten"),
        pytest.param("ramp: (1 + b + c) d ln eta_c / d ln k", AGEING - 1, id="time not integrated"),
        pytest.param("ramp: (1 + b + c) d ln eta_c / d ln k", 0 * AGEING, id="a threshold"),
        pytest.param("ramp: (1 + b + c) d ln eta_c / d ln G", -SHAPE, id="depth not diluted"),
        pytest.param("half rate: b d ln eta_h / d ln N", 0 * AGEING, id="the horizon forgotten"),
        pytest.param("half rate: b d ln eta_h / d ln N", -1 + 0 * AGEING, id="c forgotten"),
    ],
)
def test_false_variants_of_an_escape_are_rejected(step: str, claimed: Expr) -> None:
    (stated,) = [of for of in ESCAPE.derive(PREMISES) if of.name == step]
    assert holds(stated) and not holds(dataclasses.replace(stated, right=claimed))


@pytest.mark.parametrize(("steepness", "ageing"), [(6.1, -0.17), (2.0, 0.0), (3.0, 1.0)])
@pytest.mark.parametrize("cumulated", [cumulated_ramp, cumulated_constant])
def test_escapes_happen_when_the_law_says(
    cumulated: Callable[..., float], steepness: float, ageing: float
) -> None:
    """Simulated step by step within 4 standard errors; as a control, another power of the time is far off."""
    runs, steps, middle = 16000, np.arange(1, 4000), 700
    level = 1 / cumulated(1.0, 30.0, steepness, ageing, 2e-4, middle)
    rates = 2e-4 * (steps if cumulated is cumulated_ramp else 1)
    hazards = level * (30.0 * rates) ** steepness * steps**ageing
    times = 1 + np.searchsorted(np.cumsum(hazards), np.random.default_rng(4).exponential(size=runs))
    off = []
    for at in (400, middle, 1000):
        share, error = np.mean(times > at), (0.25 / runs) ** 0.5
        right, wrong = (
            np.exp(-level * cumulated(1.0, 30.0, steepness, ageing + more, 2e-4, at + 0.5) / scale)
            for more, scale in ((0.0, 1.0), (1.0, middle))
        )
        assert abs(share - right) < 4 * error
        off.append(abs(share - wrong) / error)
    assert max(off) > 10


def test_an_escape_lies_between_a_threshold_and_a_clock() -> None:
    assert ramp_exponents(1e9, 0.0) == pytest.approx((0, -1), abs=1e-8), "law O2"
    assert ramp_exponents(1.0, 0.0) == pytest.approx((0.5, -0.5)), "coherent accumulation"
    assert ramp_exponents(2.0, 0.0)[0] == pytest.approx(RIVALS["diffusive"].slope_exponent)
    assert ramp_exponents(6.0, -1.0) == pytest.approx((0, -1))
