"""The probe: every observable of the blocks of any model, measured during its own forward and backward."""

# L blocks, W writers

import contextlib
from collections.abc import Sequence
from types import TracebackType

import torch.distributed as dist
from torch import nn

from meanmode.sim.observe.block_probe import BlockProbe, Queue, TrunkParts
from meanmode.sim.observe.layer_hooks import eager
from meanmode.sim.observe.record import GRADIENT_MODES, GRADIENT_SIZES, Array, Record, observable_dims
from meanmode.sim.observe.step_record import StepRecord
from meanmode.sim.trunk.stack import blocks_of


class Probe:
    """Measures the blocks of a model in every forward and backward pass inside its `with` block.

    Outputs, gradients and random states stay what they are, to the bit. A pass that activation
    checkpointing repeats is counted once. The values are those of the last pass of each kind, in the last
    `with` block. Where a loss takes several calls of a block, the gradients are those of all. Autocast
    does not act on observables. What `torch.compile` has compiled runs as it was written meanwhile. A sample
    whose gradient vanishes has no direction, and does not enter the mean of A, kappa or `adjoint_tcs`.

    With `passes` or a `group` one `with` block is one step of an optimiser: the values are those of all its
    samples, and of its gradient, which is added up over the passes and averaged over the processes, as DDP
    and FSDP2 do it. Every process has to ask for them, after the last pass; nothing is exchanged before.
    `grad_rms_q` and `grad_rms_k` are taken from `weight.grad` as it is when the block ends, or when values
    are asked for inside: let it be zeroed before, and clip it behind the block. Until values are asked for,
    every writer holds a matrix as large as its whole weight, in single precision; `blocks` limits that.

    Args:
        model: any module that holds `meanmode.sim.trunk.stack.Block`s, in order.
        blocks: which of them, from 1; None measures all.
        names: the observables, of `observable_dims`; None records all.
        passes: forward and backward passes of a step, on every process.
        group: the processes that share the batch of a step, where there are several.

    Raises:
        ValueError: no blocks in the model, an unknown block, an unknown name, or no passes.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        blocks: Sequence[int] | None = None,
        names: Sequence[str] | None = None,
        passes: int = 1,
        group: dist.ProcessGroup | None = None,
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
            raise ValueError(f"a step has at least 1 pass, got {passes}")
        self.dims = dims if names is None else {name: dims[name] for name in names}
        self.passes = passes
        self.group = group
        self.record = self._record()
        self._probes: list[BlockProbe] = []
        self._undo = contextlib.ExitStack()

    def _record(self) -> Record:
        weight, depth = self._blocks[0].ffn.w2.weight, len(self._blocks)
        runs = len(weight) if weight.ndim == 3 else None
        if self.passes == 1 and self.group is None:
            return Record(self.dims, depth, runs=runs)
        return StepRecord(
            self.dims,
            depth,
            runs=runs,
            blocks=self.blocks,
            passes=self.passes,
            group=self.group,
            device=weight.device,
        )

    def __enter__(self) -> "Probe":
        if self._probes:
            raise ValueError("this probe is in its `with` block already")
        record, trunk, queue, probes = self._record(), TrunkParts(), Queue(), []
        if self.group is None and record.wants(*GRADIENT_MODES, *GRADIENT_SIZES):
            self._need_whole_weights()
        with contextlib.ExitStack() as undo:
            undo.enter_context(eager())
            for index in self.blocks:
                probe = BlockProbe(self._blocks[index - 1], record, index, trunk=trunk, queue=queue)
                undo.callback(probe.remove)
                probes.append(probe)
            self._undo = undo.pop_all()
        self.record, self._probes = record, probes
        return self

    def _need_whole_weights(self) -> None:
        for index in self.blocks:
            if hasattr(self._blocks[index - 1].ffn.w2.weight, "device_mesh"):
                raise ValueError(
                    f"the weights of block {index} are sharded over processes: name their `group`, "
                    "or observables other than gradients"
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
        """Name -> [L + 1] or [L + 1, W], behind an axis of runs for an ensemble; NaN where not measured.

        Raises:
            ValueError: a step that does not have all its `passes` yet, or has more, on any process.
        """
        for probe in self._probes[:1]:
            probe.finish()
        for probe in self._probes:
            probe.read_gradients()
        return self.record.values()
