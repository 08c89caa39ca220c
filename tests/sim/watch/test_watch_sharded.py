"""The watch with a batch split over processes: two (DDP, FSDP2) measure what one measures on the whole.

Run as a script, this file is one of the two processes.
"""

import contextlib
import datetime
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from meanmode.sim.store.run_reader import open_run
from meanmode.sim.watch.watch import Watch

GLOO = dist.is_available() and dist.is_gloo_available()
pytestmark = pytest.mark.skipif(not GLOO, reason="torch was built without gloo")

PROCESSES, STEPS, PASSES = 2, 3, 2
WRAPS = ("ddp", "unused", "fsdp")
"""DDP, DDP that looks for unused parameters, and FSDP2."""

SMALL = {"g_inner": ("g_mean", "g_ctr"), "update_rms": ("weight_rms", "weight_rms")}
"""What may be close to zero by cancellation -> whose product is the scale of its rounding."""


COSINES = ("tcs", "adjoint_tcs", "amplification", "kappa", "max_logit")
"""Of the order of one, and close to zero for no small numbers."""


class Network(nn.Module):
    """Stock blocks with an embedding and a head; `nn.MultiheadAttention` calls its output projection as a
    function."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(15, 3, 22, dropout=0.0, batch_first=True)  # unequal shards
        self.embed = nn.Linear(7, 15)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(15, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x))).tanh()


def network() -> nn.Module:
    torch.manual_seed(5)
    return Network()


def wrapped(wrap: str) -> nn.Module:
    """The network, shared by the two processes."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = network()
    if wrap != "fsdp":
        return DistributedDataParallel(model, find_unused_parameters=wrap == "unused")
    mesh = init_device_mesh("cpu", (PROCESSES,))
    for block in model.encoder.layers:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def data(step: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets of the whole batch."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 6, 7, generator=generator), torch.randn(8, 6, 5, generator=generator)


def backward(model: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
    """Two micro-batches whose losses sum to the mean loss; gradients are exchanged in the last."""
    total = torch.zeros(())
    for index, (inputs, wanted) in enumerate(zip(x.chunk(PASSES), targets.chunk(PASSES), strict=True), 1):
        exchanged = contextlib.nullcontext()
        if isinstance(model, DistributedDataParallel) and index < PASSES:
            exchanged = model.no_sync()
        elif hasattr(model, "set_requires_gradient_sync"):
            model.set_requires_gradient_sync(index == PASSES)
        with exchanged:
            loss = (model(inputs) - wanted).square().mean() / PASSES
            loss.backward()
        total += loss.detach()
    return total


def local(x: Tensor) -> Tensor:
    return (x.to_local() if hasattr(x, "to_local") else x).detach().clone()


def train(
    model: nn.Module, watch: Watch | None, rank: int | None = None, fault: int = 0
) -> tuple[list[dict[str, np.ndarray]], list[Tensor]]:
    """Measured values of each step, and all gradients and weights.

    Args:
        model: the model.
        watch: the watch, if there is one.
        rank: which share of the batch; None for the whole.
        fault: step in which a hook fails.
    """
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    values, tensors = [], []
    for step in range(1, STEPS + 1):
        x, targets = data(step)
        if rank is not None:
            x, targets = x.chunk(PROCESSES)[rank], targets.chunk(PROCESSES)[rank]
        with watch.step(step) if watch else contextlib.nullcontext():
            if step == fault:
                watch._guard(lambda: 1 / 0)()
            loss = backward(model, x, targets)
            tensors += [local(weight.grad) for weight in model.parameters()]
            nn.utils.clip_grad_norm_(model.parameters(), 1e-2)
            if watch:
                watch.log(loss=loss)
        optimiser.step()
        optimiser.zero_grad()
        if watch:
            values.append(watch.values)
    if watch:
        watch.step(STEPS + 1).__enter__()  # completes the last row
        watch.close()
    return values, [*tensors, *(local(weight) for weight in model.parameters())]


def flat(values: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {f"{step}/{name}": of for step, row in enumerate(values, 1) for name, of in row.items()}


def process(rank: int, folder: Path) -> None:
    """One of the two processes: writes the values of every case, and what else is to be reported."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'meeting'}",
        rank=rank,
        world_size=PROCESSES,
        timeout=datetime.timedelta(seconds=60),
    )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    found: dict[str, object] = {}
    for wrap in WRAPS:
        model = wrapped(wrap)
        sunk: list[int] = []
        out = folder / f"{wrap}-{rank}"
        watch = Watch(model, every=1, out=out, sink=lambda step, _, sunk=sunk: sunk.append(step))
        values, tensors = train(model, watch, rank)
        np.savez(folder / f"{wrap}-{rank}.npz", **flat(values))
        bare = train(wrapped(wrap), None, rank)[1]
        found[f"{wrap} bits"] = all(torch.equal(*pair) for pair in zip(tensors, bare, strict=True))
        found[f"{wrap} sunk"] = sunk
        found[f"{wrap} hooks"] = sum(len(module._forward_hooks) for module in watch.model.modules()) - sum(
            len(module._forward_hooks) for module in wrapped(wrap).modules()
        )
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            watch = Watch(model, every=1)
            values, _ = train(model, watch, rank, fault=2 if rank == 1 else 0)
        found[f"{wrap} said"] = [str(of.message) for of in said]
        found[f"{wrap} measured"] = [values[0] is not values[1], watch.values is values[0]]
    cut = network()
    mesh = init_device_mesh("cpu", (PROCESSES,))
    cut.head.weight = nn.Parameter(distribute_tensor(cut.head.weight.detach(), mesh, [Shard(0)]))
    with pytest.raises(ValueError) as caught:
        Watch(cut)
    found["refused"] = str(caught.value)
    np.savez(folder / f"reports-{rank}.npz", **found)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(run_processes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the two processes wrote."""
    path = tmp_path_factory.mktemp("processes")
    run_processes(Path(__file__), path, PROCESSES)
    return path


@pytest.fixture(scope="module")
def whole() -> dict[str, np.ndarray]:
    """The values that one process measures on the whole batch."""
    model = network()
    return flat(train(model, Watch(model, every=1))[0])


@pytest.mark.parametrize("rank", range(PROCESSES))
@pytest.mark.parametrize("wrap", WRAPS)
def test_processes_together_measure_what_one_measures_on_the_whole_batch(
    folder: Path, whole: dict[str, np.ndarray], wrap: str, rank: int
) -> None:
    with np.load(folder / f"{wrap}-{rank}.npz") as found:
        assert set(found) == set(whole)
        for name, expected in whole.items():
            assert np.isfinite(expected[1:]).all(), name
            step, _, of = name.partition("/")
            scale = np.prod([np.nanmax(whole[f"{step}/{other}"]) for other in SMALL.get(of, ())])
            scale = scale if of in SMALL else 0.1 if of in COSINES else 0.0
            np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-5 * scale, err_msg=name)


def test_halves_do_not_average(folder: Path, whole: dict[str, np.ndarray]) -> None:
    """Otherwise the test above could not fail."""
    model, halves = network(), []
    for rank in range(PROCESSES):
        watch = Watch(model, every=1)
        with watch.step(1):
            backward(model, *(x.chunk(PROCESSES)[rank] for x in data(1)))
        model.zero_grad()
        halves.append(watch.values)
    for name in ("g_mean", "g_ctr", "grad_rms_q", "grad_rms_k", "grad_rms_v", "max_logit"):
        apart = np.abs(np.mean([half[name] for half in halves], axis=0) / whole[f"1/{name}"] - 1)
        assert np.nanmax(apart) > 1e-3, name


@pytest.mark.parametrize("rank", range(PROCESSES))
@pytest.mark.parametrize("wrap", WRAPS)
def test_training_is_the_same_to_the_bit_and_one_process_writes(folder: Path, wrap: str, rank: int) -> None:
    with np.load(folder / f"reports-{rank}.npz") as found:
        assert found[f"{wrap} bits"]
        assert found[f"{wrap} hooks"] == 0
        assert found[f"{wrap} sunk"].tolist() == ([] if rank else [1, 2, 3])
    assert (folder / f"{wrap}-{rank}").exists() == (rank == 0)


@pytest.mark.parametrize("wrap", WRAPS)
def test_the_store_holds_every_step(folder: Path, whole: dict[str, np.ndarray], wrap: str) -> None:
    run = open_run(folder / f"{wrap}-0")
    for name in ("tcs", "update_rms"):
        expected = np.stack([whole[f"{step}/{name}"] for step in (1, 2, 3)])
        np.testing.assert_allclose(run[name].values[:3], expected, rtol=1e-4)


@pytest.mark.parametrize("rank", range(PROCESSES))
@pytest.mark.parametrize("wrap", WRAPS)
def test_an_error_in_one_process_stops_the_watch_in_all(folder: Path, wrap: str, rank: int) -> None:
    """Training goes on to its end in both, and the second step has no values in either."""
    with np.load(folder / f"reports-{rank}.npz") as found:
        error = "ZeroDivisionError: division by zero" if rank else "there is an error in another process"
        assert found[f"{wrap} said"].tolist() == [f"the watch stops, training goes on: {error}"]
        assert found[f"{wrap} measured"].tolist() == [False, True]


def test_tensor_parallelism_is_refused(folder: Path) -> None:
    with np.load(folder / "reports-0.npz") as found:
        assert "head.weight is cut by tensor parallelism" in str(found["refused"])


if __name__ == "__main__":
    process(int(sys.argv[2]), Path(sys.argv[1]))
    os._exit(0)  # all is written; threads of torch that still run at the end of a process can abort it
