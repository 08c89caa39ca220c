"""What kind of branch a writer ends, and where the norms around its addition stand."""

import dataclasses
import functools

from meanmode.sim.anatomy.autograd_graph import PRODUCTS, Graph
from meanmode.sim.anatomy.residual_streams import REDUCING, Addition, Streams, cone, is_attention, region

PASSING = (
    "View",
    "Reshape",
    "UnsafeView",
    "Expand",
    "Clone",
    "ToCopy",
    "Transpose",
    "T",
    "Permute",
    "Squeeze",
)
NAMES_PASSED = {
    *(f"{name}Backward{number}" for name in PASSING for number in (0, 1)),
    *("UnsqueezeBackward0", "NativeDropoutBackward0", "MulBackward0", "DivBackward0", "WhereBackward0"),
    *("MaskedFillBackward0", "SliceBackward0", "CloneBackward0", "NanToNumBackward0", "SqueezeBackward1"),
}
"""Nodes between a softmax and the product with the values."""

MIXING = ("Cumsum", "Fft", "Scan", "Roll", "Cumprod", "Lstm", "Gru")


@dataclasses.dataclass(frozen=True, slots=True)
class Attention:
    """A softmax attention: its node, and node and output number of its queries, keys and values."""

    node: int
    q: tuple[int, int]
    k: tuple[int, int]
    v: tuple[int, int]


@functools.cache
def is_norm(name: str) -> bool:
    """Whether a node is a norm, or the part of one that gives it away."""
    return "norm" in name.lower() or name.startswith(("Rsqrt", "Sqrt", "Std"))


class Branch:
    """The way from the trunk to a writer.

    Args:
        graph: the graph.
        streams: its streams.
        addition: the residual addition that it ends in.
        products: the products of one writer, the main one first.

    Attributes:
        products: as given.
        nodes: numbers of the nodes of the branch.
        sources: states of streams that it reads.
        attentions: softmax attentions in it, in the order of the pass.
        kind: `attention`, `feed-forward` or `other`.
    """

    def __init__(self, graph: Graph, streams: Streams, addition: Addition, products: list[int]) -> None:
        self.graph = graph
        self.products = products
        data = [graph.products[product].data for product in products]
        nodes, self.sources = region(graph, data, streams.states)
        # norms and means between the last addition and this one belong to the trunk
        trunk = nodes.intersection(cone(graph, addition.entry, streams.states).nodes)
        self._entries = trunk | {state for state in self.sources if streams.states[state] == addition.stream}
        nodes -= trunk
        self.nodes = sorted(number for number in nodes if not graph.is_parameter(number))
        found = (attention(graph, number) for number in self.nodes)
        self.attentions = [each for each in found if each is not None]
        self.kind = self._kind()

    def _kind(self) -> str:
        if self.attentions:
            return "attention"
        names = self.graph.names
        inner = [number for number in self.nodes if number in self.graph.products]
        mixes = any(
            (names[number] in PRODUCTS and number not in self.graph.products)
            or names[number].startswith(MIXING)
            or (number in self.graph.products and self.graph.products[number].over_tokens)
            for number in self.nodes
        )
        return "other" if mixes or not inner or self._averages() else "feed-forward"

    def _averages(self) -> bool:
        """Whether it reduces an axis other than that of features."""
        for number in self.nodes:
            if self.graph.names[number].startswith(REDUCING):
                before = [self.graph.shape(other) for other in self.graph.used[number]]
                after = self.graph.shape(number)
                if before and len(before[0]) == len(after) and len(after) > 2 and before[0][-1] == after[-1]:
                    return True
        return False

    def norm_before(self) -> int:
        """The last norm between the trunk and the first products of the branch; -1 if there is none."""
        unchanged = set(self._entries)
        norms = []
        for number in self.nodes:
            if number not in self.graph.products and unchanged.intersection(self.graph.used[number]):
                unchanged.add(number)
                if is_norm(self.graph.names[number]):
                    norms.append(number)
        return norms[-1] if norms else -1


def attention(graph: Graph, number: int) -> Attention | None:
    """The softmax attention that a node completes, if it does."""
    name, inputs, slots = graph.names[number], graph.inputs[number], graph.slots[number]
    ends = list(zip(inputs, slots, strict=True))
    if is_attention(name):
        return None if -1 in inputs[:3] else Attention(number, ends[0], ends[1], ends[2])
    if name not in PRODUCTS or number in graph.products:
        return None
    first, second = sorted(PRODUCTS[name])
    if min(inputs[first], inputs[second]) < 0:
        return None
    for weights, values in ((first, second), (second, first)):
        softmax = _softmax_behind(graph, inputs[weights])
        scores = -1 if softmax < 0 else _scores_behind(graph, softmax)
        if scores >= 0:
            q, k = sorted(PRODUCTS[graph.names[scores]])
            pairs = list(zip(graph.inputs[scores], graph.slots[scores], strict=True))
            return Attention(number, pairs[q], pairs[k], ends[values])
    return None


def _softmax_behind(graph: Graph, number: int) -> int:
    while True:
        name = graph.names[number]
        if "softmax" in name.lower():
            return number
        used = [other for other in graph.used[number] if not graph.is_parameter(other)]
        if name not in NAMES_PASSED or len(used) != 1:
            return -1
        number = used[0]


def _scores_behind(graph: Graph, softmax: int) -> int:
    """The product of queries and keys behind a softmax; of several, one whose operands both vary."""
    behind = cone(graph, softmax, ())
    products = [number for number in behind.mixing if graph.names[number] in PRODUCTS]
    varying = [
        number
        for number in sorted(products)
        if not any(graph.is_parameter(other) for other in graph.used[number])
        and min(graph.inputs[number][position] for position in PRODUCTS[graph.names[number]]) >= 0
    ]
    return varying[0] if varying else -1


def norm_of_branch(graph: Graph, streams: Streams, addition: Addition, product: int) -> int:
    """A norm between a writer and its addition; -1 if there is none."""
    if addition.branch == product:
        return -1
    nodes = cone(graph, addition.branch, streams.states).nodes
    return _norm_after(graph, nodes, product)


def norm_of_trunk(graph: Graph, streams: Streams, later: Addition) -> int:
    """A norm of the trunk between the last addition and a later one of its stream; -1 if there is none."""
    behind = cone(graph, later.entry, streams.states)
    return _norm_after(graph, behind.nodes, *behind.trunk)


def _norm_after(graph: Graph, nodes: list[int], *starts: int) -> int:
    reached, norms = set(starts), []
    for number in nodes:
        if reached.intersection(graph.used[number]):
            reached.add(number)
            if is_norm(graph.names[number]):
                norms.append(number)
    return norms[0] if norms else -1
