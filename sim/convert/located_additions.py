"""Where in the code of a model each residual addition is made, and whether tokens see later ones."""

# B batch, T tokens, D width

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from meanmode.sim.anatomy.anatomy import Anatomy, Writer
from meanmode.sim.anatomy.autograd_graph import Graph
from meanmode.sim.anatomy.parameter_names import ParameterNames
from meanmode.sim.anatomy.residual_streams import Addition, Streams
from meanmode.sim.anatomy.traced_pass import traced
from meanmode.sim.convert.forward_additions import NotedAddition, Site, noting_class
from meanmode.sim.trunk.combinations import Combination


@dataclass(frozen=True, slots=True)
class LocatedAddition:
    """A residual addition and where it is made.

    Attributes:
        writer: the writer whose branch is added; of several, the first.
        home: name of the module whose method adds.
        site: the place in its code.
        trunk_first: whether the trunk is the first addend.
        trunk: the trunk before it, in the graph of the pass.
        sum: the trunk after it.
    """

    writer: Writer
    home: str
    site: Site
    trunk_first: bool
    trunk: Tensor
    sum: Tensor


def located_additions(model: nn.Module, run: Any, anatomy: Anatomy) -> list[LocatedAddition]:
    """The residual additions of the writers of an anatomy, in the order of the forward pass.

    Args:
        model: the model; its parameters should ask for gradients.
        run: a batch or a callable, as `discover` takes it.
        anatomy: its anatomy.

    Raises:
        ValueError: an addition is not a `+` in the readable code of a module's method.
    """
    names = {id(module): name for name, module in model.named_modules()}
    homes = _homes(model, run)
    notes: list[NotedAddition] = []
    with _noting([model.get_submodule(name) for name in homes], notes):
        trace = traced(model, run)
    graph = Graph(trace.roots)
    by_node = {note.sum.grad_fn: note for note in notes}
    weights = ParameterNames(model, trace, graph)
    found = []
    for addition in Streams(graph).additions:
        writer = _writer(addition, weights, anatomy)
        if writer is None:
            continue
        note = by_node.get(graph.nodes[addition.node])
        home = trace.call_at(graph.sequence[addition.node])
        if note is None:
            raise ValueError(_unknown(model, writer, trace.calls[home].module if home >= 0 else ""))
        left = note.left.grad_fn is not None and graph.nearest(note.left.grad_fn) == addition.entry
        trunk = note.left if left else note.right
        found.append(LocatedAddition(writer, names[id(note.module)], note.site, left, trunk, note.sum))
    return found


def _homes(model: nn.Module, run: Any) -> list[str]:
    """Names of the modules in whose calls, and in those of no module inside, residual additions are made."""
    trace = traced(model, run)
    graph = Graph(trace.roots)
    calls = [trace.call_at(graph.sequence[addition.node]) for addition in Streams(graph).additions]
    homes = list(dict.fromkeys(trace.calls[call].module for call in calls if call >= 0))
    for home in homes:
        if isinstance(model.get_submodule(home), Combination):
            raise ValueError(
                f"the merge {home or type(model).__name__!r} is one of ours already: convert a model once, "
                "and choose the merges of our own blocks in their Setting"
            )
    return homes


@contextlib.contextmanager
def _noting(modules: list[nn.Module], notes: list[NotedAddition]) -> Iterator[None]:
    kinds = [type(module) for module in modules]
    classes = {kind: noting_class(kind, notes.append) for kind in dict.fromkeys(kinds)}
    try:
        for module, kind in zip(modules, kinds, strict=True):
            module.__class__ = classes[kind]
        yield
    finally:
        for module, kind in zip(modules, kinds, strict=True):
            module.__class__ = kind


def _writer(addition: Addition, weights: ParameterNames, anatomy: Anatomy) -> Writer | None:
    """The writer of an anatomy whose product an addition adds; None if it names none."""
    for product in addition.groups[0]:
        weight = weights.weight(product)
        for writer in anatomy.writers:
            if weight.parameter in (writer.parameter, *writer.added) and weight.call == writer.call:
                return writer
    return None


def _unknown(model: nn.Module, writer: Writer, home: str) -> str:
    where = type(model.get_submodule(home)).__name__
    return (
        f"the residual addition of {writer.parameter} cannot be replaced: it must be a + or += in a method "
        f"of {where} whose Python source can be read"
    )


def sees_later(first: Tensor, last: Tensor, layout: str) -> bool:
    """Whether some token of the last state depends on a later token of the first one.

    Args:
        first: an earlier state of a stream, in the graph of the pass.
        last: a later one.
        layout: a letter for each dimension of a state, with one T.

    """
    axis = layout.index("T")
    tokens = last.shape[axis]
    early = last.narrow(axis, 0, tokens // 2)
    # a norm makes plain sums of features constant
    signs = torch.randn(early.shape, generator=torch.Generator().manual_seed(0)).to(early)
    (gradient,) = torch.autograd.grad((early * signs).sum(), first, retain_graph=True, allow_unused=True)
    if gradient is None:
        return False
    return bool((gradient.narrow(axis, tokens // 2, tokens - tokens // 2) != 0).any())
