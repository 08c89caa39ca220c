"""Every law is proved; a mutated premise or statement breaks it, and nothing that does not rest on it."""

import dataclasses

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sympy import Add, Integer, Symbol

from theory import LAWS, Premises
from theory.law import TOKENS, Law, Relation, Step
from theory.laws import law
from theory.projectors import MIXER, TokenProjectors

MUTATIONS = {
    "row sum other than 1": (Premises(row_sum=Symbol("r")), {"P1"}),
    "rows of different sums": (Premises(row_sum=None), {"P1", "P2"}),
    "dropped T in J": (Premises(mean_scale=Integer(1)), {"P1", "P2", "G1"}),
    "another projector than J": (
        Premises(mean_scale=Integer(1), mean_vector_is_ones=False),
        {"P1", "P2", "G1"},
    ),
    "wrong sign in P": (Premises(centering_sign=Integer(1)), {"P1", "P2", "G1"}),
    "directions that are not unit": (Premises(unit_square=Symbol("n", positive=True)), {"A2", "A3", "A4"}),
}


@pytest.mark.parametrize("tag", LAWS)
def test_law_is_proved(tag: str) -> None:
    proof = LAWS[tag].prove()
    assert proof.proved, proof.failed


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutated_premise_breaks_exactly_the_laws_that_use_it(name: str) -> None:
    premises, expected = MUTATIONS[name]
    assert {tag for tag, stated in LAWS.items() if not stated.prove(premises).proved} == expected


STEPS = [
    pytest.param(step, id=f"{tag}-{number}")
    for tag, stated in LAWS.items()
    for number, step in enumerate(stated.derive(Premises()))
    if step.relation in (Relation.EQUAL, Relation.AT_LEAST)
]


def test_every_law_takes_part_in_the_statement_mutations() -> None:
    assert {param.id.split("-")[0] for param in STEPS} == set(LAWS)


@pytest.mark.parametrize("step", STEPS)
def test_a_mutated_statement_is_rejected(step: Step) -> None:
    wrong_sign = dataclasses.replace(step, left=-step.left - 1)
    assert not wrong_sign.holds()
    for term in Add.make_args(step.right + step.witness):
        if term == 0:
            continue
        for mutated in (step.right - 2 * term, step.right + (TOKENS - 1) * term):
            assert not dataclasses.replace(step, right=mutated).holds(), f"{step.name} survives {mutated}"


def test_a_bound_needs_a_nonnegative_witness() -> None:
    (positive, _) = LAWS["A3"].derive(Premises())
    assert not dataclasses.replace(positive, left=-positive.left, witness=-positive.witness).holds()


def test_a_law_without_steps_is_not_proved() -> None:
    assert not dataclasses.replace(LAWS["P1"], derive=lambda premises: []).prove().proved


def test_words_do_not_commute() -> None:
    tokens = TokenProjectors(Premises())
    assert not tokens.step("J A = J is false", tokens.mean * MIXER, tokens.mean).holds()


def test_unknown_law_is_named() -> None:
    with pytest.raises(ValueError, match="unknown law 'Z9': choose one of P1"):
        law("Z9")


def high_precision(stated: Law, seed: int) -> dict[str, tuple[object, object]]:
    """Both sides of a law at one random point, in 50 digits."""
    random = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return np.vectorize(lambda value: mpmath.mpf(value))(random.standard_normal(shape)).astype(object)

    if stated.tag in ("P1", "P2"):
        weights = draw(5, 5) ** 2
        return dict(stated.evaluate(weights / weights.sum(1, keepdims=True), draw(5, 3)))
    if stated.tag == "G1":
        return dict(stated.evaluate(draw(2, 5, 3), draw(2, 5, 4)))
    y, delta = draw(5, 3), draw(5, 4)
    if stated.tag == "A4":
        y = y / np.sum(y * y, axis=1, keepdims=True) ** mpmath.mpf("0.5")
        delta = delta / np.sum(delta * delta, axis=1, keepdims=True) ** mpmath.mpf("0.5")
    return dict(stated.evaluate(y, delta))


@pytest.mark.parametrize("tag", LAWS)
def test_law_holds_at_a_fifty_digit_point(tag: str) -> None:
    with mpmath.workdps(60):
        sides = high_precision(LAWS[tag], 7)
        assert sides
        for name, (left, right) in sides.items():
            gap = np.max(np.abs(np.asarray(left - right)))
            if tag in ("A3", "A5"):
                assert left <= right
            else:
                assert gap < mpmath.mpf(10) ** -50, name


seeds = st.integers(0, 2**32 - 1)


@given(seed=seeds, tokens=st.integers(2, 12), scale=st.floats(1e-3, 1e3))
@settings(max_examples=40, deadline=None)
def test_amplification_is_invariant_under_scale_permutation_and_rotation(
    seed: int, tokens: int, scale: float
) -> None:
    random = np.random.default_rng(seed)
    y, delta = random.standard_normal((tokens, 5)), random.standard_normal((tokens, 4))
    rotation = np.linalg.qr(random.standard_normal((5, 5)))[0]
    order = random.permutation(tokens)
    excess = LAWS["A2"].evaluate(y, delta)["excess"][0]
    assert LAWS["A2"].evaluate(scale * y[order] @ rotation, delta[order])["excess"][1] == pytest.approx(
        excess, abs=1e-9
    )
    low, high = LAWS["A3"].evaluate(y, delta)["bounded"]
    assert -1e-12 <= low <= high + 1e-12


@given(seed=seeds, tokens=st.integers(2, 12))
@settings(max_examples=40, deadline=None)
def test_contraction_bound_holds_and_row_sums_matter(seed: int, tokens: int) -> None:
    random = np.random.default_rng(seed)
    weights = random.random((tokens, tokens)) + 1e-3
    attention = weights / weights.sum(1, keepdims=True)
    x = random.standard_normal((tokens, 3))
    left, bound = LAWS["P2"].evaluate(attention, x)["bound"]
    assert left <= bound * (1 + 1e-12)
    kept, mean = LAWS["P1"].evaluate(2 * attention, x)["mean_kept"]
    assert not np.allclose(kept, mean)


def test_identical_tokens_reach_the_bound_and_orthogonal_ones_do_not_amplify() -> None:
    same = np.ones((6, 1))
    assert LAWS["A3"].evaluate(same, same)["bounded"] == (6, 6)
    assert LAWS["A2"].evaluate(np.eye(6), np.ones((6, 2)))["excess"][0] == pytest.approx(0)
