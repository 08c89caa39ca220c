"""The probe: every observable of the blocks of any model, measured during its own forward and backward."""

# B batch (behind a leading axis R of runs in an ensemble), T tokens, D width, M features written, N read

import contextlib
import functools
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sim import observables
from sim.attention_statistics import attention_statistics
from sim.gradients import (
    centered_gradient,
    coherence,
    mean_coherent,
    modes_from_gradient,
    modes_of_parts,
    writer_modes,
)
from sim.linear import Linear
from sim.merges import Segments
from sim.record import OPERATOR_OBSERVABLES, Array, Record, observable_dims
from sim.stack import Block, blocks_of
from sim.tokens import TokenParts, measuring

Seen = Callable[[Tensor, Tensor], None]

HELD_BYTES = 2**25
"""What measurements that are put off may hold."""


class _Watch(torch.autograd.Function):
    """The identity on a layer's output; its backward shows what the layer read and the cotangent it got.

    What was read is saved like any activation: it is the tensor the layer itself keeps, and activation
    checkpointing drops and recomputes it.
    """

    @staticmethod
    def forward(ctx: Any, written: Tensor, y: Tensor, seen: Seen) -> Tensor:
        ctx.save_for_backward(y)
        ctx.seen = seen
        return written.view_as(written)

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor, None, None]:
        (y,) = ctx.saved_tensors
        with measuring(delta.device):
            ctx.seen(y, delta)
        return delta, None, None


def watch_writer(layer: Linear, seen: Seen) -> RemovableHandle:
    """Call `seen(y, delta)` in every backward pass: what the layer read, and the cotangent of what it wrote.

    Nothing changes: outputs, gradients and memory are those without it.
    """

    def show(_: nn.Module, given: tuple[Tensor, ...], written: Tensor) -> Tensor | None:
        if not (torch.is_grad_enabled() and written.requires_grad):
            return None
        watched: Tensor = _Watch.apply(written, given[0], seen)  # type: ignore[no-untyped-call]
        return watched

    return layer.register_forward_hook(show)


def recomputing() -> bool:
    """Whether this forward pass is a recomputation inside a backward pass (activation checkpointing)."""
    return bool(torch._C._current_graph_task_id() != -1)


def _version(x: Tensor) -> int:
    """How often a tensor has been written to; those of inference mode do not count."""
    return 0 if x.is_inference() else x._version


class _Trunk:
    """Mean and centered part of the trunk seen last, computed once though several hooks see it."""

    def __init__(self) -> None:
        self._seen: tuple[Tensor, int, dict[str, TokenParts]] | None = None

    def remember(self, x: Tensor, parts: dict[str, TokenParts]) -> None:
        self._seen = (x, _version(x), parts)

    def parts(self, x: Tensor, segments: Segments) -> dict[str, TokenParts]:
        if self._seen is None or self._seen[0] is not x or self._seen[1] != _version(x):
            self.remember(x, observables.segment_parts(x, segments))
        assert self._seen is not None
        return self._seen[2]


class _Queue:
    """Measurements put off until some have gathered: in a row they find their code and data in the cache.

    On a CPU alone; what they hold is bounded.
    """

    def __init__(self) -> None:
        self._work: list[tuple[Callable[[], None], tuple[tuple[Tensor, int], ...]]] = []
        self._held = 0

    def add(self, work: Callable[[], None], *held: Tensor, now: bool = False) -> None:
        """Do the work now or later; it reads these tensors, which must stay as they are."""
        self._work.append((work, tuple((tensor, _version(tensor)) for tensor in held)))
        self._held += sum(tensor.numel() * tensor.itemsize for tensor in held)
        if now or self._held > HELD_BYTES or held[0].device.type != "cpu":
            self.flush()

    def flush(self) -> None:
        """Do all that is left.

        Raises:
            ValueError: a tensor has been written to in the meantime.
        """
        work, self._work, self._held = self._work, [], 0
        for measure, held in work:
            if any(_version(tensor) != version for tensor, version in held):
                raise ValueError("an activation was changed in place before the probe had measured it")
            with measuring(held[0][0].device):
                measure()


