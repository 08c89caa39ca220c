"""Residual additions in the autograd graph, the streams they form, and the products that write to them."""

# A residual addition joins a trunk, which comes from an earlier state without any matrix product, and a
# branch, which comes from the same state through one. Every search stops at states of the trunk that are
# already known, so the whole costs a few visits of each node.

import dataclasses
import functools
from collections.abc import Container

from meanmode.sim.anatomy.autograd_graph import LEAF, LOOKUPS, PRODUCTS, Graph

ADDITIONS = {"AddBackward0", "SubBackward0", "AddcmulBackward0", "CopySlices", "LerpBackward0"}
"""Nodes that may be residual additions; an addition in place to a view is a `CopySlices`."""

INDEXED = ("Index", "Scatter", "Gather", "MaskedSelect", "CopySlices")
"""Beginnings of the names of nodes that pick or place tokens, as routed experts do."""

BENDING = (
    *("Sigmoid", "Tanh", "Silu", "Gelu", "Relu", "Softmax", "LogSoftmax", "Softplus", "LeakyRelu", "Elu"),
    *(
        "Hardswish",
        "Hardtanh",
        "Erf",
        "Exp",
        "Pow",
        "Rsqrt",
        "Sqrt",
        "Log",
        "Mish",
        "Threshold",
        "Reciprocal",
    ),
    *("Topk", "Sort", "Celu", "Selu", "Prelu", "LinalgVectorNorm", "Norm", "Glu"),
)
"""Beginnings of the names of nodes that are not linear."""


REDUCING = ("Mean", "Sum", "Var", "Std", "Amax", "Amin", "Max", "Logsumexp", "Cumsum")
"""Beginnings of the names of nodes that reduce over an axis."""


@dataclasses.dataclass(slots=True)
class Cone:
    """What lies behind a node up to the next products.

    Attributes:
        nodes: numbers of the nodes without those where the search ended.
        trunk: states of streams where it ended.
        products: products with a weight where it ended -> whether some path to them is linear.
        mixing: products without a weight, and attention operators, where it ended.
        routed: products that are reached through an index.
    """

    nodes: list[int]
    trunk: set[int]
    products: dict[int, bool]
    mixing: set[int]
    routed: set[int]


@dataclasses.dataclass(slots=True)
class Addition:
    """A residual addition.

    Attributes:
        node: its number.
        stream: number of the stream.
        trunk: earlier state that it adds to.
        entry: node of the addend that is the trunk.
        branch: node of the other addend.
        groups: products that write, grouped: each group is one writer, its main product first.
        bent: whether something that is not linear lies between writer and addition.
    """

    node: int
    stream: int
    trunk: int
    entry: int
    branch: int
    groups: list[list[int]]
    bent: bool


@functools.cache
def is_attention(name: str) -> bool:
    """Whether a node is a fused softmax attention."""
    return "ScaledDotProduct" in name or "attn" in name.lower() or "flexattention" in name.lower()


@functools.cache
def _mixes(name: str) -> bool:
    """Whether a node multiplies activations with each other."""
    return name in PRODUCTS or is_attention(name)


@functools.cache
def _begins(name: str, beginnings: tuple[str, ...]) -> bool:
    return name.startswith(beginnings)


def cone(graph: Graph, start: int, states: Container[int], *, whole: bool = False) -> Cone:
    """Search back from a node, through everything but products, lookups and known states.

    With `whole`, reductions end it too, since a mean of the trunk is no trunk.
    """
    found = Cone(nodes=[], trunk=set(), products={}, mixing=set(), routed=set())
    stack, seen = [(start, True, False)], set()
    while stack:
        state = stack.pop()
        if state in seen:
            continue
        seen.add(state)
        number, linear, routed = state
        name = graph.names[number]
        if number in states:
            found.trunk.add(number)
        elif number in graph.products:
            found.products[number] = found.products.get(number, False) or linear
            if routed:
                found.routed.add(number)
        elif _mixes(name):
            found.mixing.add(number)
        elif name != LEAF and name not in LOOKUPS and not (whole and _begins(name, REDUCING)):
            found.nodes.append(number)
            linear = linear and not _begins(name, BENDING)
            routed = routed or _begins(name, INDEXED)
            stack.extend([(other, linear, routed) for other in graph.used[number]])
    found.nodes = sorted(set(found.nodes))
    return found


def region(graph: Graph, ends: list[int], stops: Container[int], below: int = 0) -> tuple[set[int], set[int]]:
    """Everything that some nodes come from, themselves included, back to stops; and the stops reached."""
    nodes: set[int] = set()
    reached: set[int] = set()
    stack = list(ends)
    while stack:
        number = stack.pop()
        if number < below or number in nodes or number in reached:
            continue
        if number in stops:
            reached.add(number)
        else:
            nodes.add(number)
            stack.extend(graph.used[number])
    return nodes, reached


