"""Cost of the observables, scaling of the simulator, speed-up of ensembles. Run with `make bench`.

If a GPU is available, its ratios are printed too; `--json FILE` also writes them to a file.
"""

import argparse
import dataclasses
import datetime
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from meanmode.sim.observe.observable_names import observable_dims
from meanmode.sim.observe.probe import Probe
from meanmode.sim.simulate import simulate, simulate_ensemble, stream
from meanmode.sim.train.allocator import keep_freed_memory
from meanmode.sim.train.data_order import data_order
from meanmode.sim.train.ensemble_loop import train_ensemble
from meanmode.sim.train.ensemble_optimiser import AdamW, EnsembleOptimiser
from meanmode.sim.train.schedule import Schedule
from meanmode.sim.trunk.attention import rope_angles
from meanmode.sim.trunk.ensemble import stack_members
from meanmode.sim.trunk.stack import Stack, synthetic_input
from meanmode.theory.setting import Setting

REPEATS = 7
TRUNK = Setting(depth=16, tokens=256, text_tokens=32, batch=2, width=256, heads=4, rope=True)
SMALL = (
    Setting(depth=16, tokens=16, text_tokens=4, batch=4, width=16, heads=1, rope=True, weight_std=0.16),
    Setting(depth=16, tokens=16, text_tokens=4, batch=64, width=32, heads=2, rope=True, weight_std=0.12),
    Setting(depth=16, tokens=64, text_tokens=4, batch=32, width=32, heads=2, rope=True, weight_std=0.12),
)
DEEP = Setting(depth=1000, tokens=256, batch=1, width=256, heads=4, weight_std=0.02)
LONG = Setting(depth=8, tokens=4096, batch=1, width=128, heads=4)
TRAINED = Setting(
    depth=16,
    tokens=16,
    text_tokens=4,
    batch=64,
    width=16,
    heads=1,
    weight_std=0.16,
    writer_std=0.0,
    rope=True,
)


class Straightforward(nn.Module):
    """The block of arXiv:2605.06169 in plain PyTorch: the baseline for the bare stack."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.setting, width, hidden = setting, setting.width, setting.ffn_width
        sizes = {"q": (width, width), "k": (width, width), "v": (width, width), "o": (width, width)}
        sizes |= {"w13": (width, 2 * hidden), "w2": (hidden, width)}
        self.blocks = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(*size, bias=False) for name, size in sizes.items()})
            for _ in range(setting.depth)
        )
        self.norm = nn.RMSNorm(width, eps=1e-5, elementwise_affine=False)
        self.qk_norm = nn.RMSNorm(setting.head_width, eps=1e-6, elementwise_affine=False)
        angles = rope_angles(setting.segments, setting.head_width)
        self.register_buffer("cos", angles.cos().float())
        self.register_buffer("sin", angles.sin().float())

    def positioned(self, x: Tensor) -> Tensor:
        x = x.unflatten(-1, (self.setting.heads, -1)).transpose(1, 2)
        first, second = x.chunk(2, dim=-1)
        turned = (first * self.cos + second * self.sin, second * self.cos - first * self.sin)
        return self.qk_norm(torch.cat(turned, dim=-1))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            values = block["v"](x).unflatten(-1, (self.setting.heads, -1)).transpose(1, 2)
            queries, keys = self.positioned(block["q"](x)), self.positioned(block["k"](x))
            mixed = nn.functional.scaled_dot_product_attention(queries, keys, values)
            x = self.norm(x + block["o"](mixed.transpose(1, 2).flatten(2)))
            gate, value = block["w13"](x).chunk(2, dim=-1)
            x = self.norm(x + block["w2"](nn.functional.silu(gate) * value))
        return x


def ratios(work: dict[str, Callable[[], object]], device: str) -> dict[str, float]:
    """Median times relative to the first entry, taken in rotating order, each after a warm-up of its own.

    On a CPU that is CPU time, since wall times on a shared machine vary too much.
    """
    clock = time.perf_counter if device == "cuda" else time.process_time
    times: dict[str, list[float]] = {name: [] for name in work}
    names = list(work)
    for repeat in range(REPEATS):
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            run = work[name]
            run()  # warm up: whatever ran before has left its mark on allocator and cache
            start = clock()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            times[name].append(clock() - start)
    median = {name: statistics.median(values) for name, values in times.items()}
    first = median[next(iter(work))]
    return {name: value / first for name, value in median.items()}


def observables(setting: Setting, device: str) -> dict[str, float]:
    """Time ratios of forward and backward: a resident stack, bare and probed, and the plain baseline."""
    stack = Stack(setting)
    for index, block in enumerate(stack.blocks, start=1):
        block.reset_parameters(stream(setting, 0, index))
    x = synthetic_input(setting, stream(setting, 0, 0)).to(device)
    adjoint = torch.randn(x.shape, generator=stream(setting, 1, 0)).to(device)
    plain = Straightforward(setting).to(device)
    for source, target in zip(stack.blocks, plain.blocks, strict=True):
        layers = (*source.operator.readers, source.operator.proj, source.ffn.w13, source.ffn.w2)
        for name, layer in zip(("q", "k", "v", "o", "w13", "w2"), layers, strict=True):
            target[name].weight.data.copy_(layer.weight)
    stack.to(device)
    torch.testing.assert_close(plain(x), stack(x), rtol=1e-3, atol=1e-3)
    names = list(observable_dims(setting, backward=True))

    def walk(network: nn.Module) -> None:
        network.zero_grad(set_to_none=True)
        network(x).backward(adjoint)

    def probed(chosen: list[str]) -> None:
        with Probe(stack, names=chosen) as probe:
            walk(stack)
        probe.values()

    return ratios(
        {
            "bare": lambda: walk(stack),
            "straightforward": lambda: walk(plain),
            "all observables": lambda: probed(names),
            "without mu_eff and kappa_abs": lambda: probed(
                [name for name in names if name not in ("mu_eff", "kappa_abs")]
            ),
        },
        device,
    )


def training(device: str, runs: int = 16, steps: int = 20) -> float:
    """Throughput of training an ensemble relative to its runs one by one, with fused AdamW in both."""
    data, targets = (synthetic_input(TRAINED, stream(TRAINED, seed, 0)).to(device) for seed in (7, 8))

    def member(seed: int) -> Stack:
        stack = Stack(TRAINED)
        for index, block in enumerate(stack.blocks, start=1):
            block.reset_parameters(stream(TRAINED, seed, index))
        return stack.to(device)

    def indices(seed: int, step: int) -> Tensor:
        return torch.from_numpy(data_order(seed, step, len(data), 4)).to(device)

    def batch(step: int, members: list[int]) -> tuple[Tensor, Tensor]:
        chosen = torch.stack([indices(seed, step) for seed in members])
        return data[chosen], targets[chosen]

    def losses(network: nn.Module, given: tuple[Tensor, Tensor]) -> Tensor:
        return (network(given[0]) - given[1]).square().flatten(1).mean(1)

    members = [member(seed) for seed in range(runs)]
    schedule = Schedule(slope=5e-5)

    def together() -> None:
        network = stack_members(members)
        train_ensemble(EnsembleOptimiser(network, AdamW()), losses, batch, [schedule] * runs, steps=steps)

    def alone() -> None:
        network = member(0)
        optimiser = torch.optim.AdamW(network.parameters(), weight_decay=0.1, fused=True)
        for step in range(1, steps + 1):
            for group in optimiser.param_groups:
                group["lr"] = schedule.rate(step)
            chosen = indices(0, step)
            optimiser.zero_grad()
            (network(data[chosen]) - targets[chosen]).square().mean().backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()

    found = ratios({"ensemble": together, "alone": alone}, device)
    return runs * found["alone"]


def at_initialisation(device: str, runs: int = 16) -> float:
    """Throughput of simulating small stacks as an ensemble relative to one by one."""
    setting = Setting(depth=32, tokens=16, width=32, heads=2, weight_std=0.15)
    cells = [(setting, seed) for seed in range(runs)]
    found = ratios(
        {
            "ensemble": lambda: simulate_ensemble(cells, backward=True, device=device),
            "alone": lambda: simulate(setting, 0, backward=True, device=device),
        },
        device,
    )
    return runs * found["alone"]


def apart(setting: Setting) -> dict[str, float]:
    """Time and resident memory of a simulation with all observables, in a separate process."""
    command = [sys.executable, __file__, "--alone", json.dumps(dataclasses.asdict(setting))]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(run.stdout)
    return found


def alone(setting: Setting) -> None:
    """Simulate in this process; print the seconds and the peak resident size in gigabytes."""
    simulate(dataclasses.replace(setting, depth=2), 0, backward=True)
    start = time.perf_counter()
    found = simulate(setting, 0, backward=True)
    assert np.isfinite(found["tcs"]).all() and np.isfinite(found["adjoint_tcs"]).all()
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "gigabytes": largest_resident()}))


def largest_resident() -> float:
    """Peak resident gigabytes; not from ru_maxrss on Linux, where a child's starts at its parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e9
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e9


