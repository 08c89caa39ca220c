"""Forward and backward passes of a training step over its micro-batches, measured if asked for."""

# B batch of this process, T tokens, D width

from collections.abc import Sequence
from contextlib import ExitStack, nullcontext

import torch
from torch import Tensor, nn

from meanmode.dit.data.batches import Batch
from meanmode.dit.model.flow import flow_losses
from meanmode.dit.model.network import DiT
from meanmode.dit.train.measurements import Row
from meanmode.dit.train.optimiser import Optimiser
from meanmode.dit.train.processes import Processes
from meanmode.sim.observe.functional_step import displacement
from meanmode.sim.observe.layer_hooks import recomputing
from meanmode.sim.observe.probe import Probe


class TrainingPass:
    """Computes losses, gradients and observables of a batch, on this process.

    Args:
        network: network to train.
        processes: processes that share the run.
        blocks: numbers of the blocks to measure, from 1.
        names: observables to measure, from `meanmode.sim.observe.observable_names.observable_dims`.

    Attributes:
        model: the network as it is called in training (wrapped by DDP on several processes).
    """

    def __init__(
        self, network: DiT, processes: Processes, blocks: tuple[int, ...], names: Sequence[str]
    ) -> None:
        self.network, self.processes, self.blocks, self.names = network, processes, blocks, names
        self.model: nn.Module = processes.wrapped(network)

    def backward(self, micro_batches: list[Batch], *, measured: bool) -> tuple[Tensor, Row, list[Tensor]]:
        """Compute the gradients of the mean loss of the batch.

        Returns:
            The losses of this process's samples [B], and, if measured, the observables and the state after
            the last block [B, T, D] of each micro-batch.
        """
        count, losses, row, trunks = len(micro_batches), [], {}, []
        with ExitStack() as stack:
            if measured:
                group = self.processes.group
                probe = Probe(self.network, blocks=self.blocks, names=self.names, passes=count, group=group)
                stack.enter_context(probe)
                if self.blocks:
                    hook = self.network.blocks[-1].register_forward_hook(
                        lambda _, __, x: None if recomputing() else trunks.append(x.detach())
                    )
                    stack.callback(hook.remove)
            for number, (noisy, texts, clean, noise) in enumerate(micro_batches, start=1):
                with nullcontext() if number == count else self.processes.accumulating(self.model):
                    with self.processes.autocast():
                        velocity = self.model(noisy, texts)
                    found = flow_losses(velocity, clean, noise)
                    (found.mean() / count).backward()
                losses.append(found.detach())
            if measured:
                row = dict(probe.values())
        return torch.cat(losses), row, trunks

    def measure_again(self, micro_batches: list[Batch], optimiser: Optimiser) -> tuple[Row, list[Tensor]]:
        """Repeat a pass that was not measured, and return its observables and last states.

        The gradients that `optimiser` is about to apply stay unchanged.
        """
        weights = list(optimiser.parameters.values())
        gradients = [weight.grad for weight in weights]
        optimiser.zero_grad()
        _, row, trunks = self.backward(micro_batches, measured=True)
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        return row, trunks

    def functional_step(self, micro_batches: list[Batch], before: list[Tensor]) -> float:
        """Measure Delta, the change of the last states by the update just made, over the whole batch."""
        with torch.no_grad():
            after = [self.processes.trunk(self.network, noisy, texts) for noisy, texts, _, _ in micro_batches]
        return self.processes.mean(displacement(torch.cat(before), torch.cat(after)).square()) ** 0.5