class Streams:
    """Finds all residual additions of a graph.

    Attributes:
        additions: residual additions in the order of the forward pass.
        states: number of a node that is a state of a stream -> number of the stream.
        parts: streams that each stream begins with, joined; empty for most.
        roots: first state of each stream.
        doubts: numbers of nodes and reasons of what was left out.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.additions: list[Addition] = []
        self.states: dict[int, int] = {}
        self.parts: list[tuple[int, ...]] = []
        self.roots: list[int] = []
        self.doubts: list[tuple[int, str]] = []
        self._writers: set[int] = set()
        for number, name in enumerate(graph.names):
            if name in ADDITIONS and len(graph.used[number]) > 1:
                self._look_at(number)

    def _look_at(self, number: int) -> None:
        graph = self.graph
        inputs, slots = graph.inputs[number], graph.slots[number]
        size = _size(graph.shape(number))
        sides = [
            other
            for other, slot in zip(inputs, slots, strict=True)
            if other >= 0 and not graph.is_parameter(other)
            if _size(graph.shape(other, slot)) == size or graph.names[number] == "AddcmulBackward0"
        ]
        if len(sides) < 2 or _size(graph.shape(inputs[0], slots[0])) != size:
            return
        trunks = [inputs[0]] if graph.names[number] == "AddcmulBackward0" else sides[:2]
        for entry in trunks:
            for branch in sides:
                if branch != entry and self._joins(number, entry, branch):
                    return

    def _joins(self, number: int, entry: int, branch: int) -> bool:
        """Whether an addition joins trunk and branch in this order; if so, it is noted."""
        behind = cone(self.graph, branch, self.states)
        shape = max((self.graph.shape(other) for other in (number, entry, branch)), key=len)
        candidates = [
            product for product in behind.products if self._fits(product, shape, product in behind.routed)
        ]
        if not candidates:
            return False
        trunk = cone(self.graph, entry, self.states, whole=True)
        candidates = [product for product in candidates if product not in trunk.products]  # x - mean(x)
        if not candidates:
            return False
        streams = {self.states[state] for state in trunk.trunk}
        if not streams:
            origin = self._common_origin(trunk, candidates, entry)
            if origin is None:
                return False
            streams = {self._begin(origin)}
        if len(streams) > 1:
            joined = self._common_origin(trunk, candidates, entry)
            if joined is None:
                return False
            streams = {self._begin(joined)}
        (stream,) = streams
        written = [product for product in candidates if stream in self.behind(product)]
        new = [product for product in written if product not in self._writers]
        if not new:
            if written:  # a further term of the last addition, such as a mean that is taken away
                self.states[number] = stream
            return bool(written)
        written = new
        linear = [product for product in written if behind.products[product]]
        state = max((s for s in trunk.trunk if self.states[s] == stream), default=self.roots[stream])
        self._drop_detour(stream, state, linear or written)
        self._note(number, stream, state, entry, branch, linear or written, not linear)
        return True

    def _fits(self, product: int, shape: tuple[int, ...], routed: bool) -> bool:
        """Whether a product gives as many features as the trunk has, for every token or for routed ones."""
        found = self.graph.products[product]
        if found.data < 0:
            return False
        width = (
            shape[1] if self.graph.names[product].startswith("Convolution") and len(shape) > 3 else shape[-1]
        )
        if found.features not in (width, shape[-1]):
            return False
        return routed or _size(self.graph.shape(product)) >= _size(shape)

    def _common_origin(self, trunk: Cone, candidates: list[int], entry: int) -> int | None:
        """The latest node behind the trunk's addend that a candidate's activations come from."""
        ends = {*trunk.nodes, *trunk.products, *trunk.mixing, entry}
        ends |= {other for number in trunk.nodes for other in self.graph.used[number]}
        ends = {number for number in ends if not self.graph.is_parameter(number)} - trunk.trunk
        if not ends:
            return None
        below = min(ends)
        data = [self.graph.products[product].data for product in candidates]
        return max(region(self.graph, data, self.states.keys() | ends, below)[1] & ends, default=None)

    def _begin(self, origin: int) -> int:
        """A new stream from a state, or the stream of the same parts if the state joins known streams."""
        before = {self.states[state] for state in cone(self.graph, origin, self.states).trunk}
        parts = tuple(sorted(before))
        if len(parts) == 1:
            self.states[origin] = parts[0]
            return parts[0]
        self.states[origin] = len(self.roots)
        self.roots.append(origin)
        self.parts.append(parts)
        return len(self.roots) - 1

    def behind(self, product: int) -> set[int]:
        """Streams that the activations of a product come from."""
        data = self.graph.products[product].data
        return {self.states[state] for state in region(self.graph, [data], self.states)[1]}

    def _drop_detour(self, stream: int, state: int, written: list[int]) -> None:
        """Take back additions inside the branch that were taken for the trunk: the trunk goes round them."""
        later = []
        for addition in reversed(self.additions):
            if addition.node <= state:
                break
            if addition.stream == stream:
                later.append(addition)
        if not later:
            return
        data = [self.graph.products[product].data for product in written]
        hits = region(self.graph, data, self.states)[1]
        for addition in later:
            if addition.node in hits:
                self.additions.remove(addition)
                del self.states[addition.node]
                self.doubts.append((addition.groups[0][0], "it adds inside a branch, not to the trunk"))

    def _note(
        self,
        number: int,
        stream: int,
        state: int,
        entry: int,
        branch: int,
        written: list[int],
        bent: bool,
    ) -> None:
        self.states[number] = stream
        over_tokens = [product for product in written if self.graph.products[product].over_tokens]
        self.doubts += [
            (product, "it is a convolution over tokens, which is added to the trunk but is no writer")
            for product in over_tokens
        ]
        rest = [product for product in sorted(written) if product not in over_tokens]
        self._writers.update(written)
        if rest:
            self.additions.append(
                Addition(
                    node=number,
                    stream=stream,
                    trunk=state,
                    entry=entry,
                    branch=branch,
                    groups=[rest],
                    bent=bent,
                )
            )


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
