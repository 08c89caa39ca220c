"""`discover`: the anatomy of any transformer, from the autograd graph of one forward pass."""

import contextlib
import dataclasses
import gc
import math
from collections.abc import Iterator
from typing import Any

from torch import nn

from meanmode.sim.anatomy.anatomy import Anatomy, Block, Doubt, Norms, Output, Reader, Writer
from meanmode.sim.anatomy.attention_readers import Readers
from meanmode.sim.anatomy.autograd_graph import Graph
from meanmode.sim.anatomy.block_grouping import Placed, group
from meanmode.sim.anatomy.parameter_names import ParameterNames
from meanmode.sim.anatomy.residual_streams import Addition, Streams, cone, region
from meanmode.sim.anatomy.stream_names import described
from meanmode.sim.anatomy.traced_pass import TracedPass, traced
from meanmode.sim.anatomy.untouched import untouched
from meanmode.sim.anatomy.writer_branches import Branch, norm_of_branch, norm_of_trunk
from meanmode.sim.kernels.choice import plain_torch
from meanmode.sim.trunk.combinations import Combination

LABELS = {"attention": "attn", "feed-forward": "ffn", "other": "other"}


def discover(model: nn.Module, run: Any) -> Anatomy:
    """Find residual writers, blocks, streams and readers of a model, in one forward pass.

    An addition is residual if one addend comes from an earlier state without any matrix product and the other
    comes from the same state through one; the last product with a weight in the latter is the writer. The
    time is linear in the size of the autograd graph. The pass runs in evaluation mode with all parameters and
    floating inputs asking for gradients; afterwards the model is bitwise as it was, and so are the random
    states.

    To correct what it finds, change `Anatomy.document()` and read it with `Anatomy.of_document`.

    Args:
        model: any transformer.
        run: a callable without arguments that runs one forward pass and returns its output, or a batch:
            a mapping is passed as named arguments, a list or tuple as arguments, anything else as the only
            argument.

    Raises:
        ValueError: the pass has no autograd graph, or no residual addition is in it.
    """
    # plain torch also for what a checkpointed model recomputes below
    with untouched(model), _no_collection(), plain_torch():
        trace = traced(model, run)
        graph = Graph(trace.roots)
        streams = Streams(graph)
        if not streams.additions:
            raise ValueError(
                f"no residual addition was found in the forward pass of {type(model).__name__}: give a model "
                "with residual branches, and return what depends on them"
            )
        return _Assembly(model, trace, graph, streams).anatomy()


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Pause the garbage collector, which would look through the growing graph again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Found:
    """A writer in the making: the addition, the products, and the branch."""

    def __init__(self, addition: Addition, branch: Branch) -> None:
        self.addition = addition
        self.branch = branch
        self.product = branch.products[0]


