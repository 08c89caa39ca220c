"""The token-mean projector J, its complement P and a row-stochastic mixer, as non-commuting words."""

from sympy import Expr, Integer

from meanmode.theory.proof.law import TOKENS, Premises
from meanmode.theory.proof.letters import Letter
from meanmode.theory.proof.step import Algebra, Facts, Step
from meanmode.theory.proof.symbols import WIDTH

MIXER, STATE = Letter("A", TOKENS, TOKENS), Letter("X", TOKENS, WIDTH)
COLUMN, ROW = Letter("v", TOKENS, 1), Letter("v^T", 1, TOKENS)


class TokenProjectors:
    """J and P as words in the column v and its transpose, with the contractions implied by the premises."""

    def __init__(self, premises: Premises) -> None:
        self.mean = premises.mean_scale * COLUMN * ROW
        self.centered = 1 + premises.centering_sign * self.mean
        ones = premises.mean_vector_is_ones
        self.products: dict[tuple[Letter, Letter], Expr] = {(ROW, COLUMN): TOKENS if ones else Integer(1)}
        if ones and premises.row_sum is not None:
            self.products[MIXER, COLUMN] = premises.row_sum * COLUMN

    def step(self, name: str, left: Expr, right: Expr) -> Step:
        """Step that claims an identity between words, decided by contraction."""
        return Step(
            name=name, left=left, right=right, algebra=Algebra.WORDS, facts=Facts(products=self.products)
        )
