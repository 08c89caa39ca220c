"""Which residual additions make up a block: the smallest module call that holds both kinds of branches."""

import dataclasses
import itertools
from collections.abc import Sequence

from meanmode.sim.anatomy.traced_pass import TracedPass


@dataclasses.dataclass(frozen=True, slots=True)
class Placed:
    """A residual addition: the innermost module call that makes it, its stream, and whether it mixes tokens.

    An addition of several branches may do both.
    """

    call: int
    stream: int
    kinds: frozenset[str]

    @property
    def mixes(self) -> bool:
        """Whether some branch is not a feed-forward."""
        return bool(self.kinds - {"feed-forward"})

    @property
    def feeds(self) -> bool:
        """Whether some branch is a feed-forward."""
        return "feed-forward" in self.kinds


def group(trace: TracedPass, additions: Sequence[Placed]) -> list[tuple[int, list[int]]]:
    """Blocks in the order of the pass: index of the call that is the block, or -1, and its additions.

    Args:
        trace: calls of modules.
        additions: residual additions in the order of the pass.
    """
    held = _held(trace, additions)
    homes = [_smallest_with_both(trace, additions, held, number) for number in range(len(additions))]
    taken = {call for home in homes if home >= 0 for call in trace.enclosing(home)}
    for number, home in enumerate(homes):
        if home < 0:
            homes[number] = _own_call(trace, held, additions[number].call, taken)
    blocks: list[tuple[int, list[int]]] = []
    place: dict[int, int] = {}
    for number, home in enumerate(homes):
        if home >= 0 and home in place:
            blocks[place[home]][1].append(number)
        elif home < 0 and blocks and blocks[-1][0] < 0 and _continues(additions, blocks[-1][1], number):
            blocks[-1][1].append(number)
        else:
            place[home] = len(blocks)
            blocks.append((home, [number]))
    return blocks


def _held(trace: TracedPass, additions: Sequence[Placed]) -> dict[int, list[int]]:
    """Call -> additions made in it, those of calls within included."""
    held: dict[int, list[int]] = {}
    for number, addition in enumerate(additions):
        for call in trace.enclosing(addition.call):
            held.setdefault(call, []).append(number)
    return held


def _smallest_with_both(
    trace: TracedPass, additions: Sequence[Placed], held: dict[int, list[int]], number: int
) -> int:
    """The innermost call around an addition that mixes tokens and feeds forward on its stream; else -1."""
    stream = additions[number].stream
    for call in trace.enclosing(additions[number].call):
        own: list[Placed] = []
        for other in held[call]:
            if additions[other].stream == stream:
                own.append(additions[other])
            if len(own) > 6:  # no block has as many: this is the whole model
                return -1
        if any(each.mixes for each in own) and any(each.feeds for each in own):
            return -1 if _repeats(own) else call
    return -1


def _repeats(own: list[Placed]) -> bool:
    """Whether mixing, feed-forward and mixing branches follow each other: the next block has begun."""
    kinds = [each.mixes for each in own if each.mixes != each.feeds]
    changes = [second for first, second in itertools.pairwise(kinds) if first != second]
    return bool(kinds) and kinds[0] and len(changes) > 1


def _own_call(trace: TracedPass, held: dict[int, list[int]], call: int, taken: set[int]) -> int:
    """The outermost call around an addition that is a member of a list and holds no block, else the
    innermost.

    Never the whole model: -1 instead.
    """
    free = [outer for outer in trace.enclosing(call) if outer not in taken]
    members = [outer for outer in free if trace.calls[outer].module.rpartition(".")[2].isdigit()]
    if members:
        return members[-1]
    return free[0] if free and trace.calls[free[0]].parent >= 0 and len(held[free[0]]) < 4 else -1


def _continues(additions: Sequence[Placed], block: list[int], number: int) -> bool:
    """Whether an addition continues a block that no module holds: a feed-forward ends it."""
    last = additions[block[-1]]
    return additions[number].stream == last.stream and not last.feeds