class _Assembly:
    """Joins what was found in the graph with the names of the model."""

    def __init__(self, model: nn.Module, trace: TracedPass, graph: Graph, streams: Streams) -> None:
        self.model, self.trace, self.graph, self.streams = model, trace, graph, streams
        self.names = ParameterNames(model, trace, graph)
        self.readers = Readers(graph, streams, self.names.weight)
        self.doubts: list[Doubt] = []
        self.found = [
            _Found(addition, branch) for addition in streams.additions for branch in self._branches(addition)
        ]
        self.found.sort(key=lambda each: (each.addition.node, each.product))

        self.kinds: dict[int, list[str]] = {}
        for each in self.found:
            self.kinds.setdefault(each.addition.node, []).append(each.branch.kind)

    def _branches(self, addition: Addition) -> list[Branch]:
        """Branches that an addition joins: products of one kind, such as experts, are one writer."""
        by_kind: dict[str, list[int]] = {}
        (products,) = addition.groups
        kinds = {product: Branch(self.graph, self.streams, addition, [product]) for product in products}
        for product, branch in kinds.items():
            by_kind.setdefault(branch.kind, []).append(product)
        if len(products) == 1:
            return list(kinds.values())
        size = {product: self.graph.products[product].weights[0].numel() for product in products}
        return [
            Branch(self.graph, self.streams, addition, sorted(same, key=lambda each: (-size[each], each)))
            for same in by_kind.values()
        ]

    def anatomy(self) -> Anatomy:
        """Everything that was found."""
        additions = [self._placed(addition) for addition in self.streams.additions]
        grouped = group(self.trace, additions)
        block_of = {
            self.streams.additions[number].node: index
            for index, (_, members) in enumerate(grouped, start=1)
            for number in members
        }
        readers = [self._readers(number, each) for number, each in enumerate(self.found)]
        self.doubts += [
            Doubt(what=self.names.weight(product).parameter, reason=reason)
            for product, reason in self.streams.doubts
        ]
        homes = [self.trace.calls[call].module if call >= 0 else "" for call, _ in grouped]
        listed = described(self.graph, self.streams, self.trace, self._queries(), homes, block_of)
        self.doubts += listed.doubts
        after = self._norms_after(grouped)
        writers = [
            self._writer(each, block_of[each.addition.node], listed.names, after) for each in self.found
        ]
        sources = [
            tuple(dict.fromkeys(listed.names[stream] for stream in sorted(self._sources(each))))
            for each in self.found
        ]
        return Anatomy(
            writers=_labelled(writers, sources),
            blocks=tuple(self._blocks(grouped, listed.names)),
            streams=listed.streams,
            readers=tuple(
                dataclasses.replace(reader, source=sources[reader.writer])
                for reader in readers
                if reader is not None
            ),
            unsure=tuple(dict.fromkeys(self.doubts)),
        )

    def _queries(self) -> dict[int, list[tuple[int, ...]]]:
        """Stream -> shapes of the queries of its attentions."""
        shapes: dict[int, list[tuple[int, ...]]] = {}
        for each in self.found:
            for attention in each.branch.attentions:
                shapes.setdefault(each.addition.stream, []).append(self.graph.shape(*attention.q))
        return shapes

    def _placed(self, addition: Addition) -> Placed:
        kinds = frozenset(self.kinds[addition.node])
        call = self.trace.call_at(self.graph.sequence[addition.node])
        while call >= 0 and isinstance(self.model.get_submodule(self.trace.calls[call].module), Combination):
            call = self.trace.calls[call].parent
        return Placed(call=call, stream=addition.stream, kinds=kinds)

    def _sources(self, each: _Found) -> set[int]:
        """Streams that the keys of a writer's attention are read from, or else those its branch reads."""
        states = self.streams.states
        if each.branch.attentions:
            keys = each.branch.attentions[-1].k[0]
            return {states[state] for state in region(self.graph, [keys], states)[1]}
        return {states[state] for state in each.branch.sources}

    def _readers(self, number: int, each: _Found) -> Reader | None:
        if each.branch.kind != "attention":
            return None
        stream = each.addition.stream
        reader, doubt = self.readers.read(each.branch.attentions[-1], number, stream)
        if doubt:
            self.doubts.append(Doubt(what=self.names.weight(each.product).parameter, reason=doubt))
        return reader

    def _writer(self, each: _Found, block: int, names: list[str], after: dict[int, str]) -> Writer:
        product = self.graph.products[each.product]
        weight = self.names.weight(each.product)
        others = tuple(self.names.weight(other).parameter for other in each.branch.products[1:])
        if len(product.weights) > 1:
            more = ", ".join(self.names.of(tensor) for tensor in product.weights[1:3])
            self.doubts.append(
                Doubt(what=weight.parameter, reason=f"the weight is computed, also from {more}")
            )
        if each.addition.bent:
            reason = "what it writes passes something nonlinear before it is added"
            self.doubts.append(Doubt(what=weight.parameter, reason=reason))
        shape = tuple(product.weights[0].shape)
        routed = len(shape) == 3 and math.prod(shape) > shape[-1] * shape[-2]
        return Writer(
            parameter=weight.parameter,
            block=block,
            module=weight.module,
            call=weight.call,
            hooked=self.names.hooked(each.product),
            shape=shape,
            transposed=product.transposed,
            experts=shape[0] if routed else 0,
            added=tuple(name for name in dict.fromkeys(others) if name != weight.parameter),
            stream=names[each.addition.stream],
            kind=each.branch.kind,
            norms=Norms(
                before=self._module_at(each.branch.norm_before()),
                branch=self._module_at(norm_of_branch(self.graph, self.streams, each.addition, each.product)),
                after=after.get(each.addition.node, ""),
            ),
        )

    def _module_at(self, node: int) -> str:
        """Name of the module whose call made a node; empty for -1."""
        if node < 0:
            return ""
        call = self.trace.call_at(self.graph.sequence[node])
        return self.trace.calls[call].module if call >= 0 else "(none)"

    def _norms_after(self, grouped: list[tuple[int, list[int]]]) -> dict[int, str]:
        """Node of an addition -> name of the norm of the trunk after it, within its block."""
        homes = {self.streams.additions[number].node: call for call, members in grouped for number in members}
        last: dict[int, Addition] = {}
        found: dict[int, int] = {}
        for addition in self.streams.additions:
            if addition.stream in last:
                found[last[addition.stream].node] = norm_of_trunk(self.graph, self.streams, addition)
            last[addition.stream] = addition
        for addition in last.values():
            found[addition.node] = self._final_norm(addition, homes[addition.node])
        return {node: self._module_at(norm) for node, norm in found.items() if norm >= 0}

    def _final_norm(self, addition: Addition, home: int) -> int:
        """The norm after the last addition of a stream: in the call of the block, and of its output."""
        if home < 0:
            return -1
        for _, node, _ in self.trace.calls[home].outputs:
            number = self.graph.nearest(node)
            if number >= 0:
                end = dataclasses.replace(addition, entry=number)
                return norm_of_trunk(self.graph, self.streams, end)
        return -1

    def _blocks(self, grouped: list[tuple[int, list[int]]], names: list[str]) -> list[Block]:
        blocks = []
        for index, (home, members) in enumerate(grouped, start=1):
            call = self.trace.calls[home] if home >= 0 else None
            written = {self.streams.additions[number].stream for number in members}
            outputs = []
            for path, node, _ in call.outputs if call else ():
                number = self.graph.nearest(node)
                behind = cone(self.graph, number, self.streams.states, whole=True) if number >= 0 else None
                reached = {self.streams.states[state] for state in behind.trunk} if behind else set()
                if len(reached) == 1 and reached <= written:
                    outputs.append(Output(stream=names[reached.pop()], path=path))
            blocks.append(
                Block(
                    index=index,
                    module=call.module if call else "",
                    call=call.number if call else 0,
                    outputs=tuple(outputs),
                )
            )
        return blocks


def _labelled(writers: list[Writer], sources: list[tuple[str, ...]]) -> tuple[Writer, ...]:
    """Give every writer a label that is unique in its block and stream."""
    seen: dict[tuple[int, str, str], int] = {}
    labelled = []
    for writer, source in zip(writers, sources, strict=True):
        crosses = writer.kind == "attention" and writer.stream not in source
        stem = "cross_attn" if crosses else LABELS[writer.kind]
        key = (writer.block, writer.stream, stem)
        seen[key] = seen.get(key, 0) + 1
        label = stem if seen[key] == 1 else f"{stem}_{seen[key]}"
        labelled.append(dataclasses.replace(writer, label=label))
    return tuple(labelled)