class BlockProbe:
    """Measures one block while it is called and differentiated; `Probe` holds one for each block of a model.

    Args:
        block: whose hooks are set, until `remove`.
        record: where the values go.
        index: of the block, from 1.
        trunk: shared with the probes of its neighbours.
        queue: shared with the probes of its neighbours.

    Attributes:
        index: may be set anew, where one block takes the part of many.
        forward: whether the forward pass is measured; the backward always is.
    """

    def __init__(
        self,
        block: Block,
        record: Record,
        index: int,
        *,
        trunk: _Trunk | None = None,
        queue: _Queue | None = None,
    ) -> None:
        self.block = block
        self.record = record
        self.index = index
        self.forward = True
        self._trunk = trunk or _Trunk()
        self._queue = queue or _Queue()
        self._operands: tuple[Tensor, ...] = ()
        self._pending: dict[int, list[tuple[Tensor, Tensor]]] = {0: [], 1: []}
        self._adjoints: set[int] = set()
        self._watched: set[int] = set()
        self._handles = self._hooks()

    def remove(self) -> None:
        """Finish what is put off, and take all hooks off the block."""
        try:
            self.finish()
        finally:
            self.block.operator.seen = None
            for handle in self._handles:
                handle.remove()

    def finish(self) -> None:
        """Finish what is put off."""
        self._queue.flush()

    def _hooks(self) -> list[RemovableHandle]:
        block = self.block
        if block.operator.seen is not None:
            raise ValueError("a probe is on this model already: leave its `with` block first")
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
            handles.append(merge.register_forward_pre_hook(functools.partial(self._branch, writer)))
            if self.record.wants("g_mean", "amplification", "kappa", "kappa_abs"):
                handles.append(watch_writer(layer, functools.partial(self._writer, writer)))
                if layer.weight.requires_grad:
                    self._watched.add(writer)
                    handles.append(layer.weight.register_hook(functools.partial(self._gradient, writer)))
        compared = {"grad_rms_q": "q_proj", "grad_rms_k": "k_proj"}
        for name, projection in compared.items():
            source = getattr(block.operator, projection, None)
            if source is not None and source.weight.requires_grad and self.record.wants(name):
                handles.append(source.weight.register_hook(functools.partial(self._root_mean_square, name)))
        return handles

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
        # the input of the model may be a buffer of its user, to be filled anew at any moment
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
        with measuring(x.device):
            self._measure_state(index, x, segments)

    def _measure_state(self, index: int, x: Tensor, segments: Segments) -> None:
        found, cosines = observables.segment_state(x, segments)
        self._trunk.remember(x, found)
        for suffix, parts in found.items():
            self.record.put(f"rho{suffix}", (index,), observables.parts_rho(parts))
            self.record.put(f"tcs{suffix}", (index,), cosines[suffix])

    def _input(self, _: nn.Module, given: tuple[Any, ...]) -> None:
        if not recomputing():
            self._pending = {0: [], 1: []}
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
        """Once a pass: reentrant checkpointing has a graph only when it recomputes, the other has two."""
        if not recomputing():
            self._adjoints.discard(index)
        if x.requires_grad and self.record.wants("adjoint_tcs") and index not in self._adjoints:
            self._adjoints.add(index)
            x.register_hook(functools.partial(self.adjoint, index))

    def adjoint(self, index: int, adjoint: Tensor) -> None:
        """Record the loss adjoint dL/dX after block `index`."""
        with measuring(adjoint.device):
            self.record.put("adjoint_tcs", (index,), observables.adjoint_tcs(adjoint))

    def _writer(self, writer: int, y: Tensor, delta: Tensor) -> None:
        """The cotangent of a writer has come down; its weight's gradient follows at once, if there is one."""
        place = (self.index, writer)
        if self.record.wants("amplification", "kappa", "kappa_abs"):
            self._queue.add(functools.partial(self._coherence, place, y.detach(), delta), y, delta)
        layer = (self.block.operator.proj, self.block.ffn.w2)[writer]
        if writer in self._watched and layer.weight.requires_grad:
            self._pending[writer].append((y, delta))
            # not those of an earlier pass, where this one asks for no gradient of the weight
            self._modes(place, [torch.full(y.shape[:-3], torch.nan, device=y.device)] * 3)
        else:
            self._modes(place, writer_modes(y, delta))

    def _coherence(self, place: tuple[int, int], y: Tensor, delta: Tensor) -> None:
        found = coherence(y, delta, absolute=self.record.wants("kappa_abs"))
        for name, values in zip(("amplification", "kappa", "kappa_abs"), found, strict=True):
            self.record.put(name, place, values)

    def _gradient(self, writer: int, gradient: Tensor) -> None:
        pairs, self._pending[writer] = self._pending[writer], []
        with measuring(gradient.device):
            if len(pairs) == 1:
                modes = modes_from_gradient(gradient, *pairs[0])
            else:  # the block was called several times on the way to this loss
                coherent = sum(mean_coherent(*pair) for pair in pairs[1:]) + mean_coherent(*pairs[0])
                centered = sum(centered_gradient(*pair) for pair in pairs[1:]) + centered_gradient(*pairs[0])
                modes = modes_of_parts(coherent, centered)
        self._modes((self.index, writer), modes)

    def _modes(self, place: tuple[int, int], modes: Sequence[Tensor]) -> None:
        for name, value in zip(("g_mean", "g_ctr", "g_inner"), modes, strict=True):
            self.record.put(name, place, value)

    def _root_mean_square(self, name: str, gradient: Tensor) -> None:
        size = gradient.shape[-2:].numel() ** 0.5
        self.record.put(name, (self.index,), torch.linalg.vector_norm(gradient, dim=(-2, -1)) / size)


