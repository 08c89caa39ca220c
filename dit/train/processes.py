"""The processes that share a training run and what they do together (accelerate, torch.distributed)."""

import contextlib
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from tqdm import tqdm

from meanmode.dit.config.run_config import RunConfig
from meanmode.dit.config.training_config import TrainingConfig
from meanmode.dit.model.network import DiT, materialised

Answer = TypeVar("Answer")

FAREWELL = timedelta(seconds=10)
"""How long a process that has failed waits for the others before it leaves."""


def _sendable(error: Exception) -> Exception:
    """Return an error as it is sent to other processes: of a type that surely survives the way."""
    if isinstance(error, OSError | ValueError) and not isinstance(error, UnicodeError):
        return error
    return RuntimeError(f"{type(error).__name__}: {error}")


class Processes:
    """A single process, or all processes of an `accelerate launch`.

    Args:
        run: configuration of the run, which sets the precision and whether weights are sharded.

    Attributes:
        count: number of processes.
        rank: rank of this process, from 0.
        device: torch device of this process.
        group: process group of all processes; None for a single process.

    Raises:
        ValueError: sharding is requested for a single process, or the batch does not divide evenly.
    """

    def __init__(self, run: RunConfig) -> None:
        from accelerate import Accelerator, DistributedDataParallelKwargs
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state()  # an earlier run in this process may have used another precision
        training = run.training
        frozen = any("freeze" in text for _, text in training.interventions)
        self._accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            mixed_precision="bf16" if training.precision == "bf16" else "no",
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=frozen)],
        )
        self.count: int = self._accelerator.num_processes
        self.rank: int = self._accelerator.process_index
        self.device: torch.device = self._accelerator.device
        self.group = dist.group.WORLD if self.count > 1 else None
        self.sharded = training.sharding == "full"
        try:
            self._check(training)
        except ValueError:
            self.leave(failed=True)
            raise

    def _check(self, training: TrainingConfig) -> None:
        """Check that a run can be trained by these processes."""
        if self.sharded and self.group is None:
            raise ValueError("sharding=full needs several processes: use accelerate launch or torchrun")
        if training.batch % (self.count * training.accumulation):
            raise ValueError(
                f"a batch of {training.batch} does not divide evenly among {self.count} processes "
                f"with accumulation {training.accumulation}"
            )

    def leave(self, *, failed: bool = False) -> None:
        """Destroy the process group once all processes are done; one that exits while in it may abort.

        Args:
            failed: an error ended this process. The others have usually failed alike, but may never come:
                they are waited for during `FAREWELL`.
        """
        if self.group is None:
            return
        self.group = None
        if not failed:
            self._accelerator.wait_for_everyone()
            self._accelerator.end_training()
            return
        with contextlib.suppress(Exception):
            waiting = dist.barrier(async_op=True)
            if waiting is not None:
                waiting.wait(FAREWELL)
        with contextlib.suppress(Exception):
            dist.destroy_process_group()

    def network(self, run: RunConfig) -> DiT:
        """Build the network with fresh weights; if the run is sharded, shard it block by block (FSDP2)."""
        placed: Callable[[nn.Module], object] = fully_shard if self.sharded else lambda module: None
        network = materialised(run.model, run.training.seed, self.device, placed)
        network.recompute = (run.training.recompute, run.training.recompute_of)
        if self.sharded:
            register_fsdp_forward_method(network, "trunk")
        return network

    def wrapped(self, network: DiT) -> nn.Module:
        """Return the module to call in training; DDP averages the gradients of replicated weights."""
        if self.group is None or self.sharded:
            return network
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*find_unused_parameters.*")
            found: nn.Module = self._accelerator.prepare_model(network)
        return found

    def accumulating(self, model: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Context for all micro-batches but the last, in which gradients are summed without averaging.

        Sharded gradients are averaged at every micro-batch, so that no process ever holds them whole.
        """
        found: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if isinstance(model, nn.parallel.DistributedDataParallel):
            found = self._accelerator.no_sync(model)
        return found

    def trunk(self, network: DiT, noisy: Tensor, texts: Tensor) -> Tensor:
        """Return x_L without a backward pass; weights gathered for it are freed before the next pass."""
        with self.autocast():
            x = network.trunk(noisy, texts)
        if isinstance(network, FSDPModule):
            network.reshard()
        return x

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Context that computes products in bf16 if configured; norms, merges and weights stay in float32."""
        found: contextlib.AbstractContextManager[None] = self._accelerator.autocast()
        return found

    def first(self, action: Callable[[], Answer]) -> Answer:
        """Run an action on the first process only; all processes return its result or raise its error."""
        answer: list[Any] = [None, None]
        failure: Exception | None = None
        if self.rank == 0:
            try:
                answer[0] = action()
            except Exception as error:
                failure, answer[1] = error, _sendable(error)
        if self.group is not None:
            dist.broadcast_object_list(answer)
        if answer[1] is not None:
            raise failure or answer[1]
        found: Answer = answer[0]
        return found

    def together(self, action: Callable[[], Answer]) -> Answer:
        """Run an action on every process; if it fails on one, all raise the same error."""
        answer, failure = None, None
        try:
            answer = action()
        except Exception as error:
            failure = error
        failures = self.gathered(None if failure is None else _sendable(failure))
        for found in failures:
            if found is not None:
                raise failure or found
        return answer  # type: ignore[return-value]

    def gathered(self, value: Answer) -> list[Answer]:
        """Return the values of all processes, by rank."""
        if self.group is None:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return found

    def mean(self, value: Tensor) -> float:
        """Return the mean of a scalar over the processes, in double precision."""
        value = value.detach().double()
        if self.group is not None:
            dist.all_reduce(value)
            value /= self.count
        return value.item()

    def tell(self, sentence: str) -> None:
        """Print a message to stderr, on the first process only."""
        if self.rank == 0:
            tqdm.write(f"mms: {sentence}", file=sys.stderr)

    def progress(self, done: int, total: int, label: str) -> Any:
        """Return a progress bar on stderr, shown by the first process only."""
        return tqdm(
            total=total,
            initial=done,
            desc=label,
            file=sys.stderr,
            dynamic_ncols=True,
            leave=False,
            disable=self.rank > 0,
        )
