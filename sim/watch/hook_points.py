"""Where a measured step looks into a model, compiled or not."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

ARGUMENTS, OUTPUT, PRODUCT = "arguments", "output", "product"
"""What a hook point takes: arguments before the call, the output, or both, to replace the latter."""


@dataclass(frozen=True, kw_only=True)
class HookPoint:
    """Work on the tensors that enter or leave a module.

    Attributes:
        name: a name that no other point of the model has.
        module: the module.
        takes: `ARGUMENTS`, `OUTPUT` or `PRODUCT`.
        work: takes module, arguments and named arguments, or module, arguments and output, or all four.
        chosen: position or name of the argument that it looks at; None where there is none.
        paths: where the tensors are that it looks at, in the output.
    """

    name: str
    module: nn.Module
    takes: str
    work: Callable[..., Any]
    chosen: int | str | None = 0
    paths: tuple[tuple[int | str, ...], ...] = ((),)

    def hook(self) -> RemovableHandle:
        """Hook a module that is not compiled."""
        if self.takes == ARGUMENTS:
            return self.module.register_forward_pre_hook(self.work, with_kwargs=True)
        if self.takes == PRODUCT:
            return self.module.register_forward_hook(self.work, with_kwargs=True)
        return self.module.register_forward_hook(self.work)


def at(value: Any, path: tuple[int | str, ...]) -> Any:
    """The part of nested containers to which some keys lead."""
    for key in path:
        value = value[key]
    return value
