"""What is measured: tensors of a model's passes become entries of a record, wherever hooks take them."""

# B batch (after a leading axis R of runs in an ensemble), T tokens, D width, M features written, N read,
# S token sets

import functools
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from meanmode.sim.observe.attention_statistics import attention_statistics
from meanmode.sim.observe.deferred import Place, Queue, Work, size_of, version
from meanmode.sim.observe.observable_names import (
    BRANCH_OBSERVABLES,
    COHERENCE_OBSERVABLES,
    GRADIENT_MODES,
    OPERATOR_OBSERVABLES,
)
from meanmode.sim.observe.observables import parts_r_tr, parts_rho, parts_var_gain
from meanmode.sim.observe.process_sums import mean_square, mean_square_of_rows
from meanmode.sim.observe.record import Record
from meanmode.sim.observe.shared_writers import SharedWriterSum
from meanmode.sim.observe.token_parts import TokenParts, cosine, measuring
from meanmode.sim.observe.token_sets import Measured, Parts, TokenSets
from meanmode.sim.observe.waiting_states import COPIED_BYTES, WaitingStates, same_place
from meanmode.sim.observe.writer_gradients import (
    WriterModes,
    WriterSum,
    coherence,
    modes_from_gradient,
    modes_from_means,
    token_means,
    whole_tells,
    writer_modes,
)
from meanmode.sim.trunk.attention import Mixer

Writer = tuple[int, int]
"""(block, writer)."""

LEAST_DIRECTED = (1, 2, 2)
"""How many tokens of a sample must have a direction for A, kappa and khat."""


