"""What the residual streams are called, and how their states are laid out."""

import dataclasses
import itertools

from meanmode.sim.anatomy.anatomy import Doubt, Part, Stream
from meanmode.sim.anatomy.autograd_graph import Graph
from meanmode.sim.anatomy.residual_streams import Streams, cone
from meanmode.sim.anatomy.traced_pass import TracedPass

LAYOUTS = {1: "D", 2: "TD", 3: "BTD", 4: "BTTD", 5: "BTTTD"}


@dataclasses.dataclass(slots=True)
class Described:
    """Names of the streams by number, the streams that anything writes to, and what is in doubt."""

    names: list[str]
    streams: tuple[Stream, ...]
    doubts: list[Doubt]


def described(
    graph: Graph,
    streams: Streams,
    trace: TracedPass,
    queries: dict[int, list[tuple[int, ...]]],
    homes: list[str],
    block_of: dict[int, int],
) -> Described:
    """Name and describe the streams.

    Args:
        graph: the graph.
        streams: its streams.
        trace: calls of modules.
        queries: stream -> shapes of the queries of its attentions.
        homes: modules of the blocks.
        block_of: node of an addition -> number of its block.
    """
    blocks: dict[int, list[int]] = {}
    shapes: dict[int, tuple[int, ...]] = {}
    for addition in streams.additions:
        blocks.setdefault(addition.stream, []).append(block_of[addition.node])
        ends = [graph.shape(number) for number in (addition.node, addition.entry, addition.branch)]
        shapes.setdefault(addition.stream, max(ends, key=len))
    doubts: list[Doubt] = []
    names = _named(graph, streams, trace, blocks, homes, doubts)
    listed = []
    for number in sorted(blocks):
        shape = shapes[number]
        layout, sure = _layout(shape, queries.get(number, []))
        if not sure:
            reason = (
                f"states of shape {list(shape)} do not tell batch and tokens apart; batch first is assumed"
            )
            doubts.append(Doubt(what=names[number], reason=reason))
        width = shape[-1]
        parts = tuple(
            Part(stream=names[part], tokens=tokens) for part, tokens in _parts(graph, streams, number, layout)
        )
        listed.append(Stream(name=names[number], width=width, layout=layout, parts=parts))
    return Described(names=names, streams=tuple(listed), doubts=doubts)


def _layout(shape: tuple[int, ...], queries: list[tuple[int, ...]]) -> tuple[str, bool]:
    """Letters of the dimensions of a state, and whether batch and tokens can be told apart."""
    if len(shape) != 3 or not queries:
        return LAYOUTS.get(len(shape), "BTD"), True
    lengths = {query[-2] for query in queries if len(query) > 1}
    if shape[0] == shape[1]:
        return "BTD", shape[0] not in lengths
    return ("TBD" if shape[0] in lengths and shape[1] not in lengths else "BTD"), True


def _parts(graph: Graph, streams: Streams, number: int, layout: str) -> list[tuple[int, int]]:
    """Streams whose states are concatenated to the first state of a joint stream, and their tokens."""
    root = streams.roots[number]
    if not streams.parts[number] or not graph.names[root].startswith("Cat"):
        return []
    axis = layout.index("T")
    found = []
    for other, slot in zip(graph.inputs[root], graph.slots[root], strict=True):
        behind = cone(graph, other, streams.states).trunk if other >= 0 else set()
        shape = graph.shape(other, slot) if other >= 0 else ()
        earlier = sorted({streams.states[state] for state in behind} - {number})
        if earlier and len(shape) > axis:
            found.append((earlier[0], shape[axis]))
    return found


def _named(
    graph: Graph,
    streams: Streams,
    trace: TracedPass,
    blocks: dict[int, list[int]],
    homes: list[str],
    doubts: list[Doubt],
) -> list[str]:
    names = [""] * len(streams.roots)
    if len(blocks) == 1:
        return ["main"] * len(names)
    free = []
    for number in sorted(blocks):
        partners = [other for other in blocks if other != number and set(blocks[other]) & set(blocks[number])]
        if streams.parts[number]:
            names[number] = "joint"
        elif partners:
            names[number] = "context"
        else:
            free.append(number)
    doubled = [number for number, name in enumerate(names) if name == "context"]
    if doubled:
        names[_image(graph, streams, doubled, doubts)] = "image"
    for number in free:
        modules = [homes[block - 1] for block in blocks[number]]
        listed = any(module.rpartition(".")[2].isdigit() for module in modules)
        lists = {module.rpartition(".")[0] if listed else module for module in modules}
        common = _common([name.split(".") for name in lists])
        if listed and len(lists) == 1 and len(common) > 1:  # the name of the list itself says nothing
            common = common[:-1]
        names[number] = ".".join(common) or "stream"
    return _unique(names)


def _common(names: list[list[str]]) -> list[str]:
    """The words with which all names begin."""
    together = zip(*names, strict=False)
    return [words[0] for words in itertools.takewhile(lambda words: len(set(words)) == 1, together)]


def _unique(names: list[str]) -> list[str]:
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return unique


def _image(graph: Graph, streams: Streams, doubled: list[int], doubts: list[Doubt]) -> int:
    """Of the two streams of double-stream blocks, the one that the output is read from."""
    last = {streams.states[number]: number for number in streams.states}
    finals = {stream: max(n for n, s in streams.states.items() if s == stream) for stream in last}
    joint = [stream for stream in finals if streams.parts[stream]]
    if not joint:
        ends = [stream for stream in doubled if _reaches_end(graph, streams, finals[stream])]
        if len(ends) == 1:
            return ends[0]
    for stream in joint:
        sizes = {part: tokens for part, tokens in _parts(graph, streams, stream, "BTD")}
        kept = _kept_tokens(graph, finals[stream])
        matching = [part for part, tokens in sizes.items() if tokens == kept and part in doubled]
        if len(matching) == 1:
            return matching[0]
    first = min(doubled)
    doubts.append(Doubt(what="image", reason="which stream the output is read from is not clear: the first"))
    return first


def _reaches_end(graph: Graph, streams: Streams, state: int) -> bool:
    """Whether something that is no later state uses a state as the last of its stream."""
    stack, seen = [len(graph.nodes) - 1], set()
    while stack:
        number = stack.pop()
        if number == state:
            return True
        if number in seen or number in streams.states:
            continue
        seen.add(number)
        stack.extend(graph.used[number])
    return False


def _kept_tokens(graph: Graph, state: int) -> int:
    """Tokens of the last slice of a state; 0 if there is none."""
    reached = {state}
    for number in range(state + 1, len(graph.nodes)):
        if reached.intersection(graph.used[number]):
            if graph.names[number].startswith(("Slice", "Split")):
                return graph.shape(number)[1]
            reached.add(number)
    return 0
