"""The probe: measures every observable of a model's blocks during its own forward and backward passes."""

# L blocks, W writers

import contextlib
import warnings
from collections.abc import Sequence
from types import TracebackType

import torch.distributed as dist
from torch import nn

from meanmode.sim.observe.block_probe import BlockProbe, looks_inside
from meanmode.sim.observe.deferred import Queue
from meanmode.sim.observe.layer_hooks import eager
from meanmode.sim.observe.measurement import Measurement
from meanmode.sim.observe.observable_names import GRADIENT_MODES, GRADIENT_SIZES, observable_dims
from meanmode.sim.observe.record import Array, Record
from meanmode.sim.trunk.stack import blocks_of

UNKNOWN = (
    "the gradients that the processes have averaged do not tell some centered parts: their g_ctr and g_inner "
    "are NaN (too few digits beside the mean part, a changed or clipped gradient, or a frozen weight)"
)
"""Said where processes share a batch; Python shows the same warning once."""


class Probe:
    """Measures the blocks of a model in every forward and backward pass inside its `with` block.

    Outputs, gradients and random states stay bitwise the same. A pass repeated by activation checkpointing
    counts once. The values are those of the last forward and the last backward pass of the last `with` block.
    If a loss depends on several calls of a block, the gradients are the sum over all calls. Autocast does not
    affect observables, and compiled modules run uncompiled inside the block. A sample whose gradient vanishes
    has no direction and is left out of the means of A, kappa and `adjoint_tcs`.

    With `passes` or a `group`, one `with` block covers one optimiser step: the values are those of all its
    samples and of its gradient, summed over the passes and averaged over the processes as DDP and FSDP2 do.
    Every process must then call `values`, after its last pass; nothing is exchanged before that.
    `grad_rms_q` and `grad_rms_k` are read from `weight.grad` at the end of the block, or when `values` is
    called inside it: zero the gradients before the block and clip them after it. Until `values` is called,
    each writer holds a matrix of the size of its weight in single precision; `blocks` limits that.

    With a `group`, `g_ctr` and `g_inner` too are read from `weight.grad`, as processes have averaged it: they
    are NaN, with a warning, where the gradient has too few digits for its centered part (G_mean / G_ctr above
    about 1e6 in single precision and 100 in bf16; `meanmode.sim.observe.shared_writers.shared_modes`), where
    an intervention changes the gradient, and where the weight is frozen.

    Args:
        model: any module with `meanmode.sim.trunk.stack.Block`s, in order.
        blocks: numbers of the blocks to measure, from 1; None measures all.
        names: observables to record, out of `observable_dims`; None records all.
        passes: forward and backward passes per step, the same on every process.
        group: processes that share the batch of a step, if there are several.
        uncompiled: whether compiled modules run uncompiled. They need not if all observables are of the
            states between blocks and only blocks are compiled, by `Block.compile`: their hooks stay outside.

    Attributes:
        blocks: numbers of the measured blocks.
        dims: recorded observables and their dimensions.
        passes: forward and backward passes per step.
        group: processes that share the batch of a step.
        record: the values of the latest `with` block.

    Raises:
        ValueError: the model has no blocks, a block or observable does not exist, `passes` is below 1, an
            ensemble is spread over processes, or compiled code would skip a hook.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        blocks: Sequence[int] | None = None,
        names: Sequence[str] | None = None,
        passes: int = 1,
        group: dist.ProcessGroup | None = None,
        uncompiled: bool = True,
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
        if passes < 1:
            raise ValueError(f"passes must be at least 1, got {passes}")
        if group is not None and first.ffn.w2.weight.ndim > 2:
            raise ValueError("an ensemble is measured in one process: pass no `group`")
        self.dims = dims if names is None else {name: dims[name] for name in names}
        self.passes = passes
        self.group = group
        self.record = self._record()
        self._uncompiled = uncompiled
        if not uncompiled and looks_inside(self.record):
            raise ValueError("observables of parts of blocks are measured uncompiled: leave out `uncompiled`")
        self._probes: list[BlockProbe] = []
        self._undo = contextlib.ExitStack()

    def _record(self) -> Record:
        weight, depth = self._blocks[0].ffn.w2.weight, len(self._blocks)
        runs = len(weight) if weight.ndim == 3 else None
        several = self.passes > 1 or self.group is not None
        return Record(
            self.dims,
            depth,
            runs=runs,
            latest=not several,
            blocks=self.blocks,
            passes=self.passes if several else None,
            group=self.group,
            device=weight.device,
        )

    def __enter__(self) -> "Probe":
        if self._probes:
            raise ValueError("this probe is already inside its `with` block")
        record, probes = self._record(), []
        measurement = Measurement(record, Queue())
        if self.group is None and record.wants(*GRADIENT_MODES, *GRADIENT_SIZES):
            self._need_whole_weights()
        with contextlib.ExitStack() as undo:
            if self._uncompiled:
                undo.enter_context(eager())
            for index in self.blocks:
                probe = BlockProbe(self._blocks[index - 1], measurement, index)
                undo.callback(probe.remove)
                probes.append(probe)
            self._undo = undo.pop_all()
        self.record, self._probes = record, probes
        return self

    def _need_whole_weights(self) -> None:
        for index in self.blocks:
            if hasattr(self._blocks[index - 1].ffn.w2.weight, "device_mesh"):
                raise ValueError(
                    f"the weights of block {index} are sharded over processes: pass their `group`, "
                    "or `names` without gradients"
                )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        probes, self._probes = self._probes, []
        with self._undo:
            if kind is None:
                for probe in probes:
                    probe.read_gradients()

    def values(self) -> dict[str, Array]:
        """Observable -> [L + 1] or [L + 1, W], after an axis of runs in an ensemble; NaN where not measured.

        Raises:
            ValueError: on some process, the step has made fewer or more passes than `passes`.
        """
        for probe in self._probes[:1]:
            probe.measurement.finish()
        for probe in self._probes:
            probe.read_gradients()
        found = self.record.values()
        if self.record.unknown:
            self.record.unknown.clear()
            warnings.warn(UNKNOWN, stacklevel=2)
        return found
