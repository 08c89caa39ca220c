"""Every law is proved; a mutated premise or statement breaks exactly the laws that depend on it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sympy import Add, Expr, IndexedBase, Integer, KroneckerDelta, Sum, Symbol
from sympy import I as ImaginaryUnit

from meanmode.theory.laws.all_laws import LAWS, law
from meanmode.theory.laws.merges import MergeWords
from meanmode.theory.laws.page import laws_page
from meanmode.theory.proof.index_rules import IllFormed
from meanmode.theory.proof.index_sums import IndexSums, over
from meanmode.theory.proof.kernel import holds
from meanmode.theory.proof.law import PREMISES, TOKENS, Premises
from meanmode.theory.proof.nonnegative import is_nonnegative
from meanmode.theory.proof.step import Facts, Relation, Step, rational
from meanmode.theory.proof.symbols import WIDTH, T, s, t
from meanmode.theory.proof.token_projectors import MIXER, TokenProjectors
from meanmode.theory.proof.token_sums import ATTENTION, TokenSums, entry

TOKEN_MEANS = {
    "P1",
    "P2",
    "G1",
    "S1",
    "R3",
    "R6",
    "C1",
    "N1",
    "N2",
    "N3",
    "N4",
    "N7",
    "N8",
    "N9",
    "N10",
    "E1",
    "E2",
    "E3",
    "F1",
    "M1",
}
MUTATIONS = {
    "row sum other than 1": (
        Premises(row_sum=Symbol("r")),
        {"P1", "S1", "N1", "N2", "N3", "N4", "N8", "N9", "E4"},
    ),
    "rows of different sums": (
        Premises(row_sum=None),
        {"P1", "P2", "S1", "N2", "N3", "N4", "N8", "N9", "E4"},
    ),
    "dropped T in J": (Premises(mean_scale=Integer(1)), TOKEN_MEANS | {"R4"}),
    "a projector other than J": (
        Premises(mean_scale=Integer(1), mean_vector_is_ones=False),
        TOKEN_MEANS | {"R2", "R4", "R5"},
    ),
    "wrong sign in P": (
        Premises(centering_sign=Integer(1)),
        TOKEN_MEANS | {"R1", "R2", "R4", "R5"},
    ),
    "directions that are not unit": (
        Premises(unit_square=Symbol("n", positive=True)),
        {"A2", "A3", "A4", "A5", "X1", "C2", "E1", "E2", "M1", "O2"},
    ),
    "weights that are not normalised": (
        Premises(softmax_exponent=Integer(0)),
        {"S1", "X1", "N8", "N9"},
    ),
    "a state space that writes more than it forgets": (Premises(state_write=Integer(2)), {"N10"}),
    "MV-Split without its leak": (
        Premises(mean_leak=Integer(0)),
        {"R1", "R2", "R4", "R5", "R6", "N7", "F1"},
    ),
    "segments not averaged": (Premises(segment_scale=Integer(2)), {"R2", "R4", "R5", "N7"}),
    "a norm by the mean square": (Premises(norm_exponent=Integer(-1)), {"R6"}),
    "a loss summed over tokens": (Premises(loss_exponent=Integer(0)), {"X1"}),
}


PROVED = {tag: stated.derive(PREMISES) for tag, stated in LAWS.items()}


@pytest.mark.parametrize("tag", LAWS)
def test_law_is_proved_and_its_claims_name_their_steps(tag: str) -> None:
    proof = LAWS[tag].prove()
    assert proof.proved, proof.failed
    for clause in LAWS[tag].clauses:
        assert clause.numbers(proof.steps) or clause.prose, clause.says


@pytest.mark.parametrize("tag", LAWS)
def test_no_step_has_the_same_expression_on_both_sides(tag: str) -> None:
    assert not [
        step.name
        for step in PROVED[tag]
        if step.relation is not Relation.THEOREM and step.left - step.right == 0
    ]


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutated_premise_breaks_exactly_the_laws_that_use_it(name: str) -> None:
    premises, expected = MUTATIONS[name]
    # steps that the mutation does not touch are proved above
    touched = {
        tag: [step for step in stated.derive(premises) if step not in PROVED[tag]]
        for tag, stated in LAWS.items()
    }
    assert {tag for tag, steps in touched.items() if not all(map(holds, steps))} == expected


def test_all_laws_but_three_depend_on_a_premise() -> None:
    """A1, O1 and O3 are plain identities of sums and powers."""
    dependent = set().union(*(expected for _, expected in MUTATIONS.values()))
    assert set(LAWS) - dependent == {"A1", "O1", "O3"}


STEPS = [
    pytest.param(step, id=f"{tag}-{number}")
    for tag, stated in LAWS.items()
    for number, step in enumerate(PROVED[tag])
    if step.relation in (Relation.EQUAL, Relation.AT_LEAST)
]


def test_every_law_takes_part_in_the_statement_mutations() -> None:
    assert {param.id.split("-")[0] for param in STEPS} == set(LAWS)


@pytest.mark.parametrize("step", STEPS)
def test_a_mutated_statement_is_rejected(step: Step) -> None:
    wrong_sign = dataclasses.replace(step, left=-step.left - 1)
    assert not holds(wrong_sign)
    for term in Add.make_args(step.right + step.witness):
        if term == 0:
            continue
        for mutated in (step.right - 2 * term, step.right + (TOKENS - 1) * term):
            wrong = dataclasses.replace(step, right=mutated)
            assert not holds(wrong), f"{step.name} survives {mutated}"


def test_a_bound_needs_a_nonnegative_witness() -> None:
    (positive, _) = PROVED["A3"]
    assert not holds(dataclasses.replace(positive, left=-positive.left, witness=-positive.witness))


def test_a_law_without_steps_is_not_proved() -> None:
    assert not dataclasses.replace(LAWS["P1"], derive=lambda premises: []).prove().proved


def test_words_do_not_commute() -> None:
    tokens = TokenProjectors(Premises())
    assert not holds(tokens.step("J A = J is false", tokens.mean * MIXER, tokens.mean))


def test_words_reduce_their_coefficients() -> None:
    words = MergeWords(Premises())
    mean = words.mean
    assert holds(words.step("J_g J_g = J_g, from T_I + (T - T_I) = T", mean * mean, mean))
    assert not holds(words.step("J_g J_g = J_seg is false", mean * mean, words.segment_mean))


def test_rows_sum_to_one_and_columns_do_not() -> None:
    tokens = TokenSums(Premises())
    assert holds(tokens.step("rows", Sum(ATTENTION[t, s], over(s, T)), Integer(1)))
    assert not holds(tokens.step("columns", Sum(ATTENTION[s, t], over(s, T)), Integer(1)))
    square = Sum(ATTENTION[t, s] ** 2, over(s, T))
    assert not holds(tokens.step("squares", square, Integer(1)))


def test_a_mean_of_means_uses_distinct_indices() -> None:
    tokens = TokenSums(Premises(mean_scale=Integer(1), mean_vector_is_ones=False))
    x = entry(IndexedBase("x", shape=(T, WIDTH), real=True))
    once = tokens.mean(x, t)
    assert holds(tokens.step("J J = J", tokens.mean(lambda token: tokens.mean(x, token), t), once))


def test_the_page_of_laws_is_up_to_date() -> None:
    page = Path(__file__).parents[3] / "docs" / "laws.md"
    assert page.read_text() == laws_page(), "run python -m meanmode.theory.laws.page > docs/laws.md"


def test_the_page_opens_with_the_table_of_all_laws() -> None:
    lines = laws_page().splitlines()
    start = lines.index("| tag | law | statement | source |")
    rows = lines[start + 2 : start + 2 + len(LAWS)]
    assert [row.split("]")[0] for row in rows] == [f"| [{tag}" for tag in LAWS]
    assert {row.count("|") for row in rows} == {5}, "a bar in a formula would end its cell"


def test_an_unknown_law_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="unknown law 'Z9': choose one of P1"):
        law("Z9")


Draw = Callable[..., np.ndarray]


def rows_summing_to_one(draw: Draw, tokens: int = 5) -> np.ndarray:
    weights = draw(tokens, tokens) ** 2
    return weights / weights.sum(1, keepdims=True)


def units(draw: Draw, *shape: int) -> np.ndarray:
    drawn = draw(*shape)
    return drawn / np.sum(drawn * drawn, axis=1, keepdims=True) ** mpmath.mpf("0.5")


def merge_point(draw: Draw) -> tuple[object, ...]:
    """Trunk, branch, alpha, beta and the length of the image segment."""
    return draw(5, 3), draw(5, 3), draw(3), draw(3), 2


def skew_writer() -> np.ndarray:
    """W^T = -W and W W^T = 1/9."""
    third = mpmath.mpf(1) / 3
    writer = np.zeros((4, 4), dtype=int) * third
    for first, second in ((0, 1), (2, 3)):
        writer[first, second], writer[second, first] = third, -third
    return writer


POINTS: dict[str, Callable[[Draw], tuple[object, ...]]] = {
    **dict.fromkeys(("P1", "P2", "N2"), lambda draw: (rows_summing_to_one(draw), draw(5, 3))),
    "G1": lambda draw: (draw(2, 5, 3), draw(2, 5, 4)),
    **dict.fromkeys(("A1", "A2", "A3", "A5"), lambda draw: (draw(5, 3), draw(5, 4))),
    "A4": lambda draw: (units(draw, 5, 3), units(draw, 5, 4)),
    "S1": lambda draw: (rows_summing_to_one(draw), draw(5, 3), draw(5, 3)),
    **dict.fromkeys(("R1", "R2", "R3", "R4", "R5"), merge_point),
    "R6": lambda draw: (
        *merge_point(draw)[:4],
        mpmath.mpf("1e-5"),
        draw(5, 3),
        (draw(5, 3), draw(5, 3), draw(3), draw(3)),
    ),
    "X1": lambda draw: (draw(4, 4) ** 2, draw(4, 3), draw(4, 3), draw(4, 2), 3),
    "C1": lambda draw: (draw(5, 3), draw(5, 4), mpmath.mpf("0.1")),
    "C2": lambda draw: (draw(5), draw(3), mpmath.mpf("0.3"), draw(5, 3)),
    "N1": lambda draw: (draw(5, 3), draw(5, 3)),
    "N3": lambda draw: (rows_summing_to_one(draw), draw(5, 3), mpmath.mpf("0.3")),
    "N4": lambda draw: (rows_summing_to_one(draw), draw(3), draw(5, 3), draw(5, 3)),
    "N7": lambda draw: (draw(5, 3), draw(5, 3), draw(5, 3), draw(3), draw(3)),
    "N8": lambda draw: (
        rows_summing_to_one(draw),
        draw(5, 5) ** 2,
        draw(5, 3),
        draw(5, 3),
        (mpmath.mpf("0.7"), mpmath.mpf("-0.2")),
    ),
    "N9": lambda draw: (
        draw(5, 5) ** 2,
        draw(3),
        draw(5, 3),
        draw(5, 3),
        draw(5, 5),
        (mpmath.mpf("0.7"), mpmath.mpf("-0.2")),
    ),
    "N10": lambda draw: (1 / (1 + draw(5) ** 2), draw(5, 3), draw(3), draw(5, 3)),
    **dict.fromkeys(("E1", "E2", "E3"), lambda draw: (draw(5, 3),)),
    "E4": lambda draw: (draw(4, 3), draw(4, 2), rows_summing_to_one(draw, 4), mpmath.mpf("0.3")),
    "F1": lambda draw: (draw(5, 4), skew_writer(), 6),
    "M1": lambda draw: (draw(5, 4), draw(5, 4), skew_writer(), 6),
    "O1": lambda draw: (mpmath.mpf("5e-5"), 40, mpmath.mpf("0.9")),
    "O2": lambda draw: (units(draw, 6, 4),),
    "O3": lambda draw: tuple(map(mpmath.mpf, ("2e-3", "70", "6.1", "-0.17", "5e-5", "600", "0.7"))),
}
AT_MOST = {"positive", "bounded", "absolute", "bound", "radius_bound"}
"""Claims that are bounds, left <= right."""


@pytest.mark.parametrize("tag", LAWS)
def test_law_holds_at_a_fifty_digit_point(tag: str) -> None:
    random = np.random.default_rng(7)

    def draw(*shape: int) -> np.ndarray:
        return np.vectorize(lambda value: mpmath.mpf(value))(random.standard_normal(shape)).astype(object)

    with mpmath.workdps(60):
        sides = LAWS[tag].evaluate(*POINTS[tag](draw))
        assert sides
        for name, (left, right) in sides.items():
            if name in AT_MOST:
                assert np.all(left <= right), name
            else:
                assert np.max(np.abs(np.asarray(left - right))) < mpmath.mpf(10) ** -50, name


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
def test_the_contraction_bound_holds_and_row_sums_matter(seed: int, tokens: int) -> None:
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


FIRST, SECOND, OTHER = (Symbol(name, integer=True, positive=True) for name in "ijN")
ENTRY, SHORT = (IndexedBase("y", shape=(length,), real=True) for length in (TOKENS, OTHER))
FREE = Symbol("T_0", integer=True, positive=True)


@pytest.mark.parametrize(
    "difference",
    [
        Sum(ENTRY[FREE] * ENTRY[FIRST], over(FIRST, TOKENS)) - Sum(ENTRY[FIRST] ** 2, over(FIRST, TOKENS)),
        Sum(ENTRY[FIRST] * SHORT[SECOND], over(FIRST, TOKENS), over(SECOND, OTHER))
        - Sum(SHORT[FIRST] * SHORT[SECOND], over(FIRST, OTHER), over(SECOND, OTHER)),
        Sum(KroneckerDelta(FIRST, SECOND), over(FIRST, TOKENS), over(SECOND, OTHER)) - TOKENS,
        Sum(ENTRY[FIRST], over(FIRST, TOKENS)) ** 2 - Sum(ENTRY[FIRST] ** 2, over(FIRST, TOKENS)),
    ],
    ids=[
        "a free index with the name of a bound one",
        "another length",
        "a delta across lengths",
        "a square of a sum",
    ],
)
def test_index_sums_tell_different_expressions_apart(difference: Expr) -> None:
    assert IndexSums(Facts()).normal_form(difference) != 0


def test_an_index_outside_an_entry_is_refused() -> None:
    with pytest.raises(IllFormed, match="an index may occur in entries only"):
        IndexSums(Facts()).normal_form(Sum(FIRST, over(FIRST, TOKENS)))


@pytest.mark.parametrize(
    "expression",
    [
        (1 + ImaginaryUnit) ** 2,
        Symbol("z") ** 2,
        (1 + ImaginaryUnit * ENTRY[FIRST]) ** 2,
        Sum(1, (FIRST, 1, -5)),
        ENTRY[FIRST],
    ],
    ids=str,
)
def test_an_expression_that_may_be_negative_is_no_witness(expression: Expr) -> None:
    assert not is_nonnegative(expression)


def test_an_equality_has_no_witness_to_hide_behind() -> None:
    assert not holds(rational("3 = 2", Integer(3), Integer(2), witness=Integer(1)))
