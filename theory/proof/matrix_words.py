"""Words in non-commuting matrix letters: a normal form that decides token-projector identities for every T.

A matrix over tokens is a sum of words in letters such as A, X, 1 (the column of ones) and 1^T. The only rules
are the contractions of neighbouring letters that follow from the facts, A 1 -> 1 and 1^T 1 -> T, so two
expressions with the same expanded and contracted form are equal for every number of tokens. Neighbours must
have fitting shapes, and all words of a sum one shape.
"""

from collections.abc import Iterator, Mapping
from itertools import pairwise

from sympy import Add, Expr, Mul, Pow, S, cancel, expand, nan, oo, zoo

from meanmode.theory.proof.index_rules import IllFormed, same_length
from meanmode.theory.proof.letters import Letter

Products = Mapping[tuple[Letter, Letter], Expr]
Shape = tuple[Expr, Expr]


def _spelled(factor: Expr) -> Iterator[Letter]:
    """Yield the letters of one factor; sympy writes A A as a power."""
    base, exponent = factor.as_base_exp() if isinstance(factor, Pow) else (factor, S.One)
    if not isinstance(base, Letter) or not (exponent.is_Integer and exponent > 0):
        raise IllFormed(f"a word is made of letters of declared shape, got {factor}")
    for _ in range(int(exponent)):
        yield base


def _words(expression: Expr) -> Iterator[tuple[Expr, list[Letter]]]:
    """Yield the coefficient and the letters of every word."""
    for term in Add.make_args(expand(expression)):
        scalars, factors = term.args_cnc()
        yield Mul(*scalars), [letter for factor in factors for letter in _spelled(factor)]


def _shape(word: list[Letter]) -> Shape:
    for first, second in pairwise(word):
        if not same_length(first.shape[1], second.shape[0]):
            raise IllFormed(f"{first} {first.shape} cannot be multiplied by {second} {second.shape}")
    return word[0].shape[0], word[-1].shape[1]


def _equal_shapes(first: Shape, second: Shape) -> bool:
    return all(map(same_length, first, second))


def check_shapes(expression: Expr) -> Shape | None:
    """Shape of a sum of words; None if it has no letters.

    Raises:
        IllFormed: letters without a shape, neighbours or summands whose shapes do not fit, or a value that is
            not finite.
    """
    if expression.has(nan, oo, -oo, zoo):
        raise IllFormed(f"a side must be finite, got {expression}")
    found: Shape | None = None
    square = False
    for coefficient, word in _words(expression):
        if not word:
            square = square or coefficient != 0
            continue
        shape = _shape(word)
        if found is not None and not _equal_shapes(found, shape):
            raise IllFormed(f"words of shapes {found} and {shape} are added in {expression}")
        found = shape
    if square and found is not None and not same_length(*found):
        raise IllFormed(f"1 is added to a word of shape {found} in {expression}")
    return found


def _check_products(products: Products) -> None:
    for (first, second), value in products.items():
        shape, stated = _shape([first, second]), check_shapes(value)
        scalar = stated is None and (value == 0 or all(same_length(length, S.One) for length in shape))
        if not scalar and (stated is None or not _equal_shapes(shape, stated)):
            raise IllFormed(f"{first} {second} has shape {shape}, but is said to be {value}")


def _contract(word: list[Letter], products: Products) -> Expr | None:
    """Replace the leftmost contractible pair of a word; None if no product is known."""
    for index, pair in enumerate(pairwise(word)):
        if pair in products:
            return Mul(*word[:index], products[pair], *word[index + 2 :])
    return None


def word_normal_form(expression: Expr, products: Products) -> Expr:
    """Sum of fully contracted words with reduced coefficients; exactly 0 for what follows from the products.

    Raises:
        IllFormed: shapes that do not fit (`check_shapes`).
    """
    check_shapes(expression)
    _check_products(products)
    pending, done = list(_words(expression)), dict[Expr, Expr]()
    while pending:
        scalar, word = pending.pop()
        contracted = _contract(word, products)
        if contracted is None:
            spelled = Mul(*word)
            done[spelled] = done.get(spelled, S.Zero) + scalar
        else:
            pending.extend(_words(scalar * contracted))
    return Add(*(_reduced(coefficient) * word for word, coefficient in done.items()))


def _reduced(coefficient: Expr) -> Expr:
    """Put the coefficient over one denominator; a single term needs no `cancel`, which is slow."""
    return cancel(coefficient) if isinstance(coefficient, Add) else coefficient
