"""The weights of queries, keys and values of a softmax attention, and which of their rows."""

import dataclasses
import functools
from collections.abc import Callable

import torch
from torch import Tensor

from meanmode.sim.anatomy.anatomy import Reader, Weight
from meanmode.sim.anatomy.autograd_graph import CUTTING, Graph
from meanmode.sim.anatomy.residual_streams import Streams, cone
from meanmode.sim.anatomy.writer_branches import Attention, is_norm

Ranges = tuple[tuple[int, int], ...]

MOVING = (*CUTTING, "Transpose", "Permute")
"""Beginnings of the names of nodes that pick or order features by numbers which are not seen in shapes."""


@dataclasses.dataclass(frozen=True, slots=True)
class Operand:
    """Queries, keys or values: the product they come from, rows of its weight, shape, and if normed."""

    product: int
    rows: Ranges | None
    shape: tuple[int, ...]
    normed: bool


class Readers:
    """Reads the attentions of a graph.

    Args:
        graph: the graph.
        streams: its streams.
        named: names the weight of a product.
    """

    def __init__(self, graph: Graph, streams: Streams, named: Callable[[int], Weight]) -> None:
        self.graph, self.streams, self.named = graph, streams, named
        self._known: dict[object, Ranges | None] = {}
        self._cone = functools.cache(lambda node: cone(graph, node, ()))
        self._kind = functools.cache(functools.partial(_kind, graph))

    def read(self, found: Attention, writer: int, stream: int) -> tuple[Reader | None, str]:
        """The reader of an attention, or None; and what is in doubt about it, if anything.

        Where streams attend together, their queries, keys and values are concatenated; those of the writer's
        own stream are taken.

        Args:
            found: the attention.
            writer: index of the writer that it feeds.
            stream: number of the stream of that writer.
        """
        graph, ends = self.graph, (found.q, found.k, found.v)
        products = [self._product_behind(node, stream) for node, _ in ends]
        if min(products) < 0:
            missing = [name for name, product in zip("qkv", products, strict=True) if product < 0]
            return None, f"no weight was found behind {' and '.join(missing)} of its attention"
        operands, doubt = [], ""
        for (node, slot), product in zip(ends, products, strict=True):
            rows: Ranges | None = ()
            if products.count(product) > 1:
                rows = self._rows(node, slot, product)
            if graph.products[product].cut >= 0:
                rows = _of_parameter(graph, product, rows)
            if rows is None:
                doubt = "queries, keys and values share a weight, in an unknown order of its rows"
            normed = any(is_norm(graph.names[number]) for number in self._cone(node).nodes)
            operands.append(Operand(product, rows, graph.shape(node, slot), normed))
        q, k, v = operands
        weights = [
            dataclasses.replace(self.named(operand.product), rows=operand.rows or ()) for operand in operands
        ]
        # fused operators and products alike end with tokens and features of a head, keys perhaps transposed
        head_width = q.shape[-1]
        reader = Reader(
            writer=writer,
            q=weights[0],
            k=weights[1],
            v=weights[2],
            heads=0 if doubt else _features(graph, q) // head_width,
            kv_heads=0 if doubt else _features(graph, v) // head_width,
            head_width=head_width,
            qk_norm=q.normed or k.normed,
        )
        return reader, doubt

    def _product_behind(self, node: int, stream: int) -> int:
        """The product with a weight that an operand comes from; -1 if there is none."""
        products = self.graph.products
        if node in products:
            return node
        found = [product for product in self._cone(node).products if products[product].data >= 0]
        if len(found) < 2:
            return max(found, default=-1)
        own = {product: stream in self.streams.behind(product) for product in found}
        return max(found, key=lambda each: (own[each], products[each].features, each))

    def _rows(self, node: int, slot: int, product: int) -> Ranges | None:
        """Output features of a product that an operand depends on; None if that cannot be told.

        Layers alike have equal nodes between, so that they are looked at once.
        """
        graph, features = self.graph, self.graph.products[product].features
        between = _between(graph, node, product)
        key = (slot, features, *[self._kind(number, product) for number in between])
        if key not in self._known:
            gradient = _gradient(graph, node, slot, product)
            if gradient is None or gradient.shape[-1] != features:
                self._known[key] = None
            else:
                self._known[key] = _ranges((gradient.reshape(-1, features) != 0).any(0).tolist())
        return self._known[key]


