"""A forward pass that leaves no trace: flags, random states, buffers and attributes are put back."""

import contextlib
import random
import sys
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import checkpoint

STRUCTURE = ("_parameters", "_buffers", "_modules")
"""Attributes of a module that are dictionaries of named parts."""


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Every parameter asks for gradients inside, in evaluation mode; afterwards the model is bitwise as it
    was.

    Evaluation mode leaves out dropout and layers dropped at random. Activation checkpointing is switched off
    (a reentrant one hides the graph), and compiled modules run uncompiled. Restored are the flags of
    gradients and of training, all buffers and plain attributes of the modules, and the random states of
    python, numpy and torch on the CPU and on initialised CUDA devices. Nothing is added to `.grad`.
    """
    with contextlib.ExitStack() as stack:
        if "torch._dynamo" in sys.modules:  # nothing is compiled without it, and importing it takes seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(random_states())
        reshard(model)
        modules = list(model.modules())
        stack.enter_context(attributes(modules))
        stack.callback(reshard, model)  # before the parameters are put back, which FSDP2 would not notice
        stack.enter_context(_flags(modules))
        stack.enter_context(_no_checkpoints())
        torch.clear_autocast_cache()  # casts of parameters that asked for no gradients
        stack.callback(torch.clear_autocast_cache)  # casts that hold the graph of this pass
        yield


def sharded_modules(model: nn.Module) -> list[Any]:
    """The modules whose parameters FSDP2 (`fully_shard`) shards."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # nothing is sharded without it
    kind = getattr(fsdp, "FSDPModule", None)
    return [module for module in model.modules() if isinstance(module, kind)] if kind else []


def reshard(model: nn.Module) -> None:
    """Give back the parameters that FSDP2 has gathered for a forward pass."""
    for module in sharded_modules(model):
        module.reshard()


@contextlib.contextmanager
def random_states() -> Iterator[None]:
    """Put back the random states of python, numpy and torch."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (what a model may use)
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if cuda else ()):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


@contextlib.contextmanager
def attributes(modules: list[nn.Module]) -> Iterator[None]:
    """Put back buffers and attributes, and the contents of tensors among them that were written to."""
    own = [dict(vars(module)) for module in modules]
    parts = [{name: dict(vars(module)[name]) for name in STRUCTURE} for module in modules]
    held = [tensor for part in parts for tensor in part["_buffers"].values() if tensor is not None]
    held += [value for attributes in own for value in attributes.values() if isinstance(value, Tensor)]
    copies = [(tensor, _version(tensor), tensor.detach().clone()) for tensor in held]
    try:
        yield
    finally:
        for module, attributes, part in zip(modules, own, parts, strict=True):
            for name, named in part.items():
                _put_back(vars(module)[name], named)
            _put_back(vars(module), attributes)
        with torch.no_grad():
            for tensor, version, copy in copies:
                if version < 0 or tensor._version != version:
                    tensor.copy_(copy)


def _put_back(now: dict[str, Any], before: dict[str, Any]) -> None:
    for name in [name for name in now if name not in before]:
        del now[name]
    for name, value in before.items():
        if name not in now or now[name] is not value:
            now[name] = value


@contextlib.contextmanager
def _flags(modules: list[nn.Module]) -> Iterator[None]:
    """Switch gradients on and training off by flags alone: `train` and `eval` may do more in a subclass.

    That of training is an attribute, which is put back with the others.
    """
    parameters = {id(of): of for module in modules for of in module._parameters.values() if of is not None}
    still = [of for of in parameters.values() if of.is_floating_point() and not of.requires_grad]
    try:
        for parameter in still:
            parameter.requires_grad_(True)
        for module in modules:
            vars(module)["training"] = False
        yield
    finally:
        for parameter in still:
            parameter.requires_grad_(False)


class _Direct:
    """Stands for the reentrant checkpoint and calls the function directly."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *arguments: Any) -> Any:
        return function(*arguments)


def _nothing(*arguments: Any, **named: Any) -> Generator[None]:
    """Stands for what the other checkpoint does before and after the function."""
    yield


@contextlib.contextmanager
def _no_checkpoints() -> Iterator[None]:
    # the function itself cannot be replaced: models import it by name
    replaced = {"CheckpointFunction": _Direct, "_checkpoint_without_reentrant_generator": _nothing}
    original = {name: getattr(checkpoint, name) for name in replaced}
    try:
        for name, stand_in in replaced.items():
            setattr(checkpoint, name, stand_in)
        yield
    finally:
        for name, value in original.items():
            setattr(checkpoint, name, value)
