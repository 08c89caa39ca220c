"""Whether tensors go to functions of our own (kernels for a GPU, closed forms) or to torch's operations."""

import contextlib
import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual

from meanmode.sim.kernels.device_check import agrees


def _can_launch() -> bool:
    """Whether Triton is here, for NVIDIA devices, with what it needs: a C compiler and headers of Python."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    headers = (Path(sysconfig.get_paths()["include"]) / "Python.h").exists()
    found = importlib.util.find_spec("triton") is not None
    return found and torch.version.hip is None and compiler is not None and headers


LAUNCHES = _can_launch()

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None
"""Whether Triton interprets its kernels, by its own switch for tests: they then take CPU tensors."""

OLDEST = 8
"""Compute capability of the oldest NVIDIA devices that get the kernels, the first with bfloat16."""

TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

_plain = 0


@contextlib.contextmanager
def plain_torch() -> Iterator[None]:
    """Use no kernels and no closed forms inside the context, in any thread: all operations are torch's own.

    A pass whose activations are recomputed needs its backward pass inside as well.
    """
    global _plain
    _plain += 1
    try:
        yield
    finally:
        _plain -= 1


def fused(x: Tensor, *others: Tensor) -> bool:
    """Whether kernels take these tensors.

    They do on a CUDA device if Triton is installed and the kernels passed the check of their results there,
    which the first call makes; a compiler sees them as opaque operators. Function transforms, forward-mode
    differentiation and tensor subclasses need torch's own operations.
    """
    if not (INTERPRETED or (LAUNCHES and x.is_cuda)) or _plain or not x.numel():
        return False
    given = (x, *others)
    if any(each.dtype not in TYPES or each.device != x.device for each in given):
        return False
    if x.is_cuda and torch.cuda.get_device_properties(x.device).major < OLDEST:
        return False
    return (torch.compiler.is_compiling() or takes_functions(*given)) and agrees(x.device)


def takes_functions(*given: Tensor) -> bool:
    """Whether autograd functions of our own may take these tensors, outside of a compiler.

    Not so inside `plain_torch`, nor for function transforms, forward-mode differentiation, tensor subclasses
    and `torch.jit.trace`.
    """
    return (
        not _plain
        and torch._C._get_tracing_state() is None
        and all(type(each) in (Tensor, nn.Parameter) and unpack_dual(each).tangent is None for each in given)
        and not torch._C._are_functorch_transforms_active()
    )


def computed_type(*tensors: Tensor) -> torch.dtype:
    """The type that kernels compute in: single precision, or double if any of their inputs is."""
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32
