"""`Letter`: a matrix, column or row of declared shape, as a symbol that does not commute."""

from typing import Any

from sympy import Expr, Symbol, sympify


class Letter(Symbol):  # type: ignore[misc]
    """A matrix letter; two letters of one name and different shapes are different.

    Attributes:
        shape: numbers of rows and columns.
    """

    __slots__ = ("shape",)
    shape: tuple[Expr, Expr]

    def __new__(cls, name: str, rows: Any, columns: Any) -> "Letter":
        found = Symbol.__xnew__(cls, name, commutative=False)
        found.shape = (sympify(rows), sympify(columns))
        return found

    def __getnewargs_ex__(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (self.name, *self.shape), {}

    def _hashable_content(self) -> tuple[Any, ...]:
        return (*super()._hashable_content(), self.shape)
