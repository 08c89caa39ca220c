"""Trunks and branches of several blocks, copied as they pass so that they can be measured together."""

# N states and branches, B batch (after a leading axis R of runs in an ensemble), T tokens, D width

import torch
from torch import Tensor

from meanmode.sim.observe.deferred import Place, size_of, version
from meanmode.sim.observe.token_parts import TokenParts
from meanmode.sim.observe.token_sets import Measured, Parts, TokenSets

COPIED_BYTES = 2**17
"""Most bytes of a state that is copied: of larger ones the copy costs more than the calls it saves."""


WAITING_BYTES = 2**21
"""Bytes of copies that wait."""


class WaitingStates:
    """Copies of states and branches: whoever passes them on may change them in place.

    Args:
        plain: whether the parts of tokens are wanted.
        unit: whether those of the unit tokens of states are wanted.

    Attributes:
        blocks: blocks after which a state was taken, in order.
        branches: place of a branch, row of the trunk that it is added to, its own row.
    """

    def __init__(self, plain: bool, unit: bool) -> None:
        self._plain, self._unit = plain, unit
        self.blocks: list[Place] = []
        self.branches: list[tuple[Place, int, int]] = []
        self._sets: TokenSets | None = None
        self._states: list[Tensor] = []
        self._others: list[Tensor] = []
        self._latest: tuple[Tensor, int, int] | None = None

    def fits(self, place: Place, x: Tensor, sets: TokenSets) -> bool:
        """Whether a state or branch and those that wait can be measured together."""
        waiting = [*self._states[:1], *self._others[:1]]
        alike = all((of.shape, of.dtype) == (x.shape, x.dtype) for of in waiting)
        held = size_of(x) * (len(self._states) + len(self._others) + 2)
        known = place in self.blocks or any(place == of for of, *_ in self.branches)  # of an earlier pass
        return alike and not known and self._sets in (None, sets) and held <= WAITING_BYTES

    def state(self, place: Place, x: Tensor, sets: TokenSets) -> None:
        """Take the trunk after a block."""
        self._sets = sets
        self._latest = (x, version(x), len(self._states))
        self.blocks.append(place)
        self._states.append(x.clone())

    def branch(self, place: Place, trunk: Tensor, x: Tensor, sets: TokenSets) -> None:
        """Take a branch, and the trunk that it is added to unless that is the latest state."""
        self._sets, latest = sets, self._latest
        if latest is not None and latest[1] == version(trunk) and same_place(latest[0], trunk):
            row = latest[2]
        else:
            row = self._other(trunk)
        self.branches.append((place, row, self._other(x)))

    def _other(self, x: Tensor) -> int:
        self._others.append(x.clone())
        return -len(self._others)

    def measured(self) -> tuple[Measured, Parts, Parts]:
        """Parts of the states, of the trunks of all branches, and of the branches, [N, *R, B, ...]."""
        assert self._sets is not None
        states = Measured({}, {})
        if self._states:
            states = self._sets.measured(torch.stack(self._states), plain=self._plain, unit=self._unit)
        if not self.branches:
            return states, {}, {}
        others = self._sets.measured(torch.stack(self._others), unit=False).plain
        rows = [[row if row >= 0 else len(self._states) - 1 - row for row in of[1:]] for of in self.branches]
        trunks, branches = zip(*rows, strict=True)
        every = {name: _joined(states.plain.get(name), parts) for name, parts in others.items()}
        return states, _rows(every, trunks), _rows(every, branches)


def same_place(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same numbers in memory."""
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape and one.stride() == other.stride()


def _joined(states: TokenParts | None, others: TokenParts) -> TokenParts:
    if states is None:
        return others
    mean, spread = (torch.cat(parts) for parts in zip(states[1:], others[1:], strict=True))
    return TokenParts(others.tokens, mean, spread)


def _rows(every: Parts, rows: tuple[int, ...]) -> Parts:
    index = torch.tensor(rows)
    return {name: TokenParts(of.tokens, of.mean[index], of.spread[index]) for name, of in every.items()}
