"""The probe with a batch split over processes: two (DDP, FSDP2) measure what one measures on the whole.

Run as a script, this file is one of the two processes.
"""

import contextlib
import datetime
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from meanmode.sim.intervene.grammar import Intervention
from meanmode.sim.intervene.interventions import Interventions
from meanmode.sim.observe.probe import Probe
from meanmode.sim.observe.record import Array
from meanmode.sim.simulate import stream
from meanmode.sim.trunk.stack import Stack, synthetic_input
from meanmode.theory.setting import Setting

GLOO = dist.is_available() and dist.is_gloo_available()
pytestmark = pytest.mark.skipif(not GLOO, reason="torch was built without gloo")

SETTING = Setting(
    depth=3,
    tokens=6,
    text_tokens=2,
    batch=4,
    width=15,  # shards of unequal size
    heads=3,
    weight_std=0.25,
    input_cosine=0.3,
    merge="mv_split",
    alpha=0.3,
)
PROCESSES = 2
CASES = [
    (wrap, memory, passes)
    for wrap in ("ddp", "fsdp")
    for memory in ("kept", "recomputed")
    for passes in (1, 2)
]

SINGLE = ("ddp", "fsdp")
"""Wrappers that are also measured in single precision, in two passes."""


class Network(nn.Module):
    """A stack whose blocks are recomputed in the backward pass, or not."""

    def __init__(self, *, recomputed: bool, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.stack = Stack(SETTING).to(dtype)
        self.recomputed = recomputed
        for index, block in enumerate(self.stack.blocks, start=1):
            block.reset_parameters(stream(SETTING, 0, index))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.stack.blocks:
            if self.recomputed:
                x = checkpoint(block, x, SETTING.segments, use_reentrant=False)
            else:
                x = block(x, SETTING.segments)
        return x


def wrapped(wrap: str, memory: str = "kept", dtype: torch.dtype = torch.float64) -> nn.Module:
    """The network, shared by the two processes."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    network = Network(recomputed=memory == "recomputed", dtype=dtype)
    if wrap == "ddp":
        return DistributedDataParallel(network)
    mesh = init_device_mesh("cpu", (PROCESSES,))
    for block in network.stack.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(network, mesh=mesh)


def data(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Inputs and targets of the whole batch."""
    x, targets = (synthetic_input(SETTING, stream(SETTING, 0, name)).to(dtype) for name in (0, 77))
    return x, targets


def step(network: nn.Module, x: Tensor, targets: Tensor, passes: int = 1) -> None:
    """The passes of a step, whose losses sum to the mean loss; gradients are exchanged in the last pass."""
    for index, (inputs, wanted) in enumerate(zip(x.chunk(passes), targets.chunk(passes), strict=True), 1):
        exchanged = contextlib.nullcontext()
        if isinstance(network, DistributedDataParallel) and index < passes:
            exchanged = network.no_sync()
        elif hasattr(network, "set_requires_gradient_sync"):
            network.set_requires_gradient_sync(index == passes)
        with exchanged:
            loss = (network(inputs.detach().requires_grad_()) - wanted).square().mean()
            (loss / passes).backward()


def share(rank: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Inputs and targets of one process."""
    x, targets = data(dtype)
    return x.chunk(PROCESSES)[rank], targets.chunk(PROCESSES)[rank]


def refusal(probe: Probe) -> str:
    """The error raised when the values are read."""
    with pytest.raises(ValueError) as caught:
        probe.values()
    return str(caught.value)


def reports(rank: int) -> dict[str, object]:
    """Everything to report besides values."""
    group, found = dist.group.WORLD, {}
    bare = Network(recomputed=False)
    with Probe(bare, passes=2, group=group) as probe:
        step(bare, *share(rank), passes=2 - rank)
    found["missed"] = refusal(probe)
    network = wrapped("fsdp")
    with pytest.raises(ValueError) as caught, Probe(network):
        pass
    found["alone"] = str(caught.value)
    with Probe(network, names=["tcs"]) as probe, torch.no_grad():
        network(share(rank)[0])
    found["forward"] = probe.values()["tcs"]
    gradients = []
    for probed in (False, True):
        with Probe(network, group=group) if probed else contextlib.nullcontext():
            step(network, *share(rank))
        gradients.append([weight.grad.to_local().clone() for weight in network.parameters()])
        network.zero_grad()
    changed = wrapped("ddp")
    asked = Intervention.parse("delete:mean:writer-gradient@blocks=2")
    with Interventions(changed, [asked]), Probe(changed, group=group) as probe:
        step(changed, *share(rank))
        with pytest.warns(UserWarning, match="do not tell some centered parts"):
            found["changed"] = probe.values()["g_ctr"]
    found["bits"] = all(torch.equal(*pair) for pair in zip(*gradients, strict=True))
    return found


def process(rank: int, folder: Path) -> None:
    """One of the two processes: writes the values of every case, and the reports, to files."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'meeting'}",
        rank=rank,
        world_size=PROCESSES,
        timeout=datetime.timedelta(minutes=10),
    )
    for wrap, memory, passes in CASES:
        network = wrapped(wrap, memory)
        with Probe(network, passes=passes, group=dist.group.WORLD) as probe:
            step(network, *share(rank), passes=passes)
        network.zero_grad()
        np.savez(folder / f"{wrap}-{memory}-{passes}-{rank}.npz", **probe.values())
    for wrap in SINGLE:
        network = wrapped(wrap, dtype=torch.float32)
        with Probe(network, passes=2, group=dist.group.WORLD) as probe:
            step(network, *share(rank, torch.float32), passes=2)
        np.savez(folder / f"{wrap}-single-{rank}.npz", **probe.values())
    np.savez(folder / f"reports-{rank}.npz", **reports(rank))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(run_processes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the two processes wrote."""
    path = tmp_path_factory.mktemp("processes")
    run_processes(Path(__file__), path, PROCESSES)
    return path


@pytest.fixture(scope="module")
def whole() -> dict[str, Array]:
    """The values that one process measures on the whole batch, in one pass."""
    network = Network(recomputed=False)
    with Probe(network) as probe:
        step(network, *data())
    return probe.values()


@pytest.mark.parametrize("rank", range(PROCESSES))
@pytest.mark.parametrize(("wrap", "memory", "passes"), CASES)
def test_processes_together_measure_what_one_measures_on_the_whole_batch(
    folder: Path, whole: dict[str, Array], wrap: str, memory: str, passes: int, rank: int
) -> None:
    with np.load(folder / f"{wrap}-{memory}-{passes}-{rank}.npz") as found:
        assert set(found) == set(whole)
        for name, expected in whole.items():
            assert np.isfinite(expected[1:]).all(), name
            np.testing.assert_allclose(found[name], expected, rtol=1e-6, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("wrap", SINGLE)
def test_they_do_in_single_precision(folder: Path, wrap: str) -> None:
    network = Network(recomputed=False, dtype=torch.float32)
    with Probe(network) as probe:
        step(network, *data(torch.float32))
    with np.load(folder / f"{wrap}-single-0.npz") as found:
        for name, expected in probe.values().items():
            scale = np.nanmax(np.abs(expected)) if name == "g_inner" else 0.1
            np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-5 * scale, err_msg=name)


def test_gradients_of_the_halves_do_not_average(whole: dict[str, Array]) -> None:
    """Otherwise the test above could not fail."""
    halves = []
    for rank in range(PROCESSES):
        network = Network(recomputed=False)
        with Probe(network) as probe:
            step(network, *share(rank))
        halves.append(probe.values())
    for name in ("g_mean", "g_ctr", "g_inner", "grad_rms_q", "grad_rms_k"):
        apart = np.abs(np.mean([half[name] for half in halves], axis=0) / whole[name] - 1)
        assert apart[1:].min() > 1e-3, name


@pytest.mark.parametrize(
    ("rank", "message"),
    [
        (0, "another process has not made the 2 passes of this step"),
        (1, "block 1 has made 1 of the 2 passes of this step: read the values after the last pass"),
    ],
)
def test_a_pass_missed_by_one_process_is_an_error_in_all(folder: Path, rank: int, message: str) -> None:
    with np.load(folder / f"reports-{rank}.npz") as found:
        assert found["missed"] == message


@pytest.mark.parametrize("rank", range(PROCESSES))
def test_sharded_gradients_need_the_group(folder: Path, rank: int) -> None:
    with np.load(folder / f"reports-{rank}.npz") as found:
        assert "the weights of block 1 are sharded over processes: pass their `group`" in str(found["alone"])
        assert np.isfinite(found["forward"]).all()


@pytest.mark.parametrize("rank", range(PROCESSES))
def test_a_gradient_that_is_changed_has_no_centered_part(
    folder: Path, whole: dict[str, Array], rank: int
) -> None:
    """Only the averaged gradient is there to tell it; the writers of other blocks have theirs."""
    with np.load(folder / f"reports-{rank}.npz") as found:
        assert np.isnan(found["changed"][2]).all()
        np.testing.assert_allclose(found["changed"][[1, 3]], whole["g_ctr"][[1, 3]], rtol=1e-6)


@pytest.mark.parametrize("rank", range(PROCESSES))
def test_a_probe_changes_no_bit_of_a_sharded_step(folder: Path, rank: int) -> None:
    with np.load(folder / f"reports-{rank}.npz") as found:
        assert found["bits"]


if __name__ == "__main__":
    process(int(sys.argv[2]), Path(sys.argv[1]))
    os._exit(0)  # all is written; threads of torch that still run at the end of a process can abort it
