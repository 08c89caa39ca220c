"""The processes that share a run: who they are, and what they do together (accelerate, torch.distributed)."""

import contextlib
import sys
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from tqdm import tqdm

from meanmode.dit.config.run_config import RunConfig
from meanmode.dit.model.network import DiT, materialised

Answer = TypeVar("Answer")


class Processes:
    """One process, or all of an `accelerate launch`.

    Args:
        run: the configuration: its precision, and whether weights are replicated or sharded.

    Attributes:
        count: of processes.
        rank: of this one.
        device: of this one.
        group: of them all; None where there is one.

    Raises:
        ValueError: sharding without processes to share, or a batch that does not divide among them.
    """

    def __init__(self, run: RunConfig) -> None:
        from accelerate import Accelerator, DistributedDataParallelKwargs
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state()  # another run in this process may have had another precision
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
        if self.sharded and self.group is None:
            raise ValueError(
                "sharding=full needs several processes: start them with accelerate launch or torchrun"
            )
        if training.batch % (self.count * training.accumulation):
            raise ValueError(
                f"a batch of {training.batch} does not divide into equal parts for {self.count} processes "
                f"with accumulation {training.accumulation}"
            )

    def leave(self) -> None:
        """Take the group of processes apart, behind all they do: one that exits within it may abort."""
        if self.group is not None:
            self._accelerator.wait_for_everyone()
            self._accelerator.end_training()
            self.group = None

    def network(self, run: RunConfig) -> DiT:
        """A network with its first weights, sharded block by block where it is (FSDP2)."""
        placed: Callable[[nn.Module], object] = fully_shard if self.sharded else lambda module: None
        network = materialised(run.model, run.training.seed, self.device, placed)
        network.recompute = (run.training.recompute, run.training.recompute_of)
        if self.sharded:
            register_fsdp_forward_method(network, "trunk")
        return network

    def wrapped(self, network: DiT) -> nn.Module:
        """The module to call: with replicated weights on several processes it averages gradients (DDP)."""
        if self.group is None or self.sharded:
            return network
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*find_unused_parameters.*")
            found: nn.Module = self._accelerator.prepare_model(network)
        return found

    def adding_up(self, model: nn.Module) -> contextlib.AbstractContextManager[None]:
        """For all micro-batches but the last: gradients are added up, and averaged with those of the last.

        Sharded ones are averaged every time, so that none is ever whole.
        """
        found: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if isinstance(model, nn.parallel.DistributedDataParallel):
            found = self._accelerator.no_sync(model)
        return found

    def trunk(self, network: DiT, noisy: Tensor, texts: Tensor) -> Tensor:
        """x_L, with no backward pass to follow: gathered weights are let go, lest the next pass find them."""
        with self.autocast():
            x = network.trunk(noisy, texts)
        if isinstance(network, FSDPModule):
            network.reshard()
        return x

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """bf16 products where the run asks for them; norms, merges and weights stay in float32."""
        found: contextlib.AbstractContextManager[None] = self._accelerator.autocast()
        return found

    def first(self, action: Callable[[], Answer]) -> Answer:
        """Have the first process do something with files; all get its answer, or fail as it did."""
        answer: list[Any] = [None, None]
        if self.rank == 0:
            try:
                answer[0] = action()
            except (ValueError, OSError) as error:
                answer[1] = error
        if self.group is not None:
            dist.broadcast_object_list(answer)
        if answer[1] is not None:
            raise answer[1]
        found: Answer = answer[0]
        return found

    def together(self, action: Callable[[], Answer]) -> Answer:
        """Have every process do something; if it fails on one, it fails on all, with the same sentence."""
        answer, failure = None, None
        try:
            answer = action()
        except (ValueError, OSError) as error:
            failure = error
        failures = self.gathered(failure)
        for found in failures:
            if found is not None:
                raise found
        return answer  # type: ignore[return-value]

    def gathered(self, value: Answer) -> list[Answer]:
        """The value of every process."""
        if self.group is None:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return found

    def mean(self, value: Tensor) -> float:
        """Mean of a number over the processes, in double precision."""
        value = value.detach().double()
        if self.group is not None:
            dist.all_reduce(value)
            value /= self.count
        return value.item()

    def tell(self, sentence: str) -> None:
        """Say something to the user, once."""
        if self.rank == 0:
            tqdm.write(f"mms: {sentence}", file=sys.stderr)

    def progress(self, done: int, total: int, label: str) -> Any:
        """A progress bar on stderr, of the first process."""
        return tqdm(
            total=total,
            initial=done,
            desc=label,
            file=sys.stderr,
            dynamic_ncols=True,
            leave=False,
            disable=self.rank > 0,
        )
