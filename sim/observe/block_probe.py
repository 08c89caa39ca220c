"""The probe of one block: hooks that take its tensors during its own forward and backward pass."""

# B batch (after a leading axis R of runs in an ensemble), T tokens, D width, M features written, N read

import functools
import weakref
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from meanmode.sim.observe.layer_hooks import recomputing, watch_writer
from meanmode.sim.observe.measurement import Measurement
from meanmode.sim.observe.observable_names import (
    BRANCH_OBSERVABLES,
    COHERENCE_OBSERVABLES,
    GRADIENT_MODES,
    GRADIENT_SIZES,
    OPERATOR_OBSERVABLES,
    SUFFIXES,
)
from meanmode.sim.observe.observables import tcs_frame
from meanmode.sim.observe.record import Record
from meanmode.sim.observe.token_parts import measuring
from meanmode.sim.observe.token_sets import TokenSets
from meanmode.sim.trunk.linear import Linear
from meanmode.sim.trunk.segments import Segments
from meanmode.sim.trunk.stack import Block


def looks_inside(record: Record) -> bool:
    """Whether the hooks for what a record wants are on parts of a block, not on the block alone."""
    return record.wants(*OPERATOR_OBSERVABLES, *GRADIENT_MODES, *COHERENCE_OBSERVABLES) or (
        record.wants_segments(*BRANCH_OBSERVABLES)
    )


