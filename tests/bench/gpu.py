"""The kernels for a GPU: errors, speed, share of the copy bandwidth, whole training steps. `make bench-gpu`.

Prints one JSON document; `--json FILE` also writes it to a file. Nothing new is begun after 390 s,
and what is left out is named. Ends with 2 without a GPU that can run the kernels, with 1 if an error is too
large. Under Triton's interpreter the same code runs at a tiny size on the CPU, which says nothing of speed.
"""

import argparse
import contextlib
import dataclasses
import datetime
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from kernel_errors import MERGES, TYPES, kernel_errors
from torch import Tensor
from torch.nn.functional import rms_norm, silu

from meanmode.dit.config.architecture import DiTConfig
from meanmode.dit.config.training_config import TrainingConfig
from meanmode.dit.model.flow import flow_losses
from meanmode.dit.model.network import DiT, materialised
from meanmode.dit.train.optimiser import Optimiser
from meanmode.sim.kernels.choice import INTERPRETED, fused, plain_torch
from meanmode.sim.kernels.gate_operator import swiglu
from meanmode.sim.kernels.head_operator import normed_heads
from meanmode.sim.store.provenance import provenance
from meanmode.sim.trunk.attention import rope_angles
from meanmode.sim.trunk.constants import QK_EPS
from meanmode.sim.trunk.merges import make_merge