class Probe:
    """Measures the blocks of a model in every forward and backward pass inside its `with` block.

    Outputs, gradients and random states stay what they are, to the bit. A pass that activation
    checkpointing repeats is counted once. The values are those of the last pass of each kind, in the last
    `with` block. Where a loss takes several calls of a block, the gradients are those of all. Autocast
    does not act on observables.

    Args:
        model: any module that holds `sim.stack.Block`s, in order.
        blocks: which of them, from 1; None measures all.
        names: the observables, of `observable_dims`; None records all.

    Raises:
        ValueError: no blocks in the model, an unknown block, or an unknown name.
    """

    def __init__(
        self, model: nn.Module, *, blocks: Sequence[int] | None = None, names: Sequence[str] | None = None
    ) -> None:
        self._blocks = blocks_of(model)
        depth = len(self._blocks)
        self.blocks = tuple(range(1, depth + 1) if blocks is None else blocks)
        for index in self.blocks:
            if not 1 <= index <= depth:
                raise ValueError(f"blocks are numbered 1 to {depth}, got {index}")
        first = self._blocks[0]
        dims = observable_dims(first.setting, backward=True)
        for name in names or ():
            if name not in dims:
                raise ValueError(f"unknown observable {name!r}: choose from {', '.join(dims)}")
        self.dims = dims if names is None else {name: dims[name] for name in names}
        self.record = self._record()
        self._probes: list[BlockProbe] = []

    def _record(self) -> Record:
        weight = self._blocks[0].ffn.w2.weight
        return Record(self.dims, len(self._blocks), runs=len(weight) if weight.ndim == 3 else None)

    def __enter__(self) -> "Probe":
        if self._probes:
            raise ValueError("this probe is in its `with` block already")
        self.record = self._record()
        trunk, queue = _Trunk(), _Queue()
        self._probes = [
            BlockProbe(self._blocks[index - 1], self.record, index, trunk=trunk, queue=queue)
            for index in self.blocks
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        probes, self._probes = self._probes, []
        with contextlib.ExitStack() as removed:
            for probe in probes:
                removed.callback(probe.remove)

    def values(self) -> dict[str, Array]:
        """Name -> [L + 1] or [L + 1, W], behind an axis of runs for an ensemble; NaN where not measured."""
        for probe in self._probes[:1]:
            probe.finish()
        return self.record.values()
