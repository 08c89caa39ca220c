"""The model that a command is given as MODULE:FUNCTION, a function in code of the user's own."""

import importlib
import sys
from typing import Any

from torch import nn


def model_and_run(target: str, *arguments: int) -> tuple[nn.Module, Any]:
    """Call a function that returns a model and a batch or a forward pass.

    Args:
        target: module and function, joined by a colon; the current folder is searched first.
        arguments: what the function is called with, such as a depth.

    Raises:
        ValueError: there is no such module or function, it fails, or it returns something else.
    """
    module, colon, name = target.partition(":")
    if not (module and colon and name):
        raise ValueError(f"give MODULE:FUNCTION, such as my_model:build, got {target!r}")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        function = importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = f"it needs {error.name!r}" if error.name not in _parents(module) else "there is none"
        raise ValueError(f"cannot import the module {module!r}: {missing}") from error
    except Exception as error:
        raise ValueError(f"cannot import the module {module!r}: {_said(error)}") from error
    for part in name.split("."):
        if not hasattr(function, part):
            raise ValueError(f"the module {module!r} has no function {name!r}")
        function = getattr(function, part)
    if not callable(function):
        raise ValueError(f"{target} is no function: it is of type {type(function).__name__}")
    try:
        returned: Any = function(*arguments)
    except Exception as error:
        raise ValueError(f"{target} failed with {_said(error)}") from error
    if not (isinstance(returned, tuple | list) and len(returned) == 2 and isinstance(returned[0], nn.Module)):
        raise ValueError(
            f"{target} must return a torch module and a batch or a function, got {type(returned).__name__}"
        )
    return returned[0], returned[1]


def _parents(module: str) -> set[str]:
    """A module and the packages it is in."""
    parts = module.split(".")
    return {".".join(parts[: length + 1]) for length in range(len(parts))}


def _said(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
