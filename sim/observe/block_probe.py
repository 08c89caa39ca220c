"""The probe of one block: hooks that measure it during its own forward and backward pass."""

# B batch (after a leading axis R of runs in an ensemble), T tokens, D width, M features written, N read

import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from meanmode.sim.observe import observables
from meanmode.sim.observe.attention_statistics import attention_statistics
from meanmode.sim.observe.layer_hooks import recomputing, watch_writer
from meanmode.sim.observe.observable_names import (
    BRANCH_OBSERVABLES,
    COHERENCE_OBSERVABLES,
    GRADIENT_MODES,
    GRADIENT_SIZES,
    OPERATOR_OBSERVABLES,
    STATE_OBSERVABLES,
)
from meanmode.sim.observe.record import Record
from meanmode.sim.observe.step_record import StepRecord
from meanmode.sim.observe.token_parts import TokenParts, measuring
from meanmode.sim.observe.writer_gradients import (
    centered_gradient,
    coherence,
    mean_coherent,
    modes_from_gradient,
    modes_of_parts,
    writer_modes,
)
from meanmode.sim.trunk.segments import Segments
from meanmode.sim.trunk.stack import Block

HELD_BYTES = 2**25
"""Bytes of activations that deferred measurements may keep alive."""


def _version(x: Tensor) -> int:
    """How often a tensor has been written to; always 0 for tensors of inference mode, which keep no count."""
    return 0 if x.is_inference() else x._version


def _directed_tokens(values: Tensor, *sides: Tensor) -> Tensor | None:
    """Number of tokens per sample that vanish on no side; None if no value is NaN.

    A sample with too few such tokens has no value; a NaN for any other reason is a result and is kept.
    """
    if not bool(values.isnan().any()):
        return None
    return torch.stack([side.abs().amax(-1) != 0 for side in sides]).all(0).sum(-1)


class TrunkParts:
    """Mean and centered part of the latest trunk, computed once for all hooks that need them."""

    def __init__(self) -> None:
        self._seen: tuple[Tensor, int, dict[str, TokenParts]] | None = None

    def remember(self, x: Tensor, parts: dict[str, TokenParts]) -> None:
        """Keep the parts of `x` until it is written to or another trunk comes."""
        self._seen = (x, _version(x), parts)

    def parts(self, x: Tensor, segments: Segments) -> dict[str, TokenParts]:
        """The parts of `x` as `observables.segment_parts` returns them, computed unless remembered."""
        if self._seen is None or self._seen[0] is not x or self._seen[1] != _version(x):
            self.remember(x, observables.segment_parts(x, segments))
        assert self._seen is not None
        return self._seen[2]

    def forget(self) -> None:
        """Release the trunk: its autograd graph refers to the probe, a cycle that is never collected."""
        self._seen = None


class Queue:
    """Deferred measurements, run in batches to make better use of the CPU's caches.

    Only CPU work is deferred, and the memory it keeps alive is bounded by `HELD_BYTES`.
    """

    def __init__(self) -> None:
        self._work: list[tuple[Callable[[], None], tuple[tuple[Tensor, int], ...]]] = []
        self._held = 0

    def add(self, work: Callable[[], None], *held: Tensor, now: bool = False) -> None:
        """Do the work now or later; until then the tensors it reads, `held`, must not be modified."""
        self._work.append((work, tuple((tensor, _version(tensor)) for tensor in held)))
        self._held += sum(tensor.numel() * tensor.itemsize for tensor in held)
        if now or self._held > HELD_BYTES or held[0].device.type != "cpu":
            self.flush()

    def flush(self) -> None:
        """Run all deferred measurements.

        Raises:
            ValueError: a tensor was modified in place in the meantime.
        """
        work, self._work, self._held = self._work, [], 0
        for measure, held in work:
            if any(_version(tensor) != version for tensor, version in held):
                raise ValueError(
                    "an activation was changed in place before the probe measured it: change a copy instead"
                )
            with measuring(held[0][0].device):
                measure()


