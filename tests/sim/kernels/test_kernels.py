"""The kernels for a GPU without one: in Triton's interpreter, and compiled for devices that are not here.

Run as a script with the name of a report, this file makes it: one process interprets, one compiles.
"""

import contextlib
import dataclasses
import importlib.util
import io
import itertools
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from meanmode.sim.anatomy.discovery import discover
from meanmode.sim.kernels import choice, device_check, gate_operator, head_operator, merge_operator
from meanmode.sim.kernels.choice import plain_torch
from meanmode.sim.observe.probe import Probe
from meanmode.sim.trunk.ensemble import stack_members
from meanmode.sim.trunk.merges import MVSplit
from meanmode.sim.trunk.segments import Segments, replicate_tokens
from meanmode.sim.trunk.stack import Block, Stack
from meanmode.theory.setting import Setting

BENCH = Path(__file__).parents[2] / "bench"
SETTING = Setting(
    depth=2, tokens=4, text_tokens=2, width=16, heads=2, merge="mv_split", alpha=0.3, beta=0.7, rope=True
)
KERNELS = ("mv_split", "plain", "layerscale", "rezero", "deepnorm", "heads", "gate")
TYPES = ("float64", "float32", "bfloat16", "float16")
SKIPPED = {
    ("layerscale", "float32"),
    ("deepnorm", "float32"),
    *((kernel, "float16") for kernel in KERNELS[1:5]),
}
"""Types in which a merge without means is not compared, to save time: MV-Split is, in all."""
WAYS = ("plainly", "checkpointed", "under autocast", "compiled", "as an ensemble", "with tokens twice")
DEVICES = (80, 90, 100)
"""Compute capabilities of A100, H100 and B200."""

SMALL = 16
"""Bytes of stack that a kernel may have: more would be numbers that did not fit the registers."""

Report = dict[str, Any]


def block(seed: int = 0, **changes: object) -> Block:
    made = Block(dataclasses.replace(SETTING, **changes))
    made.reset_parameters(torch.Generator().manual_seed(seed))
    return made


def passed(way: str) -> list[Tensor]:
    """The output of a block and all its gradients; the same numbers every time."""
    ensemble, compiled = way == "as an ensemble", way == "compiled"
    # a compiler warns of the cache of angles
    made = stack_members([block(seed) for seed in range(2)]) if ensemble else block(rope=not compiled)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(*([2] if ensemble else []), 1, 6, 16, generator=generator)
    segments: Segments = (4, 2)
    if way == "with tokens twice":
        x, segments = replicate_tokens(x, segments, 2)
    adjoint = torch.randn(x.shape, generator=generator)
    x.requires_grad_()
    call: Callable[..., Tensor] = made
    if compiled:
        call = torch.compile(made, backend="aot_eager", fullgraph=True)
    elif way == "checkpointed":
        call = lambda *given: checkpoint(made, *given, use_reentrant=False)  # noqa: E731
    with torch.autocast("cpu", torch.bfloat16, enabled=way == "under autocast"):
        y = call(x, segments)
    y.backward(adjoint)
    return [y.detach(), x.grad, *(weight.grad for weight in made.parameters())]


def blocks() -> Report:
    """Differences of kernels and plain torch, largest in relation to each tensor's norm; and equal types."""
    found: Report = {}
    first: list[Tensor] = []
    for way in WAYS:
        if way == "compiled":  # a compiler comes across a device that was not checked
            device_check._answers.clear()
        ours = passed(way)
        first = ours if way == WAYS[0] else first
        with plain_torch():
            plain = passed(way)
        found[way] = {
            "difference": max(float((a - b).norm() / b.norm()) for a, b in zip(ours, plain, strict=True)),
            "types": all(a.dtype == b.dtype for a, b in zip(ours, plain, strict=True)),
            "fused": not all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True)),
        }
    found["repeats"] = all(map(torch.equal, first, passed(WAYS[0])))
    return found


