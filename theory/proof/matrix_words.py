"""Words in non-commuting matrix letters: a normal form that decides token-projector identities for every T.

A matrix over tokens is a sum of words in letters such as A, X, 1 (the column of ones) and 1^T. The only rules
are the contractions of neighbouring letters that follow from the premises, A 1 -> 1 and 1^T 1 -> T, so two
expressions with the same expanded and contracted form are equal for every number of tokens.
"""

from collections.abc import Iterator, Mapping
from itertools import pairwise

from sympy import Add, Expr, Mul, Pow, S, Symbol, cancel, expand

Rules = Mapping[tuple[Expr, Expr], Expr]


def letter(name: str) -> Symbol:
    """A matrix, column or row of unspecified size, as a symbol that does not commute."""
    return Symbol(name, commutative=False)


def _spelled(factor: Expr) -> Iterator[Expr]:
    """Yield the letters of one factor; sympy writes A A as a power."""
    if isinstance(factor, Pow) and not factor.is_commutative:
        base, exponent = factor.as_base_exp()
        assert exponent.is_Integer and exponent > 0, f"words have positive powers only, got {factor}"
        for _ in range(int(exponent)):
            yield base
    else:
        yield factor


def _contract(word: list[Expr], rules: Rules) -> Expr | None:
    """Replace the leftmost contractible pair of a word; None if no rule applies."""
    for index, pair in enumerate(pairwise(word)):
        if pair in rules:
            return Mul(*word[:index], rules[pair], *word[index + 2 :])
    return None


def word_normal_form(expression: Expr, rules: Rules) -> Expr:
    """Sum of fully contracted words with reduced coefficients; exactly 0 for what follows from the rules."""
    pending, done = list(Add.make_args(expand(expression))), dict[Expr, Expr]()
    while pending:
        scalars, factors = pending.pop().args_cnc()
        word = [spelled for factor in factors for spelled in _spelled(factor)]
        contracted = _contract(word, rules)
        if contracted is None:
            spelled_word = Mul(*word)
            done[spelled_word] = done.get(spelled_word, S.Zero) + Mul(*scalars)
        else:
            pending.extend(Add.make_args(expand(Mul(*scalars) * contracted)))
    return Add(*(_reduced(coefficient) * word for word, coefficient in done.items()))


def _reduced(coefficient: Expr) -> Expr:
    """Put the coefficient over one denominator; a single term needs no `cancel`, which is slow."""
    return cancel(coefficient) if isinstance(coefficient, Add) else coefficient
