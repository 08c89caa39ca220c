"""Signs of index expressions: which are sums of nonnegative terms as written."""

from sympy import Add, Expr, KroneckerDelta, Mul, Pow, Sum

from meanmode.theory.proof.index_sums import off_diagonal


def is_nonnegative(expression: Expr) -> bool:
    """Whether the expression, as written, is a sum of products of squares and nonnegative entries."""
    if isinstance(expression, Sum):
        ranges = all(high.is_nonnegative for _, _, high in expression.limits)
        return ranges and is_nonnegative(expression.function)
    if isinstance(expression, Add) and _is_pair_weight(expression):
        return True
    if isinstance(expression, Add | Mul):
        return all(is_nonnegative(argument) for argument in expression.args)
    if isinstance(expression, Pow) and expression.exp.is_Integer and expression.exp % 2 == 0:
        return _is_real(expression.base)
    return bool(expression.is_nonnegative)


def _is_real(expression: Expr) -> bool:
    """Whether every number, entry and symbol of a sum of products is real."""
    if isinstance(expression, Sum):
        return _is_real(expression.function)
    if isinstance(expression, Add | Mul):
        return all(_is_real(argument) for argument in expression.args)
    if isinstance(expression, Pow) and expression.exp.is_Integer:
        return _is_real(expression.base)
    return isinstance(expression, KroneckerDelta) or bool(expression.is_real)


def _is_pair_weight(expression: Add) -> bool:
    return any(expression == off_diagonal(*delta.args) for delta in expression.atoms(KroneckerDelta))
