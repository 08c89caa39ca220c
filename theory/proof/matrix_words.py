"""Words: an algebra of non-commuting matrix letters in which token-projector identities are decided for every
T.

A matrix over tokens is a sum of words in letters such as A, X, 1 (the column of ones) and 1^T. The only rules
are the contractions of neighbouring letters that the premises give, A 1 -> 1 and 1^T 1 -> T, so two
expressions are equal for every number of tokens as soon as their expanded, contracted forms agree.
"""

from collections.abc import Iterator, Mapping
from itertools import pairwise

from sympy import Add, Expr, Mul, Pow, S, Symbol, cancel, expand

Rules = Mapping[tuple[Expr, Expr], Expr]


def letter(name: str) -> Symbol:
    """A matrix, column or row of unspecified size: a symbol that does not commute."""
    return Symbol(name, commutative=False)


def _spelled(factor: Expr) -> Iterator[Expr]:
    """The letters of one factor; sympy writes A A as a power."""
    if isinstance(factor, Pow) and not factor.is_commutative:
        base, exponent = factor.as_base_exp()
        assert exponent.is_Integer and exponent > 0, f"words have positive powers only, got {factor}"
        for _ in range(int(exponent)):
            yield base
    else:
        yield factor


def _contract(word: list[Expr], rules: Rules) -> Expr | None:
    """The word with its leftmost contractible pair replaced, or None where no rule applies."""
    for place, pair in enumerate(pairwise(word)):
        if pair in rules:
            return Mul(*word[:place], rules[pair], *word[place + 2 :])
    return None


def word_normal_form(expression: Expr, rules: Rules) -> Expr:
    """The sum of fully contracted words, coefficients reduced; 0 exactly for what follows from the rules."""
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
    """The coefficient over one denominator; a single term is reduced as it is, and cancel is slow."""
    return cancel(coefficient) if isinstance(coefficient, Add) else coefficient