def _features(graph: Graph, operand: Operand) -> int:
    if operand.rows:
        return sum(stop - start for start, stop in operand.rows)
    return graph.products[operand.product].features


def _of_parameter(graph: Graph, product: int, rows: Ranges | None) -> Ranges | None:
    """Rows of a parameter, from rows of that part of it with which a product is computed."""
    if rows is None:
        return None
    found = graph.products[product]
    leaf = found.cut
    while graph.leaf(leaf) is None:
        leaf = graph.used[leaf][0]
    gradient = _gradient(graph, found.cut, 0, leaf)
    if gradient is None or gradient.ndim != 2:
        return None
    whole = [row for row, used in enumerate((gradient != 0).any(int(not found.transposed))) if used]
    if len(whole) != found.features:
        return None
    inside = {index for start, stop in rows for index in range(start, stop)} or set(range(len(whole)))
    taken = {row for index, row in enumerate(whole) if index in inside}
    return _ranges([row in taken for row in range(max(taken) + 1)])


def _between(graph: Graph, node: int, end: int) -> list[int]:
    """Nodes on the way back from one to an earlier one, both included; the last made comes first."""
    between, stack = set[int](), [node]
    while stack:
        number = stack.pop()
        if number >= end and number not in between:
            between.add(number)
            stack.extend(graph.used[number])
    return sorted(between, reverse=True)


def _kind(graph: Graph, number: int, end: int) -> object:
    """What a node does and to which nodes, counted from another: the same in layers that are alike."""
    name = graph.names[number]
    inputs = tuple(other - end if other >= end else -1 for other in graph.inputs[number])
    fields = ("dim", "dim0", "dim1", "dims", "index", "start", "end", "step")
    saved = tuple(
        str(getattr(graph.nodes[number], f"_saved_{field}", ""))
        for field in (fields if name.startswith(MOVING) else ())
    )
    return name, graph.shape(number), inputs, tuple(graph.slots[number]), saved


def _gradient(graph: Graph, node: int, slot: int, end: int) -> Tensor | None:
    """Derivative of a random combination of one node's output by another's, by the nodes between, one by one.

    No engine runs and nothing is accumulated in `.grad`.
    """
    between = _between(graph, node, end)
    shape = graph.nodes[node]._input_metadata[slot]
    start = torch.rand(tuple(shape.shape), generator=torch.Generator().manual_seed(0)) + 0.5
    gradients: dict[int, dict[int, Tensor]] = {node: {slot: start.to(dtype=shape.dtype, device=shape.device)}}
    with torch.no_grad():
        for number in between:
            if (
                number == end
                or number not in gradients
                or graph.leaf(number) is not None
                or number in graph.products
            ):
                continue
            outputs = len(graph.nodes[number]._input_metadata)
            try:
                given = graph.nodes[number](*(gradients[number].get(index) for index in range(outputs)))
            except RuntimeError:
                return None
            returned = given if isinstance(given, tuple) else (given,)
            for other, index, value in zip(graph.inputs[number], graph.slots[number], returned, strict=False):
                if value is not None and other >= end:
                    held = gradients.setdefault(other, {})
                    held[index] = held[index] + value if index in held else value
    return gradients.get(end, {}).get(0)


def _ranges(touched: list[bool]) -> Ranges:
    edges = [
        index
        for index, (before, now) in enumerate(zip([False, *touched], [*touched, False], strict=True))
        if before != now
    ]
    return tuple(zip(edges[::2], edges[1::2], strict=True))
