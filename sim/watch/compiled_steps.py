"""Measured steps of compiled models: whether they can be compiled too, and where their passes begin."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from meanmode.sim.anatomy.traced_pass import tensors_in
from meanmode.sim.anatomy.untouched import attributes, random_states
from meanmode.sim.watch.compiled_hooks import CompiledHooks
from meanmode.sim.watch.guard import Guard, say
from meanmode.sim.watch.training_processes import OPTIMIZED, TrainingProcesses, unwrapped

Begin = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]


class CompiledSteps:
    """Measured steps that run compiled, from the second on: the first one checks values, uncompiled.

    Args:
        model: the model as it was given, in its wrappers.
        guard: wraps what may fail.

    Attributes:
        functions: numbers of functions in compiled code, as `CompiledHooks` takes them.
    """

    def __init__(self, model: nn.Module, guard: Guard) -> None:
        self._outer, self._model, self._guard = model, unwrapped(model), guard
        self.functions: dict[str, int] = {}
        self._tried = self._failed = self._trying = self._begun = False

    def possible(self, processes: TrainingProcesses) -> bool:
        """Whether the model or a part of it is compiled, in a single process, and hooks can be too."""
        return not self._failed and processes.group is None and any(map(_compiled, self._outer.modules()))

    @contextlib.contextmanager
    def begun(self, hooks: CompiledHooks, begin: Begin, otherwise: Begin) -> Iterator[None]:
        """Call `begin` before every forward pass of the model inside the context.

        The first such pass is preceded by a trial: if the hooks cannot be compiled, they are withdrawn, and
        `otherwise` is called to measure the pass that begins in another way.

        Args:
            hooks: the hooks of the step, installed.
            begin: takes model, arguments and named arguments.
            otherwise: the same.
        """

        def first_of_all(args: tuple[Any, ...], options: dict[str, Any]) -> None:
            if self._trying:
                return
            if not self._tried and torch.is_grad_enabled():
                self._try(hooks, args, options)
            (otherwise if self._failed else begin)(self._model, args, options)
            self._begun = True

        self._begun = False
        guarded = self._guard(first_of_all)

        def start(_: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
            if not torch.compiler.is_compiling():
                guarded(args, options)

        with contextlib.ExitStack() as stack:
            called = [module for module in (self._model, self._wrapper()) if module is not None]
            for module in called:
                first = module.register_forward_pre_hook(start, with_kwargs=True, prepend=True)
                stack.callback(first.remove)
            whole = self._model._compiled_call_impl
            if whole is not None:

                def compiled(*args: Any, **options: Any) -> Any:
                    guarded(args, options)
                    return whole(*args, **options)

                self._model._compiled_call_impl = compiled
                stack.callback(setattr, self._model, "_compiled_call_impl", whole)
            yield
        missed = sum(not found for found in hooks.points.values())
        if missed and not self._failed and self._begun:
            self._failed = hooks.incomplete = True
            say(
                f"this step was not measured, and measured steps run uncompiled from now on: {missed} of "
                f"{len(hooks.points)} hooks were not seen in compiled code"
            )

    def _wrapper(self) -> nn.Module | None:
        """The wrapper of `torch.compile` around the model; None if there is none."""
        return next(
            (of for of in self._outer.modules() if getattr(of, "_orig_mod", None) is self._model), None
        )

    def _try(self, hooks: CompiledHooks, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        """Run both passes once without measuring; buffers and random states are put back."""
        self._tried = self._trying = True
        wrapper = self._wrapper()
        model = self._model if wrapper is None else wrapper
        with attributes(list(self._model.modules())), random_states(), hooks.asleep():
            try:
                ends = [x.float().mean() for _, x in tensors_in(model(*args, **options)) if x.requires_grad]
                free = [x for x in self._model.parameters() if x.requires_grad and not x._backward_hooks]
                if ends and free:
                    torch.autograd.grad(torch.stack(ends).sum(), free[:1], allow_unused=True)
            except Exception as error:
                self._failed = True
                reason = str(error).strip().partition("\n")[0]
                say(
                    "measured steps run uncompiled, since the hooks could not be compiled with the model: "
                    f"{type(error).__name__}: {reason}"
                )
            finally:
                self._trying = False
        if self._failed:
            hooks.withdraw()
        else:
            _make_room()


@functools.cache
def _make_room() -> None:
    """Double how many codes may be compiled from one function, since those of measured steps count too."""
    for name in ("recompile_limit", "accumulated_recompile_limit"):
        setattr(torch._dynamo.config, name, 2 * getattr(torch._dynamo.config, name))


def _compiled(module: nn.Module) -> bool:
    return module._compiled_call_impl is not None or type(module).__name__ == OPTIMIZED