def operators() -> Report:
    """What torch's own check says of each operator."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).requires_grad_()

    x, branch, gain, alpha = drawn(2, 5, 8), drawn(2, 5, 8), drawn(8), drawn(8)
    cos, sin = torch.rand(2, 5, 2, generator=generator)
    rest = [3, 2], 1e-5
    samples: dict[str, tuple[Any, tuple[object, ...]]] = {
        "mv_split": (merge_operator._merge_norm, (x, branch, None, gain, alpha, *rest)),
        "plain": (merge_operator._merge_norm, (x, branch.bfloat16(), None, None, None, *rest)),
        "heads": (head_operator._normed_heads, (x, cos, sin, 2, 1e-6)),
        "gate": (gate_operator._swiglu, (x,)),
    }
    return {name: torch.library.opcheck(*sample) for name, sample in samples.items()}


def measured() -> list[dict[str, list[float]]]:
    """Observables of a stack computed by kernels and by plain torch."""
    found = []
    for plain in (contextlib.nullcontext, plain_torch):
        stack = Stack(dataclasses.replace(SETTING, depth=1))
        x = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(2))
        for index, each in enumerate(stack.blocks):
            each.reset_parameters(torch.Generator().manual_seed(index))
        with plain(), Probe(stack) as probe:
            (stack(x.requires_grad_()) - x.detach().flip(1)).square().mean().backward()
        found.append({name: values.flatten().tolist() for name, values in probe.values().items()})
    return found


def left_alone() -> bool:
    """Whether what no kernel covers takes plain torch: three segments, a padding mask, a changed merge."""

    class Doubled(MVSplit):
        def combine(self, *given: Any) -> Tensor:
            return 2 * super().combine(*given)

    x, branch = torch.randn(2, 2, 6, 16, generator=torch.Generator().manual_seed(4))
    merge, doubled = MVSplit(16, 0.3, 0.7), Doubled(16, 0.3, 0.7)
    kept = torch.ones(2, 6, dtype=torch.bool)
    passes = (
        lambda: merge(x, branch, (2, 3, 1)),
        lambda: merge(x, branch, (4, 2), kept),
        lambda: doubled(x, branch, (4, 2)),
    )
    found = [of() for of in passes]
    with plain_torch():
        return all(torch.equal(y, of()) for y, of in zip(found, passes, strict=True))


def transforms() -> bool:
    """Whether function transforms of a block, which need plain torch, give the derivative of the kernels."""
    made, x = block(), torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(3))
    by_function = torch.func.grad(lambda y: made(y, (4, 2)).sum())(x)
    x.requires_grad_()
    made(x, (4, 2)).sum().backward()
    return torch.allclose(by_function, x.grad, rtol=1e-4, atol=1e-5)


def refused() -> str:
    """What is said to a second derivative."""
    x = torch.ones(1, 6, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(block()(x, (4, 2)).sum(), x, create_graph=True)
    try:
        gradient.sum().backward()
    except RuntimeError as error:
        return str(error)
    return ""


def checked() -> Report:
    """What the check of a device says, with intact kernels and broken ones, and what it leaves behind."""
    from meanmode.sim.kernels import gate_launch, head_launch

    device = torch.device("cpu")
    forward, backward = gate_launch.forward, head_launch.backward
    found: Report = {}

    def said(work: Callable[[], Any]) -> tuple[Any, list[str]]:
        device_check._answers.clear()
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            return work(), [str(each.message) for each in heard if each.category is UserWarning]

    def inside() -> bool:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), FakeTensorMode():
            return device_check.agrees(device)

    def refuse(*given: Any) -> Tensor:
        raise RuntimeError("no compiler\nfor this device")

    before = torch.get_rng_state()
    found["inside modes"] = said(inside)
    found["random numbers"] = torch.equal(before, torch.get_rng_state())
    with mock.patch.object(device_check, "_capturing", lambda device: True):
        found["capturing"] = said(lambda: device_check.agrees(device) or device in device_check._answers)
    with mock.patch.object(choice, "agrees", lambda device: False):
        plain = passed("plainly")
    failures = {
        "one number": mock.patch.object(
            head_launch, "backward", lambda *given: backward(*given).index_fill_(-1, torch.tensor(3), 0.5)
        ),
        "not a number": mock.patch.object(gate_launch, "forward", lambda *given: forward(*given) * torch.nan),
        "raised": mock.patch.object(gate_launch, "backward", refuse),
    }
    for name, failure in failures.items():
        with failure:
            ours, heard = said(lambda: passed("plainly") + passed("plainly"))
        found[name] = all(map(torch.equal, plain + plain, ours)), heard
    device_check._answers.clear()
    return found


def interpreted() -> Report:
    """The report of a process under the interpreter."""
    from gpu import main

    # the check takes other sizes on a device: more blocks of each kernel
    for name, small in (("SEGMENTS", (3, 2)), ("WIDTH", 8)):
        setattr(device_check, name, small)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        target, code = Path(folder) / "bench.json", 0
        with mock.patch.object(sys, "argv", ["gpu.py", "--json", str(target)]):
            try:
                main()
            except SystemExit as stopped:
                code = stopped.code
        bench = json.loads(target.read_text())
    stack, x = Stack(SETTING), torch.randn(2, 6, 16)
    anatomy = discover(stack, x)
    with plain_torch():
        same = anatomy == discover(stack, x)
    return {
        "bench": bench | {"code": code},
        "blocks": blocks(),
        "operators": operators(),
        "measured": measured(),
        "left alone": left_alone(),
        "transforms": transforms(),
        "refused": refused(),
        "checked": checked(),
        "same anatomy": same,
        "writers": len(anatomy.writers),
    }


def compiled_launches(work: Callable[[], object], capabilities: Sequence[int]) -> dict[str, int]:
    """Compile what would be launched -> bytes of registers that did not fit, by kernel and device."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kinds = {"bfloat16": "bf16", "float32": "fp32", "float64": "fp64", "int32": "i32"}
    found: dict[str, int] = {}

    def run(kernel: Any, *given: Any, grid: Any, warmup: bool, num_warps: int = 4, **constants: Any) -> None:
        signature: dict[str, str] = dict.fromkeys(constants, "constexpr")
        aligned = {}
        for place, (name, value) in enumerate(zip(kernel.arg_names, given, strict=False)):
            if isinstance(value, Tensor):
                signature[name] = f"*{kinds[str(value.dtype).removeprefix('torch.')]}"
            elif value == 1:  # as Triton specialises it
                signature[name], constants[name] = "constexpr", 1
            else:
                signature[name] = "i32"
            if isinstance(value, Tensor) or value % 16 == 0:
                aligned[(place,)] = [["tt.divisibility", 16]]
        assert sorted(signature) == sorted(kernel.arg_names)
        for capability in capabilities:
            made = triton.compile(
                ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned),
                target=GPUTarget("cuda", capability, 32),
                options={"num_warps": num_warps},
            )
            found[f"{kernel.fn.__name__} for {capability}"] = spilled(made.asm["cubin"])

    with mock.patch("triton.runtime.jit.JITFunction.run", run):
        work()
    return found