def scaling() -> dict[str, object]:
    """Time as a function of depth from 64 to 1000 blocks, and peak memory."""
    depths = (64, 128, 256, 512, 1000)
    found = [apart(dataclasses.replace(DEEP, depth=depth)) for depth in depths]
    slope = np.polyfit(np.log(depths), np.log([one["seconds"] for one in found]), 1)[0]
    long = apart(LONG)
    return {
        "slope of time in depth": float(slope),
        "seconds": dict(zip(depths, (one["seconds"] for one in found), strict=True)),
        "gigabytes at 1000 blocks": found[-1]["gigabytes"],
        "gigabytes at 4096 tokens": long["gigabytes"],
        "seconds at 4096 tokens": long["seconds"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="Also write the ratios to this file.")
    parser.add_argument(
        "--part", action="append", choices=("observables", "ensembles", "scaling"), help="Run this part only."
    )
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    given = parser.parse_args()
    parts = given.part or ["observables", "ensembles", "scaling"]
    torch.set_num_threads(1)
    keep_freed_memory()  # as `mms` does
    if given.alone:
        alone(Setting(**json.loads(given.alone)))
        return
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    results: dict[str, object] = {
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "cpu": platform.processor() or platform.machine(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
    for device in devices:
        if "observables" in parts:
            for setting in (TRUNK, *SMALL):
                tokens = f"T = {setting.tokens} + {setting.text_tokens}"
                sizes = f"L = {setting.depth}, D = {setting.width}, {tokens}, B = {setting.batch}"
                name = f"{device}: forward and backward, relative to the bare trunk, {sizes}"
                results[name] = observables(setting, device)
        if "ensembles" in parts:
            results[f"{device}: 16 runs trained as an ensemble, throughput relative to one by one"] = (
                training(device)
            )
            results[f"{device}: 16 runs simulated as an ensemble, throughput relative to one by one"] = (
                at_initialisation(device)
            )
    if "scaling" in parts:
        results["depth and tokens"] = scaling()
    text = json.dumps(results, indent=1)
    print(text)
    if given.json:
        given.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