class BlockProbe:
    """Hooks one block; `Probe` holds one for each block of a model.

    Args:
        block: block to measure; its hooks stay until `remove`.
        measurement: measures the tensors, those of all blocks of a model.
        index: number of the block, from 1.

    Attributes:
        block: the measured block.
        measurement: measures the tensors.
        index: number of the block; may be reassigned when one block stands for several in turn.
        forward: whether forward passes are measured; backward passes always are.
    """

    def __init__(self, block: Block, measurement: Measurement, index: int) -> None:
        self.block = block
        self.measurement = measurement
        self.index = index
        self.forward = True
        self._record = measurement.record
        # gradients of whole steps of several processes are read at the end, where they have been averaged
        self._alone = self._record.group is None
        self._operands: tuple[Tensor, ...] = ()
        self._adjoints: set[int] = set()
        self._inputs: list[tuple[weakref.ref[Tensor], RemovableHandle]] = []
        self._watched: set[int] = set()
        self._handles = self._hooks()

    def remove(self) -> None:
        """Run deferred measurements and remove all hooks from the block."""
        try:
            self.measurement.finish()
        finally:
            self.block.operator.seen = None
            for handle in (*self._handles, *(handle for _, handle in self._inputs)):
                handle.remove()
            self.measurement.forget()

    def _hooks(self) -> list[RemovableHandle]:
        block, record = self.block, self._record
        if block.operator.seen is not None:
            raise ValueError("this model already has a probe: leave its `with` block first")
        handles = [
            block.register_forward_pre_hook(self._input),
            block.register_forward_hook(self._output),
        ]
        if record.wants(*OPERATOR_OBSERVABLES):
            block.operator.seen = self._keep_operands
            handles.append(block.operator.register_forward_hook(self._operator))
        for writer, (layer, merge) in enumerate(
            zip(self._writers(), (block.merge_attn, block.merge_ffn), strict=True)
        ):
            if record.wants_segments(*BRANCH_OBSERVABLES):
                handles.append(merge.register_forward_pre_hook(functools.partial(self._branch, writer)))
            if record.wants(*GRADIENT_MODES, *COHERENCE_OBSERVABLES):
                handles.append(watch_writer(layer, functools.partial(self._writer, writer)))
            if self._alone and record.wants(*GRADIENT_MODES) and layer.weight.requires_grad:
                self._watched.add(writer)
                handles.append(layer.weight.register_hook(functools.partial(self._gradient, writer)))
        for name, weight in self._compared().items():
            if record.latest and weight.requires_grad:
                handles.append(weight.register_hook(functools.partial(self._size, name)))
        return handles

    def _writers(self) -> tuple[Linear, Linear]:
        return self.block.operator.proj, self.block.ffn.w2

    def _compared(self) -> dict[str, nn.Parameter]:
        """Observable -> the weight whose gradient it measures (root mean square)."""
        names = [name for name in GRADIENT_SIZES if self._record.wants(name)]
        sources = {name: getattr(self.block.operator, GRADIENT_SIZES[name], None) for name in names}
        return {name: source.weight for name, source in sources.items() if source is not None}

    def read_gradients(self) -> None:
        """Record the gradients that the passes of a step have accumulated in the weights."""
        if self._record.latest:
            return
        for name, weight in self._compared().items():
            if weight.grad is not None:
                self._size(name, weight.grad)
        for writer, layer in enumerate(self._writers()):
            self.measurement.shared_gradient((self.index, writer), layer.weight.grad)

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
        if self.index == 1:  # the model's input may be a buffer that the caller refills at any moment
            x, operands = x.clone(), tuple(operand.clone() for operand in operands)
        self.measurement.operator(self.index, self.block.operator, operands, x)

    def _branch(self, writer: int, _: nn.Module, given: tuple[Tensor, Tensor, Segments]) -> None:
        if self._measuring:
            x, branch, segments = given
            self.measurement.branch_later((self.index, writer), x, branch, _sets(x, segments))

    def state(self, index: int, x: Tensor, segments: Segments) -> None:
        """Record the trunk after block `index`, 0 for the input."""
        self.measurement.state_later((index,), x, _sets(x, segments))
        if self._record.wants("tcs_frame"):
            with measuring(x.device):
                within = tcs_frame(x[..., : segments[0], :], self.block.setting.frames)
                self._record.put("tcs_frame", (index,), within)

    def _input(self, _: nn.Module, given: tuple[Tensor, Segments]) -> None:
        if not recomputing():
            for writer in range(len(self._writers())):
                self.measurement.settle((self.index, writer))
            self._record.passed(self.index)
        if self.index == 1:
            x, segments = given
            if self._measuring:
                self.state(0, x, segments)
            self._watch_adjoint(0, x)

    def _output(self, _: nn.Module, given: tuple[Tensor, Segments], x: Tensor) -> None:
        if self._measuring:
            self.state(self.index, x, given[1])
        self._watch_adjoint(self.index, x)

    def _watch_adjoint(self, index: int, x: Tensor) -> None:
        """Hook the adjoint once per pass: checkpointing builds the graph twice, or late if reentrant."""
        if not recomputing():
            self._adjoints.discard(index)
        if x.requires_grad and self._record.wants("adjoint_tcs") and index not in self._adjoints:
            self._adjoints.add(index)
            # the same input may be passed again, and its hooks outlive the pass
            self._inputs = [known for known in self._inputs if known[0]() is not None]
            if not any(given() is x for given, _ in self._inputs):
                handle = x.register_hook(functools.partial(self.adjoint, index))
                if index == 0:
                    self._inputs.append((weakref.ref(x), handle))

    def adjoint(self, index: int, adjoint: Tensor | None) -> None:
        """Record the loss adjoint dL/dX after block `index`; None if the loss does not depend on it."""
        if adjoint is not None:
            self.measurement.adjoint(index, TokenSets("BTD", tuple(adjoint.shape[-3:])), adjoint)

    def _writer(self, writer: int, y: Tensor, delta: Tensor) -> None:
        """Handle the cotangent of a writer; the gradient of its weight, if any, follows immediately."""
        follows = writer in self._watched and bool(self._writers()[writer].weight.requires_grad)
        self.measurement.product((self.index, writer), y, delta, gradient_follows=follows)

    def _gradient(self, writer: int, gradient: Tensor) -> None:
        self.measurement.gradient((self.index, writer), gradient)

    def _size(self, name: str, gradient: Tensor) -> None:
        self.measurement.root_mean_square(name, (self.index,), gradient)


def _sets(x: Tensor, segments: Segments) -> TokenSets:
    """All tokens, and image and text where there are both."""
    named = [(suffix[1:], count) for suffix, count in zip(SUFFIXES, segments, strict=False) if count]
    return TokenSets("BTD", tuple(x.shape[-3:]), segments=tuple(named) if len(named) > 1 else ())
