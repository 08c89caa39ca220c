"""Compiled blocks: whether torch can compile here, and codes for ensembles whose runs end one by one."""

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from meanmode.sim.trunk.stack import Block

CODES = 64
"""Codes that are compiled from one function at most: a few for each kind of block in a process."""


def check_compiler(device: torch.device) -> None:
    """Compile a small function, which takes seconds.

    Raises:
        ValueError: torch cannot compile for the device.
    """

    def doubled(x: Tensor) -> Tensor:
        return 2 * x

    try:
        torch.compile(doubled)(torch.ones(2, device=device))
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"torch.compile does not work here ({first}): install a C++ compiler that torch finds, "
            "or do without compiled blocks"
        ) from error


@contextlib.contextmanager
def compiled_blocks(ensemble: nn.Module, blocks: Sequence[Block]) -> Iterator[None]:
    """Compile the blocks of an ensemble for any number of runs, which may change inside the context.

    One code serves them all, but for a single run, which has its own. Otherwise every number of runs would be
    compiled anew, since compilers take the shapes of parameters as fixed, until torch stopped compiling.
    Importing the compiler takes seconds.
    """
    dynamo = importlib.import_module("torch._dynamo")
    for weight in ensemble.parameters():
        dynamo.maybe_mark_dynamic(weight, 0)
    for block in blocks:
        block.compile()

    def mark(_: nn.Module, given: tuple[Any, ...]) -> None:
        dynamo.maybe_mark_dynamic(given[0], 0)

    # all blocks share the code that the first one gives rise to
    first = blocks[0].register_forward_pre_hook(mark)
    with dynamo.config.patch(force_parameter_static_shapes=False, recompile_limit=CODES):
        try:
            yield
        finally:
            first.remove()
            for block in blocks:
                block.compiled = None