class Measurement:
    """Measures the tensors that hooks hand over, and records the values.

    Args:
        record: receives the values.
        queue: deferred measurements; None measures everything at once.

    Attributes:
        record: receives the values.
    """

    def __init__(self, record: Record, queue: Queue | None = None) -> None:
        self.record = record
        self._queue = queue
        self._trunks: dict[str, tuple[Tensor, int, Measured]] = {}
        self._pending: dict[Writer, list[tuple[Tensor, Tensor]]] = {}
        self._with_modes: set[Writer] = set()
        self._states = WaitingStates(*self.wants_state())

    # the forward pass

    def forget(self, *streams: str) -> None:
        """Forget the trunks of the last forward pass, all or those of some streams."""
        for stream in streams or list(self._trunks):
            self._trunks.pop(stream, None)

    def latest(self, stream: str) -> Measured | None:
        """The parts of the latest trunk of a stream; None if none was measured in this pass."""
        known = self._trunks.get(stream)
        return known[2] if known else None

    def lies_at(self, stream: str, x: Tensor) -> bool:
        """Whether the latest trunk of a stream lies where a tensor does."""
        known = self._trunks.get(stream)
        return known is not None and known[0].data_ptr() == x.data_ptr()

    def trunk(
        self, x: Tensor, sets: TokenSets, *, stream: str = "", plain: bool = True, unit: bool = True
    ) -> Measured:
        """The parts of the current trunk of a stream, computed once for all hooks that need them.

        Args:
            x: the trunk, in the layout of `sets`, or [R, B, T, D].
            sets: its token sets.
            stream: name of the stream.
            plain: whether the parts of the tokens are needed.
            unit: whether those of the unit tokens are needed.
        """
        x = x.detach()
        known = self._trunks.get(stream)
        if known is not None and known[1] == version(x) and same_place(known[0], x):
            if (known[2].plain or not plain) and (known[2].unit or not unit):
                return known[2]
        found = sets.measured(sets.state(x), plain=plain, unit=unit)
        self._trunks[stream] = (x, version(x), found)
        return found

    def wants_state(self) -> tuple[bool, bool]:
        """Whether the parts of the tokens, and those of the unit tokens, of a state are needed."""
        wants = self.record.wants_segments
        return wants("rho", *BRANCH_OBSERVABLES), wants("tcs")

    def state(self, place: Place | list[Place], found: Measured) -> None:
        """Record TCS and rho after a block, (0,) for the input, or after several."""
        for segment, tokens in found.plain.items():
            self.record.put(_suffixed("rho", segment), place, parts_rho(tokens), _pairs(tokens))
        for segment, unit in found.unit.items():
            counted = _pairs(found.plain[segment]) if found.plain else None
            self.record.put(_suffixed("tcs", segment), place, cosine(unit), counted)

    def branch(self, place: Place | list[Place], trunk: Parts, branch: Parts) -> None:
        """Record r_TR and VarGain of a branch, or of several.

        Args:
            place: block and writer.
            trunk: parts of the trunk that it is added to.
            branch: parts of its output.
        """
        for segment, parts in branch.items():
            before = trunk[segment]
            counted = None if isinstance(parts.tokens, int) else parts.tokens > 0
            for name, of in zip(BRANCH_OBSERVABLES, (parts_r_tr, parts_var_gain), strict=True):
                if self.record.wants_segments(name):
                    self.record.put(_suffixed(name, segment), place, of(before, parts), counted)

    def state_later(self, place: Place, x: Float[Tensor, "*B T D"], sets: TokenSets) -> None:
        """Record TCS and rho of a state now, or with those of other blocks."""
        plain, unit = self.wants_state()
        if not plain and not unit:
            return
        if self._waits(place, x, sets):
            self._states.state(place, x.detach(), sets)
        else:
            with measuring(x.device):
                self.state(place, self.trunk(x, sets, plain=plain, unit=unit))

    def branch_later(
        self, place: Place, trunk: Float[Tensor, "*B T D"], x: Float[Tensor, "*B T D"], sets: TokenSets
    ) -> None:
        """Record r_TR and VarGain of a branch now, or with those of other blocks."""
        if x.shape == trunk.shape and x.dtype == trunk.dtype and self._waits(place, x, sets):
            self._states.branch(place, trunk.detach(), x.detach(), sets)
        else:
            with measuring(x.device):
                before = self.trunk(trunk, sets, unit=False).plain
                self.branch(place, before, sets.measured(x.detach(), unit=False).plain)

    def _waits(self, place: Place, x: Tensor, sets: TokenSets) -> bool:
        """Whether a state can be copied to wait; if others wait that are unlike it, these are measured."""
        lead = self.record.lead
        if not self._copied(x) or x.shape[: len(lead)] != lead:
            return False
        if not self._states.fits(place, x, sets):
            self._put_states()
        return True

    def _copied(self, x: Tensor) -> bool:
        """Whether a copy of a tensor can wait, since others may change the tensor itself."""
        return self._queue is not None and x.device.type == "cpu" and size_of(x) <= COPIED_BYTES

    def _put_states(self) -> None:
        """Record the observables of all states and branches that wait."""
        waiting = self._states
        self._states = WaitingStates(*self.wants_state())
        if waiting.blocks or waiting.branches:
            with measuring(torch.device("cpu")):
                states, trunks, branches = waiting.measured()
                self.state(waiting.blocks, states)
                self.branch([place for place, *_ in waiting.branches], trunks, branches)

    def operator(self, block: int, mixer: Mixer, operands: tuple[Tensor, ...], x: Tensor) -> None:
        """Record the statistics of a mixer's matrices.

        Args:
            block: number of the block.
            mixer: the mixer.
            operands: the features its matrices are computed from.
            x: the trunk it reads.
        """
        work = functools.partial(self._operator, mixer)
        self._do(("operator", mixer.form), work, (block,), x.detach(), *operands)

    def _operator(self, mixer: Mixer, places: list[Place], x: Tensor, *operands: Tensor) -> None:
        found = attention_statistics(mixer, operands, x, singular_value=self.record.wants("mu_eff"))
        for name, values in zip(OPERATOR_OBSERVABLES, found, strict=True):
            self.record.put(name, places, values)

    # the backward pass

    def adjoint(self, block: int, sets: TokenSets, adjoint: Tensor, segment: str = "") -> None:
        """Record the TCS of the loss adjoint dL/dX after a block; samples without directions do not count."""
        adjoint, name = adjoint.detach(), _suffixed("adjoint_tcs", segment)
        if self._queue is not None and self._copied(adjoint):
            work = functools.partial(self._adjoint, name, sets)
            self._queue.add((name, sets.segments), work, (block,), adjoint.clone())
            return
        with measuring(adjoint.device):
            unit = sets.unit_measured(sets.state(adjoint))
            self.record.put(name, (block,), cosine(unit), _pairs(unit))

    def _adjoint(self, name: str, sets: TokenSets, places: list[Place], adjoint: Tensor) -> None:
        unit = sets.unit_measured(adjoint)
        self.record.put(name, places, cosine(unit), _pairs(unit))

    def product(
        self,
        place: Writer,
        y: Float[Tensor, "*S T N"],
        delta: Float[Tensor, "*S T M"],
        kept: Bool[Tensor, "*S T 1"] | None = None,
        *,
        gradient_follows: bool,
    ) -> None:
        """Record A, kappa and khat of a writer's products, and add them to its gradient.

        Args:
            place: block and writer.
            y: inputs of the writer.
            delta: cotangents of its outputs.
            kept: tokens that count; the others are zero in both. None keeps all.
            gradient_follows: whether `gradient` is called next, with the sum of these products.
        """
        if self.record.wants(*COHERENCE_OBSERVABLES):
            self._do("coherence", self._coherence, place, y.detach(), delta)
        if not self.record.wants(*GRADIENT_MODES):
            return
        if gradient_follows and self.record.group is None:
            self._pending.setdefault(place, []).append((y, delta))
            if self.record.latest and place in self._with_modes:
                self._flush()
                # drop the values of an earlier pass, in case this one computes no gradient of the weight
                missing = torch.full(y.shape[:-3], torch.nan, device=y.device)
                self.record.put_modes(place, WriterModes(missing, missing, missing))
        elif self.record.latest:
            self._with_modes.add(place)
            self.record.put_modes(place, writer_modes(y, delta))
        else:
            self.record.writer(place).add(y, delta, kept)

    def _coherence(self, places: list[Place], y: Tensor, delta: Tensor) -> None:
        found = coherence(y, delta, absolute=self.record.wants("kappa_abs"))
        directed = None
        if bool(found.kappa.isnan().any()):
            # a sample with too few tokens that have a direction has no value; a NaN for any other reason
            # is a result and is kept
            directed = torch.stack([side.abs().amax(-1) != 0 for side in (y, delta)]).all(0).sum(-1)
        for name, values, least in zip(COHERENCE_OBSERVABLES, found, LEAST_DIRECTED, strict=True):
            self.record.put(name, places, values, None if directed is None else directed >= least)

    def gradient(self, place: Writer, gradient: Float[Tensor, "*R M N"]) -> None:
        """Add the gradient of a writer's weight in one backward pass: the sum of the products before it."""
        pairs = self._pending.pop(place, [])
        if not pairs:
            return
        with measuring(gradient.device):
            if self.record.latest:
                self._with_modes.add(place)
                alone = len(pairs) == 1 and whole_tells(gradient, pairs)
                if self._queue is not None and self._copied(gradient) and alone:
                    # a later pass is added to the gradient in place
                    held = (gradient.clone(), *token_means(*pairs[0]))
                    self._queue.add("modes", self._modes, place, *held, beside=pairs[0])
                else:
                    self.record.put_modes(place, modes_from_gradient(gradient, pairs))
                return
            summed = self.record.writer(place)
            assert isinstance(summed, WriterSum)
            summed.add_gradient(gradient, pairs)

    def _modes(
        self,
        places: list[Place],
        gradient: Tensor,
        y: Tensor,
        delta: Tensor,
        pairs: list[tuple[Tensor, Tensor]],
    ) -> None:
        modes, trusted = modes_from_means(gradient, y, delta)
        for index in (~trusted.view(len(places), -1).all(1)).nonzero()[:, 0].tolist():
            for values, exact in zip(modes, writer_modes(*pairs[index]), strict=True):
                values[index] = exact
        self.record.put_modes(places, modes)

    def _flush(self) -> None:
        if self._queue is not None:
            self._queue.flush()

    def settle(self, place: Writer) -> None:
        """Add the products of a writer whose gradient did not follow."""
        for y, delta in self._pending.pop(place, []):
            if not self.record.latest:
                with measuring(y.device):
                    self.record.writer(place).add(y, delta)

    def shared_gradient(self, place: Writer, gradient: Any) -> None:
        """Read the gradient that the processes have averaged for a writer's weight; None if it has none."""
        summed = self.record.writers.get(place)
        if isinstance(summed, SharedWriterSum):
            summed.read(gradient)

    def root_mean_square(self, name: str, place: tuple[int, ...], x: Any) -> None:
        """Record the root mean square of a weight or gradient [*R, ...], whole or sharded."""
        with torch.no_grad():
            energy = mean_square(x.detach(), runs=len(self.record.lead))
        if self._queue is None or not self.record.latest:  # otherwise read once all is finished
            self.record.put(name, place, energy)
        else:
            self._queue.add(name, functools.partial(self.record.put, name), place, energy)

    def root_mean_square_of_rows(
        self, name: str, place: tuple[int, ...], x: Any, rows: Sequence[tuple[int, int]]
    ) -> None:
        """Record the root mean square of some rows of a weight or gradient, whole or sharded."""
        with torch.no_grad():
            self.record.put(name, place, mean_square_of_rows(x.detach(), rows))

    def finish(self) -> None:
        """Complete what waits: deferred measurements, and products whose gradient did not follow."""
        self._flush()
        self._put_states()
        for place in list(self._pending):
            self.settle(place)

    def _do(self, kind: Hashable, work: Work, place: Place, *held: Tensor) -> None:
        if self._queue is None:
            work([place], *(tensor[None] for tensor in held))
        else:
            self._queue.add(kind, work, place, *held)


def _pairs(parts: TokenParts) -> Tensor | None:
    """Which samples have two tokens or more; None if all do."""
    return None if isinstance(parts.tokens, int) else parts.tokens > 1


def _suffixed(name: str, segment: str) -> str:
    return f"{name}_{segment}" if segment else name
