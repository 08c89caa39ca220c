"""What is measured: tensors of a model's passes become entries of a record, wherever hooks take them."""

# B batch (after a leading axis R of runs in an ensemble), T tokens, D width, M features written, N read,
# S token sets

import functools
import math
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from meanmode.sim.observe.attention_statistics import attention_statistics
from meanmode.sim.observe.deferred import Queue, Work, version
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
from meanmode.sim.observe.singular_values import CenteredNorms
from meanmode.sim.observe.token_parts import TokenParts, cosine, measuring
from meanmode.sim.observe.token_sets import Measured, TokenSets
from meanmode.sim.observe.writer_gradients import (
    WriterModes,
    WriterSum,
    coherence,
    modes_from_gradient,
    writer_modes,
)
from meanmode.sim.trunk.attention import Mixer

Place = tuple[int, int]
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
        self._pending: dict[Place, list[tuple[Tensor, Tensor]]] = {}
        self._with_modes: set[Place] = set()
        self._norms = CenteredNorms()
        self._of_norms: list[tuple[list[tuple[int, ...]], tuple[int, ...]]] = []

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
        if known is not None and known[1] == version(x) and _same(known[0], x):
            if (known[2].plain or not plain) and (known[2].unit or not unit):
                return known[2]
        found = sets.measured(sets.state(x), plain=plain, unit=unit)
        self._trunks[stream] = (x, version(x), found)
        return found

    def wants_state(self) -> tuple[bool, bool]:
        """Whether the parts of the tokens, and those of the unit tokens, of a state are needed."""
        wants = self.record.wants_segments
        return wants("rho", *BRANCH_OBSERVABLES), wants("tcs")

    def state(self, block: int, found: Measured) -> None:
        """Record TCS and rho after a block, 0 for the input."""
        for segment, tokens in found.plain.items():
            self.record.put(_suffixed("rho", segment), (block,), parts_rho(tokens), _pairs(tokens))
        for segment, unit in found.unit.items():
            counted = _pairs(found.plain[segment]) if found.plain else None
            self.record.put(_suffixed("tcs", segment), (block,), cosine(unit), counted)

    def branch(self, place: Place, trunk: Measured, sets: TokenSets, x: Float[Tensor, "*B T D"]) -> None:
        """Record r_TR and VarGain of a branch.

        Args:
            place: block and writer.
            trunk: parts of the trunk that it is added to.
            sets: token sets of the trunk.
            x: output of the branch.
        """
        for segment, parts in sets.measured(x, unit=False).plain.items():
            before = trunk.plain[segment]
            counted = None if isinstance(parts.tokens, int) else parts.tokens > 0
            for name, of in zip(BRANCH_OBSERVABLES, (parts_r_tr, parts_var_gain), strict=True):
                if self.record.wants_segments(name):
                    self.record.put(_suffixed(name, segment), place, of(before, parts), counted)

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

    def _operator(self, mixer: Mixer, places: list[tuple[int, ...]], x: Tensor, *operands: Tensor) -> None:
        wanted = self.record.wants("mu_eff")
        found = attention_statistics(mixer, operands, x, norms=self._norms, singular_value=wanted)
        for name, values in zip(OPERATOR_OBSERVABLES[1:], found[1:], strict=True):
            self.record.put(name, places, values)
        if wanted:
            self._of_norms.append((places, (*x.shape[:-2], mixer.heads)))
            if self._norms.full or self._queue is None:
                self._put_norms()

    def _put_norms(self) -> None:
        """Record mu_eff of all blocks whose matrices wait for their norms."""
        if self._of_norms:
            with torch.no_grad():
                every = self._norms.values().split([math.prod(shape) for _, shape in self._of_norms])
            for (places, shape), values in zip(self._of_norms, every, strict=True):
                self.record.put("mu_eff", places, values.view(shape).mean(-1))
            self._of_norms.clear()

    # the backward pass

    def adjoint(self, block: int, sets: TokenSets, adjoint: Tensor, segment: str = "") -> None:
        """Record the TCS of the loss adjoint dL/dX after a block; samples without directions do not count."""
        with measuring(adjoint.device):
            unit = sets.unit_measured(sets.state(adjoint.detach()))
            self.record.put(_suffixed("adjoint_tcs", segment), (block,), cosine(unit), _pairs(unit))

    def product(
        self,
        place: Place,
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
                # drop the values of an earlier pass, in case this one computes no gradient of the weight
                missing = torch.full(y.shape[:-3], torch.nan, device=y.device)
                self.record.put_modes(place, WriterModes(missing, missing, missing))
        elif self.record.latest:
            self._with_modes.add(place)
            self.record.put_modes(place, writer_modes(y, delta))
        else:
            self.record.writer(place).add(y, delta, kept)

    def _coherence(self, places: list[tuple[int, ...]], y: Tensor, delta: Tensor) -> None:
        found = coherence(y, delta, absolute=self.record.wants("kappa_abs"))
        directed = None
        if bool(found.kappa.isnan().any()):
            # a sample with too few tokens that have a direction has no value; a NaN for any other reason
            # is a result and is kept
            directed = torch.stack([side.abs().amax(-1) != 0 for side in (y, delta)]).all(0).sum(-1)
        for name, values, least in zip(COHERENCE_OBSERVABLES, found, LEAST_DIRECTED, strict=True):
            self.record.put(name, places, values, None if directed is None else directed >= least)

    def gradient(self, place: Place, gradient: Float[Tensor, "*R M N"]) -> None:
        """Add the gradient of a writer's weight in one backward pass: the sum of the products before it."""
        pairs = self._pending.pop(place, [])
        if not pairs:
            return
        with measuring(gradient.device):
            if self.record.latest:
                self._with_modes.add(place)
                self.record.put_modes(place, modes_from_gradient(gradient, pairs))
                return
            summed = self.record.writer(place)
            assert isinstance(summed, WriterSum)
            summed.add_gradient(gradient, pairs)

    def settle(self, place: Place) -> None:
        """Add the products of a writer whose gradient did not follow."""
        for y, delta in self._pending.pop(place, []):
            if not self.record.latest:
                with measuring(y.device):
                    self.record.writer(place).add(y, delta)

    def shared_gradient(self, place: Place, gradient: Any) -> None:
        """Read the gradient that the processes have averaged for a writer's weight; None if it has none."""
        summed = self.record.writers.get(place)
        if isinstance(summed, SharedWriterSum):
            summed.read(gradient)

    def root_mean_square(self, name: str, place: tuple[int, ...], x: Any) -> None:
        """Record the root mean square of a weight or gradient [*R, ...], whole or sharded."""
        with torch.no_grad():
            self.record.put(name, place, mean_square(x.detach(), runs=len(self.record.lead)))

    def root_mean_square_of_rows(
        self, name: str, place: tuple[int, ...], x: Any, rows: Sequence[tuple[int, int]]
    ) -> None:
        """Record the root mean square of some rows of a weight or gradient, whole or sharded."""
        with torch.no_grad():
            self.record.put(name, place, mean_square_of_rows(x.detach(), rows))

    def finish(self) -> None:
        """Complete what waits: deferred measurements, and products whose gradient did not follow."""
        if self._queue is not None:
            self._queue.flush()
        self._put_norms()
        for place in list(self._pending):
            self.settle(place)

    def _do(self, kind: Hashable, work: Work, place: tuple[int, ...], *held: Tensor) -> None:
        if self._queue is None:
            work([place], *(tensor[None] for tensor in held))
        else:
            self._queue.add(kind, work, place, *held)


def _pairs(parts: TokenParts) -> Tensor | None:
    """Which samples have two tokens or more; None if all do."""
    return None if isinstance(parts.tokens, int) else parts.tokens > 1


def _same(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape and one.stride() == other.stride()


def _suffixed(name: str, segment: str) -> str:
    return f"{name}_{segment}" if segment else name
