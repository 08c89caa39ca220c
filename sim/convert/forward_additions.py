"""Additions in the Python code of a module's methods: each can be noted as it happens, or replaced."""

import __future__

import ast
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from torch import Tensor, nn

FUTURE = __future__.annotations.compiler_flag


class Unreadable(ValueError):
    """The source of a function cannot be read or compiled apart."""


@dataclass(frozen=True, slots=True)
class Site:
    """An addition in the code of a class.

    Attributes:
        method: name of the method.
        index: number of the addition in it, from 0.
    """

    method: str
    index: int


@dataclass(frozen=True, slots=True)
class NotedAddition:
    """An addition of two tensors that happened in a pass.

    Attributes:
        module: the module whose method added.
        site: where in its code.
        left: first addend.
        right: second addend.
        sum: the result.
    """

    module: nn.Module
    site: Site
    left: Tensor
    right: Tensor
    sum: Tensor


Replace = Callable[[int, str, ast.expr, ast.expr, bool], ast.expr | None]
"""Takes index, name of `self`, addends and whether it is in place; gives what stands for an addition."""


class _Additions(ast.NodeTransformer):
    """Replaces every `a + b` and `a += b`, from the inside out."""

    def __init__(self, own: str, replace: Replace) -> None:
        self.count, self._own, self._replace = 0, own, replace

    def _replaced(self, left: ast.expr, right: ast.expr, in_place: bool) -> ast.expr | None:
        self.count += 1
        return self._replace(self.count - 1, self._own, left, right, in_place)

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        self.generic_visit(node)
        if not isinstance(node.op, ast.Add):
            return node
        return self._replaced(node.left, node.right, False) or node

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.stmt:
        self.generic_visit(node)
        if not isinstance(node.op, ast.Add) or not isinstance(node.target, ast.Name):
            return node
        found = self._replaced(ast.Name(node.target.id, ast.Load()), node.value, True)
        return ast.Assign([node.target], found) if found else node


def methods_that_add(kind: type) -> dict[str, FunctionType]:
    """Methods of a class of modules that have an addition in their readable code, by name."""
    found: dict[str, FunctionType] = {}
    for owner in kind.__mro__:
        if owner is nn.Module:
            break
        for name, value in vars(owner).items():
            if isinstance(value, FunctionType) and name not in found and not name.startswith("__"):
                found[name] = value
    return {name: function for name, function in found.items() if _adds(function)}


def _adds(function: FunctionType) -> bool:
    try:
        tree, _ = _parsed(function)
    except Unreadable:
        return False
    return any(
        isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Add)
        for node in ast.walk(tree)
    )


def _parsed(function: FunctionType) -> tuple[ast.FunctionDef, FunctionType]:
    """The definition of a function, with the lines of its file, and the function behind its decorators."""
    inner = inspect.unwrap(function)
    try:
        lines, first = inspect.getsourcelines(inner)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, TypeError, SyntaxError) as error:
        raise Unreadable(f"the source of {function.__qualname__} cannot be read") from error
    definition = tree.body[0]
    if not isinstance(definition, ast.FunctionDef) or not definition.args.args:
        raise Unreadable(f"{function.__qualname__} is no plain method")
    for node in ast.walk(definition):
        names = (getattr(node, "id", ""), getattr(node, "attr", ""))
        if any(name.startswith("__") and not name.endswith("__") for name in names):
            raise Unreadable(f"{function.__qualname__} uses a private name of its class")
        if isinstance(node, ast.arg):
            node.annotation = None
    definition.returns = None
    ast.increment_lineno(tree, first - 1)
    assert isinstance(inner, FunctionType)
    return definition, inner


def rewritten(function: FunctionType, replace: Replace, **names: Any) -> FunctionType:
    """The same function with other code in place of its additions; its lines stay those of its file.

    Args:
        function: a method.
        replace: gives the code.
        names: values that the code uses by these names.

    Raises:
        Unreadable: there is no source that can be compiled apart from its class.
    """
    definition, inner = _parsed(function)
    definition = _Additions(definition.args.args[0].arg, replace).visit(definition)
    cells = zip(inner.__code__.co_freevars, inner.__closure__ or (), strict=True)
    bound = {name: cell.cell_contents for name, cell in cells} | names
    factory = ast.parse(f"def factory({', '.join(bound)}):\n    return {definition.name}").body[0]
    assert isinstance(factory, ast.FunctionDef)
    factory.body.insert(0, definition)
    module = ast.fix_missing_locations(ast.Module([factory], []))
    flags = inner.__code__.co_flags & FUTURE
    code = compile(module, inner.__code__.co_filename, "exec", flags=flags, dont_inherit=True)
    made: dict[str, Any] = {}
    exec(code, inner.__globals__, made)
    found: FunctionType = made["factory"](**bound)
    found.__qualname__ = function.__qualname__
    return found


def noting_class(kind: type, note: Callable[[NotedAddition], None]) -> type:
    """A subclass whose methods report each addition of two tensors; additions in place are made out of place.

    Methods whose source cannot be read stay as they are.
    """
    methods = {}
    for name, function in methods_that_add(kind).items():

        def noted(
            index: int, module: nn.Module, left: Any, right: Any, in_place: bool, method: str = name
        ) -> Any:
            if not (isinstance(left, Tensor) and isinstance(right, Tensor)):
                if in_place:
                    left += right
                    return left
                return left + right
            total = left + right
            note(NotedAddition(module, Site(method, index), left, right, total))
            return total

        methods[name] = rewritten(function, _call_noted, noted_addition=noted)
    return subclass(kind, methods)


def _call_noted(index: int, own: str, left: ast.expr, right: ast.expr, in_place: bool) -> ast.expr:
    given = [ast.Constant(index), ast.Name(own, ast.Load()), left, right, ast.Constant(in_place)]
    return ast.Call(ast.Name("noted_addition", ast.Load()), given, [])


def merging_class(kind: type, merges: dict[Site, tuple[str, bool]], kept: str) -> type:
    """A subclass that calls modules of its own in place of some additions.

    Args:
        kind: the class.
        merges: site -> name of the attribute that holds the module, and whether the trunk is the first
            addend. The module is called with `trunk`, `branch` and `kept`.
        kept: attribute that holds an object with the attribute `now`, which is passed as `kept`.
    """
    methods = {}
    found = methods_that_add(kind)
    for method in dict.fromkeys(site.method for site in merges):

        def replace(
            index: int, own: str, left: ast.expr, right: ast.expr, _: bool, method: str = method
        ) -> ast.expr | None:
            if Site(method, index) not in merges:
                return None
            name, trunk_first = merges[Site(method, index)]
            order = ("trunk", "branch") if trunk_first else ("branch", "trunk")
            now = ast.parse(f"{own}.{kept}.now", mode="eval").body
            given = [
                ast.keyword(order[0], left),
                ast.keyword(order[1], right),
                ast.keyword("kept", now),
            ]
            return ast.Call(ast.Attribute(ast.Name(own, ast.Load()), name, ast.Load()), [], given)

        methods[method] = rewritten(found[method], replace)
    return subclass(kind, methods)


def subclass(kind: type, methods: dict[str, Any]) -> type:
    """A subclass with other methods, under the name of the class."""
    return type(kind.__name__, (kind,), {"__module__": kind.__module__, "__doc__": kind.__doc__, **methods})