AUTOCAST = "float32 trunk, bfloat16 branch"
OUT_OF_TIME, OUT_OF_MEMORY = "left out: out of time", "left out: out of memory"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is measured.

    Attributes:
        shapes: batch, image tokens, text tokens, width and heads of inputs of kernels.
        depths: blocks of the networks whose steps are measured.
        network: their other sizes.
        batch: their batch.
        repeats: timed repeats; medians are reported.
        ahead: numbers that are overwritten before each timed call: longer than its launches take, and larger
            than a cache.
        backend: compiler.
        seconds: time after which nothing new is begun.
    """

    shapes: tuple[tuple[int, int, int, int, int], ...] = (
        (8, 256, 77, 1024, 16),
        (64, 256, 8, 256, 4),
        (2, 4096, 77, 1024, 16),
    )
    depths: tuple[int, ...] = (100, 400, 1000)
    network: DiTConfig = dataclasses.field(
        default_factory=lambda: DiTConfig(
            width=256, heads=4, side=32, text_tokens=8, text_width=256, merge="mv_split", writer_std=None
        )
    )
    batch: int = 4
    repeats: int = 15
    ahead: int = 2**29
    backend: str = "inductor"
    seconds: float = 390.0


TINY = Sizes(
    shapes=((1, 4, 1, 8, 2),),
    depths=(1,),
    network=DiTConfig(
        width=8, heads=2, side=4, text_tokens=1, text_width=8, merge="mv_split", writer_std=None
    ),
    batch=1,
    repeats=1,
    ahead=1,
    backend="eager",
)


class Bench:
    """Measures on one device.

    Args:
        device: `cuda`, or `cpu` under the interpreter.
        sizes: what to measure.
    """

    def __init__(self, device: str, sizes: Sizes) -> None:
        self.device, self.sizes = device, sizes
        self._end = time.monotonic() + sizes.seconds
        self._ahead = torch.empty(sizes.ahead, device=device)
        self._copies: dict[int, float] = {}

    def tried(self, work: Callable[[], float]) -> float | str:
        """A measurement, or why there is none."""
        if time.monotonic() > self._end:
            return OUT_OF_TIME
        try:
            return work()
        except torch.OutOfMemoryError:
            return OUT_OF_MEMORY

    def milliseconds(self, work: Callable[[], object], *, repeats: int = 0) -> float:
        """Median time of a call on the device, without the waiting for its launches where these are fewer."""
        for _ in range(min(2, self.sizes.repeats)):
            work()
        times = []
        for _ in range(repeats or self.sizes.repeats):
            if self.device == "cpu":
                start = time.perf_counter()
                work()
                times.append(1e3 * (time.perf_counter() - start))
                continue
            self._ahead.zero_()
            begun, done = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begun.record()
            work()
            done.record()
            done.synchronize()
            times.append(begun.elapsed_time(done))
        return statistics.median(times)

    def copying(self, moved: int) -> float:
        """Time of a copy that reads and writes this many bytes together, in milliseconds."""
        if moved not in self._copies:
            source = torch.ones(max(1, moved // 2), dtype=torch.uint8, device=self.device)
            target = torch.empty_like(source)
            self._copies[moved] = self.milliseconds(lambda: target.copy_(source))
        return self._copies[moved]

    def row(
        self, name: dict[str, object], ways: dict[str, Callable[[], object]], moved: int
    ) -> dict[str, object]:
        """Times of a computation in several ways, and how they compare.

        Args:
            name: what is computed.
            ways: `eager`, `compiled` and `kernels`.
            moved: bytes that it must read and write at least.
        """
        times = {way: self.tried(lambda work=work: self.milliseconds(work)) for way, work in ways.items()}
        found: dict[str, object] = {**name, "bytes": moved, "milliseconds": times}
        kernels = times["kernels"]
        if isinstance(kernels, float):
            for way in ("eager", "compiled"):
                of = times[way]
                found[f"{way} over kernels"] = of / kernels if isinstance(of, float) else of
            found["share of the copy bandwidth"] = self.copying(moved) / kernels
        return found

    def passes(
        self,
        name: dict[str, object],
        ways: dict[str, Callable[[], Tensor]],
        inputs: list[Tensor],
        moved: tuple[int, int],
    ) -> list[dict[str, object]]:
        """Rows of the forward pass and of forward and backward pass.

        Args:
            name: what is computed.
            ways: as in `row`; each returns the output.
            inputs: what gradients are taken of.
            moved: bytes of either.
        """
        with plain_torch():
            gradient = torch.randn_like(ways["eager"]())

        def both(work: Callable[[], Tensor]) -> Callable[[], object]:
            return lambda: torch.autograd.grad(work(), inputs, gradient)

        twice = {way: both(work) for way, work in ways.items()}
        return [
            self.row({**name, "pass": "forward"}, ways, moved[0]),
            self.row({**name, "pass": "forward and backward"}, twice, moved[1]),
        ]

    def ways(
        self, kernels: Callable[[], Tensor], plain: Callable[[], Tensor]
    ) -> dict[str, Callable[[], Tensor]]:
        """The ways to compute something: plain torch, plain torch compiled, and kernels."""
        torch.compiler.reset()  # one function is compiled for few shapes only, then silently run as it is
        compiled = torch.compile(plain, backend=self.sizes.backend)

        def without(work: Callable[[], Tensor]) -> Callable[[], Tensor]:
            def run() -> Tensor:
                with plain_torch():
                    return work()

            return run

        return {"eager": without(plain), "compiled": without(compiled), "kernels": kernels}

    def kernels(self) -> list[dict[str, object]]:
        """Rows of all kernels in all shapes."""
        rows = []
        for batch, image, text, width, heads in self.sizes.shapes:
            shape = f"B {batch}, T {image} + {text}, D {width}"
            for types in ("bfloat16", AUTOCAST):
                for merge in MERGES[:2]:
                    name = {"kernel": merge, "shape": shape, "type": types}
                    rows += self._merge(name, (batch, image, text, width))
            name = {"shape": shape, "type": "bfloat16"}
            rows += self._heads({"kernel": "heads", **name}, (batch, image, text, width, heads))
            rows += self._gate({"kernel": "gate", **name}, (batch, image + text, width))
        return rows

    def _merge(self, name: dict[str, object], shape: tuple[int, int, int, int]) -> list[dict[str, object]]:
        batch, image, text, width = shape
        kinds = TYPES[str(name["type"])]
        trunk, branch = (self._random(kind, batch, image + text, width) for kind in kinds)
        merge = make_merge(str(name["kernel"]), width, alpha=0.1, beta=0.5).to(self.device, kinds[0])
        own, other = trunk.numel() * trunk.itemsize, branch.numel() * branch.itemsize
        forward = 2 * own + other
        one = name["kernel"] == "plain" and kinds[0] == kinds[1]  # both gradients are one tensor
        return self.passes(
            name,
            self.ways(*[lambda: merge(trunk, branch, (image, text))] * 2),
            [trunk, branch, *merge.parameters()],
            (forward, forward + 3 * own + (1 if one else 2) * other),
        )

    def _heads(
        self, name: dict[str, object], shape: tuple[int, int, int, int, int]
    ) -> list[dict[str, object]]:
        batch, image, text, width, heads = shape
        x = self._random(torch.bfloat16, batch, image + text, width)
        angles = rope_angles((image, text), width // heads, torch.device(self.device))
        turn = angles.cos().float(), angles.sin().float()

        def plain() -> Tensor:
            first, second = x.float().unflatten(-1, (heads, -1)).transpose(-3, -2).chunk(2, dim=-1)
            cos, sin = turn
            turned = torch.cat([first * cos + second * sin, second * cos - first * sin], dim=-1)
            return rms_norm(turned, turned.shape[-1:], eps=QK_EPS).to(x.dtype)

        size = x.numel() * x.itemsize
        ways = self.ways(lambda: normed_heads(x, turn, heads, QK_EPS), plain)
        return self.passes(name, ways, [x], (2 * size, 5 * size))

    def _gate(self, name: dict[str, object], shape: tuple[int, int, int]) -> list[dict[str, object]]:
        batch, tokens, width = shape
        x = self._random(torch.bfloat16, batch, tokens, 2 * round(self.sizes.network.ffn_ratio * width))

        def plain() -> Tensor:
            gate, value = x.chunk(2, dim=-1)
            return silu(gate) * value

        size = x.numel() * x.itemsize
        return self.passes(name, self.ways(lambda: swiglu(x), plain), [x], (3 * size // 2, 4 * size))

    def _random(self, kind: torch.dtype, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device).to(kind).requires_grad_()

    def steps(self) -> list[dict[str, object]]:
        """Rows of whole training steps under autocast, by depth."""
        return [row for depth in self.sizes.depths for row in self._steps(depth)]

    def _steps(self, depth: int) -> list[dict[str, object]]:
        config = dataclasses.replace(self.sizes.network, depth=depth)
        name = {
            "blocks": depth,
            "width": config.width,
            "tokens": [config.image_tokens, config.text_tokens],
            "batch": self.sizes.batch,
        }
        if self.tried(lambda: 0.0) != 0.0:
            return [{**name, "milliseconds": OUT_OF_TIME}]
        network = materialised(config, 0, torch.device(self.device))
        optimiser = Optimiser(network, TrainingConfig())
        times: dict[str, float | str] = {}
        for way in ("eager", "kernels", "compiled", "kernels compiled"):
            if way == "compiled":
                for block in network.blocks:
                    block.compile(backend=self.sizes.backend)
            with contextlib.nullcontext() if "kernels" in way else plain_torch():
                step = self._step(network, optimiser)
                times[way] = self.tried(
                    lambda step=step: self.milliseconds(step, repeats=min(5, self.sizes.repeats))
                )
            optimiser.zero_grad()
        found: dict[str, object] = {**name, "milliseconds": times}
        for way, ours in (("eager", "kernels"), ("compiled", "kernels compiled")):
            of, kernels = times[way], times[ours]
            if isinstance(of, float) and isinstance(kernels, float):
                found[f"{way} over {ours}"] = of / kernels
        torch.compiler.reset()
        return [found]

    def _step(self, network: DiT, optimiser: Optimiser) -> Callable[[], object]:
        config, batch = network.config, self.sizes.batch
        shape = (2, batch, config.channels, config.side, config.side)
        clean, noise = torch.randn(shape, device=self.device)
        text = torch.randn(batch, config.text_tokens, config.text_width, device=self.device)

        def step() -> None:
            with torch.autocast(self.device, torch.bfloat16):
                velocity = network((clean + noise) / 2, text)
            flow_losses(velocity, clean, noise).mean().backward()
            _, total = optimiser.gradient_norms()
            optimiser.clip(total)
            optimiser.step(1e-4)
            optimiser.zero_grad()

        return step


def refusal(device: str) -> str:
    """Why the kernels cannot run; empty if they can."""
    if not INTERPRETED and not torch.cuda.is_available():
        return "bench-gpu needs a GPU, and torch finds none: run it where torch.cuda.is_available() is true"
    if not fused(torch.ones(1, device=device)):
        return (
            "bench-gpu needs Triton (the extra gpu), a C compiler, headers of Python and an NVIDIA GPU of "
            "compute capability 8.0 or later on which the kernels pass their check: a warning says if they "
            f"failed it, else not all of this is here ({torch.cuda.get_device_name()})"
        )
    return ""


def worst(errors: list[dict[str, object]]) -> dict[str, dict[str, object]]:
    """Largest ratio of an error to what is allowed, by kernel and type."""
    found: dict[str, dict[str, object]] = {}
    for row in sorted(errors, key=lambda row: float(str(row["ratio"]))):
        found.setdefault(str(row["kernel"]), {})[str(row["type"])] = row["ratio"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="Also write the document to this file.")
    given = parser.parse_args()
    device = "cpu" if INTERPRETED else "cuda"
    if INTERPRETED:
        from interpreter import like_a_device

        like_a_device()
    missing = refusal(device)
    if missing:
        print(missing, file=sys.stderr)
        raise SystemExit(2)
    import triton

    bench = Bench(device, TINY if INTERPRETED else Sizes())
    errors = kernel_errors(device)
    wrong = [row for row in errors if not row["fused"] or not float(str(row["ratio"])) <= 1]
    results: dict[str, object] = {
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "device": "Triton's interpreter" if INTERPRETED else torch.cuda.get_device_name(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **provenance(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        "copy bandwidth, GB/s": 2 * bench.sizes.ahead / bench.copying(2 * bench.sizes.ahead) / 1e6,
        "errors over allowed": worst(errors),
        "errors too large": wrong,
        "kernels": bench.kernels(),
        "training steps": bench.steps(),
    }
    text = json.dumps(results, indent=1)
    print(text)
    if given.json:
        given.json.write_text(text + "\n")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