class BlockProbe:
    """Measures one block during its forward and backward passes; `Probe` holds one for each block of a model.

    Args:
        block: block to measure; its hooks stay until `remove`.
        record: receives the values.
        index: number of the block, from 1.
        trunk: cache of the trunk's parts, shared between the probes of one model.
        queue: deferred measurements, shared between the probes of one model.

    Attributes:
        block: the measured block.
        record: receives the values.
        step: the record if it covers a step of several passes or processes, else None.
        index: number of the block; may be reassigned when one block stands for several in turn.
        forward: whether forward passes are measured; backward passes always are.
    """

    def __init__(
        self,
        block: Block,
        record: Record,
        index: int,
        *,
        trunk: TrunkParts | None = None,
        queue: Queue | None = None,
    ) -> None:
        self.block = block
        self.record = record
        self.step = record if isinstance(record, StepRecord) else None
        self.index = index
        self.forward = True
        self._trunk = trunk or TrunkParts()
        self._queue = queue or Queue()
        self._operands: tuple[Tensor, ...] = ()
        self._pending: dict[int, list[tuple[Tensor, Tensor]]] = {0: [], 1: []}
        self._adjoints: set[int] = set()
        self._inputs: list[tuple[weakref.ref[Tensor], RemovableHandle]] = []
        self._watched: set[int] = set()
        self._handles = self._hooks()

    def remove(self) -> None:
        """Run deferred measurements and remove all hooks from the block."""
        try:
            self.finish()
        finally:
            self.block.operator.seen = None
            for handle in (*self._handles, *(handle for _, handle in self._inputs)):
                handle.remove()
            self._trunk.forget()
            self._pending = {0: [], 1: []}

    def finish(self) -> None:
        """Run deferred measurements."""
        self._queue.flush()

    def _hooks(self) -> list[RemovableHandle]:
        block = self.block
        if block.operator.seen is not None:
            raise ValueError("this model already has a probe: leave its `with` block first")
        writers = (block.operator.proj, block.ffn.w2)
        merges = (block.merge_attn, block.merge_ffn)
        handles = [
            block.register_forward_pre_hook(self._input),
            block.register_forward_hook(self._output),
        ]
        if self.record.wants(*OPERATOR_OBSERVABLES):
            block.operator.seen = self._keep_operands
            handles.append(block.operator.register_forward_hook(self._operator))
        for writer, (layer, merge) in enumerate(zip(writers, merges, strict=True)):
            if self.record.wants_segments(*BRANCH_OBSERVABLES):
                handles.append(merge.register_forward_pre_hook(functools.partial(self._branch, writer)))
            if self.record.wants(*GRADIENT_MODES, *COHERENCE_OBSERVABLES):
                handles.append(watch_writer(layer, functools.partial(self._writer, writer)))
            if self.step is None and self.record.wants(*GRADIENT_MODES) and layer.weight.requires_grad:
                self._watched.add(writer)
                handles.append(layer.weight.register_hook(functools.partial(self._gradient, writer)))
        for name, weight in self._compared().items():
            if self.step is None and weight.requires_grad:
                handles.append(weight.register_hook(functools.partial(self._root_mean_square, name)))
        return handles

    def _compared(self) -> dict[str, nn.Parameter]:
        """Observable -> the weight whose gradient it measures (root mean square)."""
        names = [name for name in GRADIENT_SIZES if self.record.wants(name)]
        sources = {name: getattr(self.block.operator, GRADIENT_SIZES[name], None) for name in names}
        return {name: source.weight for name, source in sources.items() if source is not None}

    def read_gradients(self) -> None:
        """Record the gradients that the passes of a step have accumulated in the weights."""
        for name, weight in self._compared().items():
            if self.step is not None:
                self.step.put_gradient(name, self.index, weight)

    @property
    def _measuring(self) -> bool:
        return self.forward and not recomputing()

    def _keep_operands(self, operands: tuple[Tensor, ...]) -> None:
        if self._measuring:
            self._operands = tuple(operand.detach() for operand in operands)

    def _operator(self, mixer: nn.Module, given: tuple[Any, ...], written: Tensor) -> None:
        if not self._measuring:
            return
        (x, _), operands, self._operands = given, self._operands, ()
        measure = functools.partial(self._attention, self.index, operands, x.detach())
        # the model's input may be a buffer that the caller refills at any moment
        self._queue.add(measure, x, *operands, now=self.index == 1)

    def _attention(self, index: int, operands: tuple[Tensor, ...], x: Tensor) -> None:
        singular_value = self.record.wants("mu_eff")
        found = attention_statistics(self.block.operator, operands, x, singular_value=singular_value)
        for name, values in zip(OPERATOR_OBSERVABLES, found, strict=True):
            self.record.put(name, (index,), values)

    def _branch(self, writer: int, _: nn.Module, given: tuple[Any, ...]) -> None:
        if self._measuring:
            with measuring(given[0].device):
                self._measure_branch(writer, *given)

    def _measure_branch(self, writer: int, trunk: Tensor, branch: Tensor, segments: Segments) -> None:
        before, output = self._trunk.parts(trunk, segments), observables.segment_parts(branch, segments)
        for suffix, parts in output.items():
            place = (self.index, writer)
            self.record.put(f"r_tr{suffix}", place, observables.parts_r_tr(before[suffix], parts))
            self.record.put(f"var_gain{suffix}", place, observables.parts_var_gain(before[suffix], parts))

    def state(self, index: int, x: Tensor, segments: Segments) -> None:
        """Record the trunk after block `index`, 0 for the input."""
        if not self.record.wants_segments(*STATE_OBSERVABLES, *BRANCH_OBSERVABLES):
            return
        with measuring(x.device):
            self._measure_state(index, x, segments)

    def _measure_state(self, index: int, x: Tensor, segments: Segments) -> None:
        if self.record.wants_segments("rho", *BRANCH_OBSERVABLES):
            found, cosines = observables.segment_state(x, segments)
            self._trunk.remember(x, found)
            for suffix, parts in found.items():
                self.record.put(f"rho{suffix}", (index,), observables.parts_rho(parts))
        else:
            cosines = observables.segment_cosines(x, segments)
        for suffix, values in cosines.items():
            self.record.put(f"tcs{suffix}", (index,), values)

    def _input(self, _: nn.Module, given: tuple[Any, ...]) -> None:
        if not recomputing():
            self._pending = {0: [], 1: []}
            if self.step is not None:
                self.step.passed(self.index)
        if self.index == 1:
            x, segments = given
            if self._measuring:
                self.state(0, x, segments)
            self._watch_adjoint(0, x)

    def _output(self, _: nn.Module, given: tuple[Any, ...], x: Tensor) -> None:
        if self._measuring:
            self.state(self.index, x, given[1])
        self._watch_adjoint(self.index, x)

    def _watch_adjoint(self, index: int, x: Tensor) -> None:
        """Hook the adjoint once per pass: checkpointing builds the graph twice, or late if reentrant."""
        if not recomputing():
            self._adjoints.discard(index)
        if x.requires_grad and self.record.wants("adjoint_tcs") and index not in self._adjoints:
            self._adjoints.add(index)
            # the same input may be passed again, and its hooks outlive the pass
            self._inputs = [known for known in self._inputs if known[0]() is not None]
            if not any(given() is x for given, _ in self._inputs):
                handle = x.register_hook(functools.partial(self.adjoint, index))
                if index == 0:
                    self._inputs.append((weakref.ref(x), handle))

    def adjoint(self, index: int, adjoint: Tensor | None) -> None:
        """Record the loss adjoint dL/dX after block `index`; None if the loss does not depend on it."""
        if adjoint is None:
            return
        with measuring(adjoint.device):
            values = observables.adjoint_tcs(adjoint)
            directed = _directed_tokens(values, adjoint)
            self.record.put("adjoint_tcs", (index,), values, None if directed is None else directed > 1)

    def _writer(self, writer: int, y: Tensor, delta: Tensor) -> None:
        """Handle the cotangent of a writer; the gradient of its weight, if any, follows immediately."""
        place = (self.index, writer)
        if self.record.wants(*COHERENCE_OBSERVABLES):
            self._queue.add(functools.partial(self._coherence, place, y.detach(), delta), y, delta)
        if not self.record.wants(*GRADIENT_MODES):
            return
        if self.step is not None:
            self.step.put_writer(place, y, delta)
            return
        layer = (self.block.operator.proj, self.block.ffn.w2)[writer]
        if writer in self._watched and layer.weight.requires_grad:
            self._pending[writer].append((y, delta))
            # drop the values of an earlier pass, in case this one computes no weight gradient
            self._modes(place, [torch.full(y.shape[:-3], torch.nan, device=y.device)] * 3)
        else:
            self._modes(place, writer_modes(y, delta))

    def _coherence(self, place: tuple[int, int], y: Tensor, delta: Tensor) -> None:
        found = coherence(y, delta, absolute=self.record.wants("kappa_abs"))
        directed = _directed_tokens(found.kappa, y, delta)
        for name, values, least in zip(COHERENCE_OBSERVABLES, found, (1, 2, 2), strict=True):
            self.record.put(name, place, values, None if directed is None else directed >= least)

    def _gradient(self, writer: int, gradient: Tensor) -> None:
        pairs, self._pending[writer] = self._pending[writer], []
        with measuring(gradient.device):
            if len(pairs) == 1:
                modes = modes_from_gradient(gradient, *pairs[0])
            else:  # the loss depends on several calls of the block
                coherent = sum(mean_coherent(*pair) for pair in pairs[1:]) + mean_coherent(*pairs[0])
                centered = sum(centered_gradient(*pair) for pair in pairs[1:]) + centered_gradient(*pairs[0])
                modes = modes_of_parts(coherent, centered)
        self._modes((self.index, writer), modes)

    def _modes(self, place: tuple[int, int], modes: Sequence[Tensor]) -> None:
        for name, value in zip(GRADIENT_MODES, modes, strict=True):
            self.record.put(name, place, value)

    def _root_mean_square(self, name: str, gradient: Tensor) -> None:
        size = gradient.shape[-2:].numel() ** 0.5
        self.record.put(name, (self.index,), torch.linalg.vector_norm(gradient, dim=(-2, -1)) / size)
