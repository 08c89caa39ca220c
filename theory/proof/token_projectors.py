"""The token-mean projector J, its complement P and a row-stochastic mixer, as non-commuting words."""

from sympy import Expr, Integer

from meanmode.theory.proof.law import TOKENS, Premises, Step
from meanmode.theory.proof.matrix_words import letter, word_normal_form

MIXER, STATE = letter("A"), letter("X")
COLUMN, ROW = letter("v"), letter("v^T")


class TokenProjectors:
    """J and P as words in the column v and its transpose, with the contractions implied by the premises."""

    def __init__(self, premises: Premises) -> None:
        self.mean = premises.mean_scale * COLUMN * ROW
        self.centered = 1 + premises.centering_sign * self.mean
        ones = premises.mean_vector_is_ones
        self.rules: dict[tuple[Expr, Expr], Expr] = {(ROW, COLUMN): TOKENS if ones else Integer(1)}
        if ones and premises.row_sum is not None:
            self.rules[MIXER, COLUMN] = premises.row_sum * COLUMN

    def step(self, name: str, left: Expr, right: Expr) -> Step:
        """Step that claims an identity between words, decided by contraction."""
        return Step(
            name=name, left=left, right=right, normal_form=lambda words: word_normal_form(words, self.rules)
        )