def spilled(binary: bytes) -> int:
    """Bytes of stack of a compiled kernel."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        said = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True)
    (stack,) = [word for word in said.stdout.split() if word.startswith("STACK:")]
    return int(stack.removeprefix("STACK:"))


def launches(kind: torch.dtype, gains: str) -> None:
    """Launch every kernel at the published width; tensors are on the CPU, so nothing may run."""
    from meanmode.sim.kernels import gate_launch, head_launch, merge_launch

    wide = torch.float64 if kind == torch.float64 else torch.float32
    x, vector, one = (
        torch.ones(8, 333, 1024, dtype=kind),
        torch.ones(1024, dtype=wide),
        torch.ones(1, dtype=wide),
    )
    skip, write, alpha = {
        "mv_split": (None, vector, vector),
        "plain": (None, None, None),
        "rezero": (None, one, None),
        "deepnorm": (one, None, None),
    }[gains]
    segments, given = (256, 77), (skip, write, alpha)
    _, means = merge_launch.forward(x, x, given, segments, 1e-5)
    merge_launch.backward(x, x, x, given, means, segments, 1e-5)
    if gains == "mv_split":
        cos = torch.ones(333, 32, dtype=wide)
        y = head_launch.forward(x, cos, cos, 16, 1e-6)
        head_launch.backward(y, x, cos, cos, 16, 1e-6)
        gate_launch.backward(gate_launch.forward(x), x)


def built_for_all() -> Report:
    """Bytes of stack of more kernels, for more devices."""
    stacks = compiled_launches(lambda: launches(torch.bfloat16, "mv_split"), DEVICES)
    for kind in (torch.float64, torch.float32):
        for gains in ("mv_split", "plain", "rezero", "deepnorm"):
            of = compiled_launches(lambda kind=kind, gains=gains: launches(kind, gains), DEVICES)
            stacks |= {f"{gains} {kind} {name}": size for name, size in of.items()}
    return {"stacks": stacks}


def built() -> Report:
    """The report of a process that compiles, on a machine without a GPU."""
    block()(torch.ones(1, 6, 16), (4, 2))
    loaded = "triton" in sys.modules
    from gpu import main

    said = io.StringIO()
    with contextlib.redirect_stderr(said), mock.patch.object(sys, "argv", ["gpu.py"]):
        with mock.patch("torch.cuda.is_available", lambda: False):
            try:
                main()
            except SystemExit as stopped:
                code = stopped.code
    stacks = compiled_launches(lambda: launches(torch.bfloat16, "mv_split"), DEVICES[1:2])
    return {"loaded": loaded, "code": code, "said": said.getvalue(), "stacks": stacks}


def report(name: str, folder: Path, **environment: str) -> Report:
    """Make a report in a process of its own."""
    paths = os.pathsep.join([str(BENCH), *([found] if (found := os.environ.get("PYTHONPATH")) else [])])
    own = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TRITON_CACHE_DIR": str(folder), **environment}
    run = subprocess.run(
        [sys.executable, __file__, name],
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


needs_triton = pytest.mark.skipif(
    not importlib.util.find_spec("triton"), reason="the extra gpu is not installed"
)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return report("interpreted", tmp_path_factory.mktemp("cache"), TRITON_INTERPRET="1")


@needs_triton
@pytest.mark.parametrize(
    ("kernel", "kind"), [pair for pair in itertools.product(KERNELS, TYPES) if pair not in SKIPPED]
)
def test_errors_are_at_most_twice_those_of_plain_torch(found: Report, kernel: str, kind: str) -> None:
    """All shapes of `kernel_errors`; in float64 kernels equal autograd to 1e-10."""
    assert found["bench"]["errors over allowed"][kernel][kind] <= 1
    assert not found["bench"]["errors too large"]


@needs_triton
def test_the_benchmark_runs_from_end_to_end(found: Report) -> None:
    bench = found["bench"]
    assert bench["code"] == 0
    assert {"command", "device", "date", "commit", "triton", "copy bandwidth, GB/s"} <= bench.keys()
    assert {row["kernel"] for row in bench["kernels"]} == {"mv_split", "plain", "heads", "gate"}
    for row in bench["kernels"]:
        assert row["milliseconds"].keys() == {"eager", "compiled", "kernels"}
        assert row["share of the copy bandwidth"] > 0
    (step,) = bench["training steps"]
    assert step["eager over kernels"] > 0 and step["compiled over kernels compiled"] > 0


@needs_triton
@pytest.mark.parametrize("way", WAYS)
def test_a_block_computes_the_same(found: Report, way: str) -> None:
    case = found["blocks"][way]
    assert case["fused"] and case["types"] and found["blocks"]["repeats"]
    assert case["difference"] < (0.05 if way == "under autocast" else 1e-6)


@needs_triton
@pytest.mark.parametrize("operator", ["mv_split", "plain", "heads", "gate"])
def test_operators_are_registered_as_torch_wants_them(found: Report, operator: str) -> None:
    assert set(found["operators"][operator].values()) == {"SUCCESS"}


@needs_triton
def test_measurements_and_anatomy_are_the_same(found: Report) -> None:
    ours, plain = found["measured"]
    assert ours.keys() == plain.keys()
    for name, values in plain.items():
        assert ours[name] == pytest.approx(values, rel=1e-4, abs=1e-6, nan_ok=True), name
    assert found["same anatomy"] and found["writers"] == 4


@needs_triton
def test_what_kernels_do_not_cover_is_left_to_plain_torch_or_refused(found: Report) -> None:
    assert found["transforms"] and found["left alone"]
    assert "cannot be differentiated twice (create_graph=True)" in found["refused"]


@needs_triton
@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        ("one number", "gradient 1 of QK-Norm in float32 is off by"),
        ("not a number", "the result of SwiGLU in float32 is off by nan"),
        ("raised", "RuntimeError: no compiler"),
    ],
)
def test_kernels_that_fail_their_check_are_not_used_and_that_is_said_once(
    found: Report, failure: str, reason: str
) -> None:
    plain, (warning,) = found["checked"][failure]
    assert plain and reason in warning and len(warning.splitlines()) == 1


@needs_triton
def test_the_check_passes_in_all_modes_and_waits_while_a_graph_is_captured(found: Report) -> None:
    checked = found["checked"]
    assert checked["inside modes"] == [True, []]
    assert checked["capturing"] == [False, []]
    assert checked["random numbers"]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return report("built", tmp_path_factory.mktemp("cache"))


@needs_triton
def test_kernels_compile_for_a_device_and_keep_their_numbers_in_registers(compiled: Report) -> None:
    assert len(compiled["stacks"]) == 10
    assert max(compiled["stacks"].values()) <= SMALL, compiled["stacks"]


@pytest.mark.slow
@needs_triton
def test_all_kernels_compile_for_all_devices(tmp_path: Path) -> None:
    stacks = report("built_for_all", tmp_path)["stacks"]
    assert {f"backward_rows for {device}" for device in DEVICES} <= stacks.keys()
    assert max(stacks.values()) <= SMALL, stacks


@needs_triton
def test_without_a_gpu_nothing_is_loaded_and_the_benchmark_says_what_it_needs(compiled: Report) -> None:
    assert not compiled["loaded"]
    assert compiled["code"] == 2 and len(compiled["said"].splitlines()) == 1
    assert "needs a GPU" in compiled["said"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")
def test_on_a_device(tmp_path: Path) -> None:
    """Errors, speed and steps on the device that is there."""
    run = subprocess.run([sys.executable, BENCH / "gpu.py", "--json", tmp_path / "bench.json"], check=False)
    assert run.returncode == 0
    assert not json.loads((tmp_path / "bench.json").read_text())["errors too large"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    reports = {"interpreted": interpreted, "built": built, "built_for_all": built_for_all}
    print(json.dumps(reports[sys.argv[1]]()))
